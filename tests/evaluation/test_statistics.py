"""McNemar's exact test and its interval, held against scipy and counting."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ltd_pipe.evaluation.statistics import mcnemar_p, pair

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
