"""Softmax at a temperature, the temperature for a confidence, and what labels are like."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from refusals import refused

from ltd_pipe.errors import ParamsError, StoreError
from ltd_pipe.labels.softmax import (
    calibrated_temperature,
    mean_softened,
    round_logits,
    soften,
    softened_half,
    solve_temperature,
)
from ltd_pipe.labels.softness import Softness

LOGITS = np.array([[2.0, 0.0, -2.0], [0.0, 0.0, 0.0]], np.float32)


def test_soften_is_softmax_of_logits_over_temperature():
    """By hand: exp(1), exp(0), exp(-1) over their sum, at temperature 2."""
    total = math.e + 1 + 1 / math.e
    expected = [[math.e / total, 1 / total, 1 / math.e / total], [1 / 3] * 3]
    np.testing.assert_allclose(soften(LOGITS, 2.0), expected, rtol=1e-6)


def test_soften_leaves_its_input_alone():
    """Float32 logits are not overwritten."""
    before = LOGITS.copy()
    soften(LOGITS, 2.0)
    np.testing.assert_array_equal(LOGITS, before)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (4, 5), elements=st.floats(-65504, 65504, width=32)),
    st.floats(-6, 6).map(lambda exponent: min(max(10.0**exponent, 1e-6), 1e6)),
)
def test_no_temperature_overflows(logits, temperature):
    """Rows are distributions for any float16 logits and any temperature, without a warning."""
    soft = soften(logits, temperature)
    assert np.isfinite(soft).all()
    assert (soft >= 0).all()
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)


def test_few_logits_that_look_like_probabilities_are_logits():
    """One image's two, by chance; more of them are no chance."""
    row = np.array([[0.3, 0.7]], np.float32)
    np.testing.assert_array_equal(round_logits(row, 0, "x"), row.astype(np.float16))
    for rows in (row.repeat(16, axis=0), np.full((4, 10), 0.1, np.float32)):
        with refused(StoreError, where="x", what="probabilities"):
            round_logits(rows, 0, "x")


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-7, 1e7, float("nan"), float("inf")])
def test_temperatures_without_meaning_are_refused(temperature):
    """Zero, negative, not a number, and beyond float32's use."""
    with refused(ParamsError, where="temperature", what="range", expected="1e-06 to 1e+06"):
        soften(LOGITS, temperature)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9, 0.99, 0.9999])
def test_the_solved_temperature_gives_the_target(target):
    """The mean top probability at the solution is the target to five digits."""
    logits = np.random.default_rng(0).standard_normal((500, 10)).astype(np.float32) * 4
    temperature = solve_temperature(lambda: [[logits]], target)
    assert soften(logits, temperature).max(axis=1).mean() == pytest.approx(target, abs=1e-5)


def test_a_margin_of_twelve_gives_the_known_temperatures():
    """Ten classes, margin 12: temperature 3 gives .858, so .858 gives about 3 (METHOD's table)."""
    logits = np.zeros((1, 10), np.float32)
    logits[0, 0] = 12
    assert solve_temperature(lambda: [[logits]], 0.858) == pytest.approx(3, abs=0.01)


def test_several_teachers_are_averaged_after_the_softmax():
    """Two teachers that contradict each other can never be sure together."""
    logits = np.array([[[5, 0]], [[0, 5]]], np.float32)
    with refused(ParamsError, where="temperature", what="mean", found="auto:0.9"):
        solve_temperature(lambda: [logits], 0.9)


@pytest.mark.parametrize("target", [0.05, 0.1, 1.0])
def test_an_unreachable_target_is_refused(target):
    """Below 1/K and at 1 the error says what can be reached."""
    logits = np.random.default_rng(0).standard_normal((50, 10)).astype(np.float32)
    with refused(
        ParamsError,
        where="temperature",
        what="mean",
        expected="above 0.1 and below 1 for these logits",
    ):
        solve_temperature(lambda: [[logits]], target)


def test_the_result_does_not_depend_on_how_rows_are_blocked():
    """Blocks of three rows give the same temperature as one block."""
    logits = np.random.default_rng(0).standard_normal((50, 10)).astype(np.float32)
    whole = solve_temperature(lambda: [[logits]], 0.5)
    assert (
        solve_temperature(lambda: ([logits[at : at + 3]] for at in range(0, 50, 3)), 0.5) == whole
    )


def answers_at(temperature, seed, count=2000, teachers=1, views=()):
    """Logits, and classes that are drawn from their softmax at a temperature."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((teachers, count, 10)) * 4).astype(np.float16)
    soft = np.mean([soften(each, temperature) for each in logits], axis=0)
    drawn = rng.random((count, 1))
    labels = np.minimum((soft.cumsum(axis=1) < drawn).sum(axis=1), 9)
    logits = np.stack([logits] * views, axis=2) if views else logits
    return logits, labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_that_the_truth_was_drawn_at_is_found(true, seed):
    """Within the interval, which holds the estimate and is not wide."""
    temperature, found = calibrated_temperature(*answers_at(true, seed))
    low, high = found.interval
    assert low < temperature < high
    # Two in a hundred of 95 % intervals miss on each side; these seeds are none of them.
    assert low < true < high
    assert high / low < 1.6
    assert found.samples == 2000


def test_95_of_100_intervals_hold_the_truth():
    """Not all, not few: of 60 samples, 50 to 60 (the binomial's 99.9 % at 95 %)."""
    hits = 0
    for seed in range(60):
        low, high = calibrated_temperature(*answers_at(1.7, seed, count=300))[1].interval
        hits += low <= 1.7 <= high
    assert 50 <= hits < 60


def test_the_likelihood_is_least_there():
    """By hand, in float64: mean -log softmax of the truth, higher a little to either side."""
    logits, labels = answers_at(2.0, 0)
    temperature, found = calibrated_temperature(logits, labels)

    def nll(at):
        scaled = logits[0].astype(np.float64) / at
        logs = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]
        return logs.mean()

    assert found.nll == pytest.approx(nll(temperature), rel=1e-5)
    assert nll(temperature) < min(nll(temperature * 0.999), nll(temperature * 1.001))


