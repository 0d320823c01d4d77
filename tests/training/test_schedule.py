"""The learning rate is a pure function of the step."""

import pytest

from ltd_pipe.params import FitParams
from ltd_pipe.training.optim import learning_rate


def rates(total=100, **changes):
    params = FitParams(architecture="x", epochs=1, learning_rate=0.4, **changes)
    return [learning_rate(params, step, total) for step in range(total)]


def test_one_cycle_rises_then_falls():
    """It peaks at the warm-up's end and is never 0."""
    found = rates(schedule="one-cycle", warmup_fraction=0.25)
    assert max(range(100), key=found.__getitem__) in {24, 25}
    assert max(found) == pytest.approx(0.4, rel=0.03)
    assert min(found) > 0
    assert found[:24] == sorted(found[:24])
    assert found[25:] == sorted(found[25:], reverse=True)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_one_cycle_without_a_rise_or_a_fall(warmup):
    """Both ends of the fraction are sound."""
    assert all(0 < rate <= 0.4 for rate in rates(schedule="one-cycle", warmup_fraction=warmup))


def test_step_falls_tenfold_at_each_milestone():
    """÷10 at a half and at three quarters, as in the AWP code's 100 and 150 of 200 epochs."""
    found = rates(schedule="step", milestones=(0.5, 0.75))
    assert found[49] == 0.4
    assert found[50] == pytest.approx(0.04)
    assert found[75] == pytest.approx(0.004)


def test_constant():
    """Nothing changes."""
    assert set(rates(schedule="constant")) == {0.4}


def test_cosine_falls_as_half_a_wave():
    """From the peak, through a half of it in the middle, to about 0."""
    found = rates(schedule="cosine")
    assert found[0] == pytest.approx(0.4, rel=1e-3)
    assert found[49] == pytest.approx(0.2, rel=0.02)
    assert 0 < found[-1] < 1e-3
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_any_schedule_can_be_warmed_up(schedule):
    """It rises in a line to the peak; without a fraction it starts there."""
    found = rates(schedule=schedule, warmup_fraction=0.2)
    assert found[:20] == pytest.approx([0.4 * (step + 0.5) / 20 for step in range(20)])
    assert found[20] == pytest.approx(0.4, rel=0.01)
    assert rates(schedule=schedule)[0] == pytest.approx(0.4, rel=0.01)
