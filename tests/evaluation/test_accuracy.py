"""Intervals and calibration errors against values known from elsewhere."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from pipeline.errors import ModelError
from pipeline.evaluation.accuracy import (
    expected_calibration_error,
    require_sound_logits,
    wilson_interval,
)


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


def test_a_calibrated_model_has_no_error():
    """Confidence 1 and always right."""
    assert expected_calibration_error(np.eye(3, dtype=np.float32), np.arange(3)) == 0.0


class Constant(nn.Module):
    """Gives the same logits for all images."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return self.value.expand(len(images), -1)


class Noisy(nn.Module):
    """Gives other logits each time."""

    def forward(self, images):
        return torch.rand(len(images), 3)


UNSOUND = [
    (Constant(torch.zeros(1, 3)).train(), "is in training mode"),
    (nn.Sequential(Constant(torch.zeros(1, 3)).train()).eval().append(nn.Dropout()), "training"),
    (Constant(torch.tensor([[0.0, torch.nan, 0.0]])).eval(), "NaN or infinite"),
    (Constant(torch.tensor([[0.0, torch.inf, 0.0]])).eval(), "NaN or infinite"),
    (Noisy().eval(), "different logits for the same images"),
]


@pytest.mark.parametrize(("model", "message"), UNSOUND, ids=[m for _, m in UNSOUND])
def test_an_unsound_model_is_refused(model, message):
    """A measurement of such a model would mean nothing."""
    with pytest.raises(ModelError, match=message):
        require_sound_logits(model, torch.rand(2, 1, 4, 4))


def test_a_sound_model_passes():
    """Evaluation mode, finite, the same answer twice."""
    require_sound_logits(Constant(torch.zeros(1, 3)).eval(), torch.rand(2, 1, 4, 4))


@pytest.mark.parametrize("n", [1, 40, 48, 60, 617, 10_000])
def test_an_interval_ends_where_the_share_does(n):
    """Of none it begins at 0, of all it ends at 1: not at what rounding leaves."""
    assert wilson_interval(0, n)[0] == 0.0
    assert wilson_interval(n, n)[1] == 1.0