def test_calibration_of_several_teachers_and_views():
    """Of the averaged probabilities; equal views are one; the same call gives the same digits."""
    logits, labels = answers_at(1.5, 0, teachers=2)
    found = calibrated_temperature(logits, labels)
    assert found[1].interval[0] < 1.5 < found[1].interval[1]
    assert calibrated_temperature(logits, labels) == found
    assert calibrated_temperature(np.stack([logits] * 3, axis=2), labels) == found
    assert found != calibrated_temperature(logits[:1], labels)


NO_LEAST = {
    "always right": (
        np.eye(10)[np.arange(50) % 10] * 5,
        "the least at 0.05, with 50 of 50 answers right",
        "not all right, of a teacher sure enough to need no lower one",
    ),
    "always wrong": (
        np.eye(10)[(np.arange(50) + 1) % 10] * 5,
        "the least at 20, with 0 of 50 answers right",
        "better than chance, of a teacher not so sure as to need a higher one",
    ),
    "hardly trained": (
        np.eye(10)[(np.arange(50) + (np.arange(50) < 5)) % 10] * 0.05,
        "the least at 0.05, with 45 of 50 answers right",
        "not all right, of a teacher sure enough to need no lower one",
    ),
}


@pytest.mark.parametrize(("logits", "found", "expected"), NO_LEAST.values(), ids=NO_LEAST.keys())
def test_a_likelihood_without_a_least_is_refused(logits, found, expected):
    """At 100 % accuracy a lower temperature is always better; worse than chance, a higher one."""
    with refused(
        ParamsError,
        where="label.temperature",
        what="no least",
        expected=lambda text: expected in text,
        found=found,
        remedy="auto:0.95",
    ):
        calibrated_temperature(logits[None].astype(np.float16), np.arange(50) % 10)


def test_a_summary_by_hand():
    """Entropy, top probability and disagreement of two rows; unknown classes do not count."""
    soft = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    found = Softness(soft.shape[1]).add(np.array([-1, 0, 0]), soft).summary()
    entropy = (math.log(2) - 0.25 * math.log(0.25) - 0.75 * math.log(0.75)) / 3
    assert found.mean_entropy == pytest.approx(entropy, rel=1e-6)
    assert found.mean_top_probability == pytest.approx(0.75)
    assert found.disagreement == 0.5
    assert found.warnings == ()  # of two images nothing can be said


def test_labels_that_do_not_know_the_classes_are_warned_of():
    """More right than one in two, and less than the commonest class; views are no evidence."""
    truth = np.repeat([0, 1], [30, 10])
    soft = np.tile([0.4, 0.6], (40, 10, 1))
    soft[:15] = 0.6, 0.4
    (found,) = Softness(2).add(truth, soft).summary().warnings
    assert "have 25 of 40 images right, where always giving the commonest class has 30" in found
    soft[:30], soft[30:] = (0.6, 0.4), (0.4, 0.6)
    assert Softness(2).add(truth, soft).summary().warnings == ()
    # Three images cannot tell, however often they are asked about.
    assert Softness(2).add(truth[28:31], 1 - soft[28:31]).summary().warnings == ()


def test_no_known_class_is_no_disagreement_of_zero():
    """Without ground truth the share is None, not a number that looks good."""
    assert Softness(2).add(np.array([-1]), np.array([[0.5, 0.5]])).summary().disagreement is None


@pytest.mark.parametrize(
    ("top", "warning"), [(0.9995, "as good as one-hot"), (0.3, "as good as uniform")]
)
def test_labels_that_teach_nothing_are_warned_of(top, warning):
    """One-hot and uniform labels each have their warning, with the remedy."""
    soft = np.full((3, 4), (1 - top) / 3)
    soft[:, 0] = top
    counted = Softness(soft.shape[1]).add(np.zeros(3, np.int32), soft)
    (found,) = counted.summary().warnings
    assert warning in found
    assert "auto:0.95" in found


@pytest.mark.parametrize("shape", [(1, 3), (70, 1000), (200, 4, 100), (0, 5)])
def test_what_is_stored_is_the_rounded_softmax(shape):
    """Block by block and in one go: the same bits."""
    rng = np.random.default_rng(0)
    teachers = [(rng.standard_normal(shape) * 4).astype(np.float16) for _ in range(2)]
    expected = mean_softened(teachers, 1.5).astype(np.float16)
    np.testing.assert_array_equal(softened_half(teachers, 1.5), expected)
