"""Intervals, calibration errors and McNemar's test, held against scipy and counting."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.statistics import (
    mcnemar_p,
    mean_gap,
    pair,
    permutation,
    reliability,
    require_order,
    wilson_interval,
)

# --- Intervals and calibration.


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (719, 1000), (1, 1)])
def test_wilson_interval_is_scipys(hits, n):
    """The bounds agree with scipy's `proportion_ci`."""
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_of_nothing_says_nothing():
    """Without trials every proportion is possible."""
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_calibration_error_by_hand():
    """Two bins: confidence 0.9 with accuracy 1/2, and 0.6 with accuracy 1: 0.5·0.4 + 0.5·0.4."""
    confidence = np.array([0.9, 0.9, 0.6, 0.6], dtype=np.float32)
    correct = np.array([True, False, True, True])
    assert mean_gap(reliability(confidence, correct)) == pytest.approx(0.4)


def test_calibration_needs_confidence_and_correctness_alone():
    """Three bins of fifteen: 0.3 (right), 0.5 twice (one right), 0.95 (wrong)."""
    confidence = np.array([0.3, 0.5, 0.5, 0.95], dtype=np.float32)
    correct = np.array([True, True, False, False])
    by_hand = (abs(0.3 - 1) + 2 * abs(0.5 - 0.5) + abs(0.95 - 0)) / 4
    assert mean_gap(reliability(confidence, correct)) == pytest.approx(by_hand, abs=1e-7)


def test_reliability_is_accuracy_by_confidence():
    """Bins of 0.3, of 0.5 twice and of 0.95; the twelve that hold nothing are left out."""
    confidence = np.array([0.95, 0.5, 0.3, 0.5], dtype=np.float32)
    found = reliability(confidence, np.array([False, True, True, False]))
    assert [one.number for one in found] == [4, 7, 14]
    assert [one.count for one in found] == [1, 2, 1]
    assert [one.accuracy for one in found] == [1.0, 0.5, 0.0]
    assert [one.confidence for one in found] == pytest.approx([0.3, 0.5, 0.95])


@pytest.mark.parametrize(("confidence", "number"), [(0.0, 0), (1 / 15, 0), (0.0667, 1), (1.0, 14)])
def test_a_bin_holds_its_upper_edge(confidence, number):
    """Bin k is (k/15, (k+1)/15]; what nobody was asked for, 0, is in the first."""
    (found,) = reliability(np.array([confidence], dtype=np.float32), np.array([True]))
    assert found.number == number


def test_a_calibrated_model_has_no_error():
    """Confidence 1 and always right."""
    assert mean_gap(reliability(np.ones(3, dtype=np.float32), np.ones(3, dtype=bool))) == 0.0


@pytest.mark.parametrize("n", [1, 40, 48, 60, 617, 10_000])
def test_an_interval_ends_where_the_share_does(n):
    """Of none it begins at 0, of all it ends at 1: not at what rounding leaves."""
    assert wilson_interval(0, n)[0] == 0.0
    assert wilson_interval(n, n)[1] == 1.0


# --- Two models on the same images.


counts = st.integers(0, 400)


@given(counts, counts)
def test_p_is_that_of_scipys_binomial_test(gained, lost):
    """For a fair coin and two sides; 1 where there is no coin."""
    expected = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("gained", "lost"), list(itertools.product(range(4), range(4))))
def test_p_is_counted_by_hand(gained, lost):
    """Of all ways in which the coins can fall, those that are at least as uneven."""
    coins, uneven = gained + lost, abs(gained - lost)
    falls = itertools.product((1, -1), repeat=coins)
    assert mcnemar_p(gained, lost) == sum(abs(sum(f)) >= uneven for f in falls) / 2**coins


def test_p_of_many_images_is_exact():
    """Where a sum of floats would give 0 or infinity."""
    assert 0 < mcnemar_p(900, 100) < 1e-150
    assert mcnemar_p(26_000, 25_000) == pytest.approx(binomtest(26_000, 51_000).pvalue, rel=1e-6)


