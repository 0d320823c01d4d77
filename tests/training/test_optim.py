"""The learning rate is a function of the step, and averages of the weights are their formulas."""

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ParamsError
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.objectives import StepInfo
from ltd_pipe.params import FitParams, parse_standalone
from ltd_pipe.training.optim import WeightAverage, learning_rate
from ltd_pipe.training.trainer import Watcher


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


SHAPE = (1, 8, 8)


def model(value):
    network = build("small-cnn-w8", 2, SHAPE)
    classifier = Classifier(
        network, architecture="small-cnn-w8", class_names=("a", "b"), shape=SHAPE
    )
    with torch.no_grad():
        for tensor in classifier.network.state_dict().values():
            tensor.fill_(value)
    return classifier


def moving(classifier, decay):
    return WeightAverage(classifier, FitParams(architecture="x", epochs=1, ema_decay=decay))


def after(steps):
    return StepInfo(step=steps - 1)


def value(average, name="network.linear.bias"):
    return average.model.state_dict()[name][0].item()


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (10, 11 / 20), (1000, 0.9)])
def test_one_update_by_hand(step, decay):
    """Average = decay · old + (1 - decay) · new, decay = min(0.9, (1 + n) / (10 + n))."""
    average = moving(model(0.0), 0.9)
    average.update(model(1.0), after(step))
    assert value(average) == pytest.approx(1 - decay)


def test_batch_statistics_are_averaged_and_counters_copied():
    """A running mean moves like a weight; an integer takes the model's value."""
    average = moving(model(0.0), 0.9)
    average.update(model(1.0), after(1000))
    names = average.model.state_dict()
    mean = next(name for name in names if name.endswith("running_mean"))
    count = next(name for name in names if name.endswith("num_batches_tracked"))
    assert value(average, mean) == pytest.approx(0.1)
    assert names[count].item() == 1


def test_without_decay_it_follows():
    """Decay 0 is the model itself, to the bit."""
    average = moving(model(0.0), 0.0)
    average.update(model(0.3), after(1000))
    assert value(average) == torch.tensor(0.3).item()


def test_the_average_is_a_copy_in_evaluation_mode():
    """Updating it leaves the model alone; it asks for no gradients."""
    source = model(1.0).train()
    average = moving(source, 0.9)
    average.update(model(5.0), after(1))
    assert source.network.linear.bias[0].item() == 1.0
    assert not average.model.training
    assert not any(weight.requires_grad for weight in average.model.parameters())


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_it_is_the_mean_of_the_epochs_from_its_start_on(make_student):
    """Of four epochs the last two count; before them the model itself is validated."""
    ends = []
    fit = make_student(epochs=4, ema_decay=0.0, schedule="constant", swa_from=0.5)

    class Ends(Watcher):
        def epoch(self, history):
            ends.append(weights(fit.model))
            if len(history) <= 3:
                assert torch.equal(weights(fit.average), ends[-1])

    fit.run(Ends())
    found = fit.average.state_dict()["network.linear.weight"].flatten().double()
    count = len(found)
    names = list(fit.model.state_dict())
    sizes = [value.numel() for value in fit.model.state_dict().values()]
    begin = sum(sizes[: names.index("network.linear.weight")])
    mean = (ends[2] + ends[3])[begin : begin + count] / 2
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-7)


def swa(**changes):
    settings = {"architecture": "x", "epochs": 100, "schedule": "step"} | changes
    overrides = {f"teacher.{name}": str(value) for name, value in settings.items()}
    return parse_standalone("teacher", overrides).teacher


STARTS = [(0.29, 100, 29), ("1/3", 90, 30), (0.5, 5, 2), (0, 2, 0), (0.98, 100, 98)]


@pytest.mark.parametrize(("share", "epochs", "start"), STARTS)
def test_it_begins_with_the_first_epoch_that_ends_behind_its_start(share, epochs, start):
    """Whatever a fraction is in binary: 0.29 * 100 is less than 29."""
    assert swa(swa_from=share, epochs=epochs).swa_epoch == start


REFUSED = {
    "two": (
        {"swa_from": 0.5, "ema_decay": 0.9},
        {"what": "averages"},
    ),
    "one-cycle": (
        {"swa_from": 0.5, "schedule": "one-cycle"},
        {"what": "one-cycle"},
    ),
    "none": ({"swa_from": 1}, {"what": "0 of 100"}),
    "one": ({"swa_from": 0.99}, {"what": "1 of 100"}),
}


@pytest.mark.parametrize(("changes", "fields"), REFUSED.values(), ids=REFUSED)
def test_an_average_of_nothing_is_refused(changes, fields):
    """So are one beside another, and one of weights whose rate has not settled."""
    with refused(ParamsError, where="options", **fields):
        swa(**changes)
