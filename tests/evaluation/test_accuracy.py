"""Intervals and calibration errors against values known from elsewhere."""

import numpy as np
import pytest
from scipy.stats import binomtest

from ltd_pipe.evaluation.accuracy import expected_calibration_error, reliability
from ltd_pipe.evaluation.statistics import mean_gap, wilson_interval


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
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], dtype=np.float32)
    labels = np.array([0, 1, 0, 0])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.4)


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
    assert expected_calibration_error(np.eye(3, dtype=np.float32), np.arange(3)) == 0.0


@pytest.mark.parametrize("n", [1, 40, 48, 60, 617, 10_000])
def test_an_interval_ends_where_the_share_does(n):
    """Of none it begins at 0, of all it ends at 1: not at what rounding leaves."""
    assert wilson_interval(0, n)[0] == 0.0
    assert wilson_interval(n, n)[1] == 1.0