def test_a_pair_is_counted_image_by_image():
    """Gained, lost, and the difference of the accuracies."""
    this = np.array([1, 1, 1, 0, 0, 1], dtype=bool)
    other = np.array([1, 0, 0, 1, 0, 0], dtype=bool)
    found = pair(this, other)
    assert (found.n, found.gained, found.lost) == (6, 3, 1)
    assert found.difference == pytest.approx(this.mean() - other.mean())
    assert found.p == mcnemar_p(3, 1)


def test_the_interval_is_that_of_agresti_and_min():
    """Half an image more in each cell: 4 cells 20, 12, 5, 63 by hand."""
    this = np.repeat([True, True, False, False], [20, 12, 5, 63])
    other = np.repeat([True, False, True, False], [20, 12, 5, 63])
    found, d = pair(this, other), 7 / 102
    spread = 1.959963984540054 * math.sqrt((12.5 + 5.5 - 7**2 / 102) / 102**2)
    assert found.low == pytest.approx(d - spread)
    assert found.high == pytest.approx(d + spread)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """2,000 draws of 200 pairs: 95 %, to within what chance gives or takes."""
    rng = np.random.default_rng(0)
    cells = rng.choice(4, size=(2000, 200), p=[0.6, 0.12, 0.08, 0.2])
    found = [pair(draw < 2, (draw == 0) | (draw == 2)) for draw in cells]
    covered = np.mean([each.low <= 0.04 <= each.high for each in found])
    assert 0.935 < covered < 0.97


def test_equal_models_are_not_told_apart():
    """No image differs: the interval is around 0, and p is 1."""
    answers = np.array([True, False, True])
    found = pair(answers, answers)
    assert (found.gained, found.lost, found.p) == (0, 0, 1.0)
    assert found.low < 0 < found.high


# --- Whether answers are right but for the order of the classes.


def test_the_natural_order_is_recognised():
    """The usual cause is told with its cure."""
    names = tuple(sorted(map(str, range(12))))
    truth = np.repeat(np.arange(12), 10)
    said = np.array([int(names[true]) for true in truth])
    with pytest.raises(ModelError) as caught:
        require_order(truth, said, names, "net.pt")
    assert caught.value.remedy.endswith("pass --class-order natural.")


def _noisy(k, per, share, shift):
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(k), per)
    right = generator.random(len(truth)) < share
    return truth, np.where(right, (truth + shift) % k, generator.integers(0, k, len(truth)))


@pytest.mark.parametrize(
    ("answers", "moved"),
    [
        (_noisy(2, 20, 1, 1), 2),
        (_noisy(10, 26, 0.8, 3), 10),
        (_noisy(1000, 4, 0.9, 1), 900),
        (_noisy(1000, 20, 0.4, 1), 990),
        (_noisy(10, 26, 0.8, 0), 0),
        (_noisy(10, 26, 0, 0), 0),
        (_noisy(1000, 4, 0, 0), 0),
        ((np.repeat([0, 1], 20), np.ones(40, int)), 0),
        ((np.repeat([0, 1, 2], 20), np.repeat([1, 1, 2], 20)), 0),
        ((np.repeat([0, 1, 2], 20), np.repeat([1, 0, 2], 20)), 2),
        ((np.repeat([0, 1], 20), np.tile([0, 0, 1, 1, 1], 8)), 0),
        ((np.array([0, 1]), np.array([1, 0])), 0),
        ((np.full(40, -1), np.repeat([0, 1], 20)), 0),
    ],
    ids=[
        "inverted", "ten", "few each", "weak", "right", "chance", "chance, many", "constant",
        "two alike", "a swap", "confused", "too few", "unknown",
    ],
)  # fmt: skip
def test_only_an_order_is_an_order(answers, moved):
    """Ignorance and confusion are none, however few images tell."""
    found = permutation(*answers)
    assert len(found) >= moved if moved else not found
