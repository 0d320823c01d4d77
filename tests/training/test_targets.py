"""Targets are distributions, and each mix is what its formula says."""

import pytest
import torch

from ltd_pipe.training import targets

LABELS = torch.tensor([0, 2])
# The first row agrees with its label, the second contradicts it: max q = 0.7, q_y = 0.1.
SOFT = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]])


def test_onehot():
    """All mass on the true class."""
    assert targets.onehot(LABELS, 3).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_smoothed_by_hand():
    """With s = 0.3 and K = 3 the true class has 0.7 + 0.1 and the others 0.1."""
    torch.testing.assert_close(
        targets.smoothed(LABELS, 3, 0.3), torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    )


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(0.0, [0.0, 0.0, 1.0]), (0.5, [0.35, 0.1, 0.55]), (1.0, [0.7, 0.2, 0.1])],
)
def test_mixed_by_hand(weight, expected):
    """Weight · soft + (1 - weight) · one-hot."""
    mix = targets.mixed(SOFT, LABELS, weight, rectify=False)
    torch.testing.assert_close(mix[1], torch.tensor(expected))


def test_rectified_weight_falls_where_the_teacher_contradicts():
    """λ - (max q - q_y): 0.9 - 0 where it agrees, 0.9 - 0.6 where not."""
    mix = targets.mixed(SOFT, LABELS, 0.9, rectify=True)
    torch.testing.assert_close(mix[:, 1], torch.tensor([0.09, 0.3 * 0.2]))


def test_rectified_weight_is_clipped():
    """It never goes below 0."""
    mix = targets.mixed(SOFT, LABELS, 0.2, rectify=True)
    assert mix[1].tolist() == [0.0, 0.0, 1.0]


def test_rectified_mix_by_hand():
    """The contradicting row keeps 0.3 of the teacher."""
    mix = targets.mixed(SOFT, LABELS, 0.9, rectify=True)
    torch.testing.assert_close(mix[1], torch.tensor([0.21, 0.06, 0.73]))


@pytest.mark.parametrize("rectify", [True, False])
def test_every_mix_is_a_distribution(rectify):
    """Rows are non-negative and sum to one, at every weight."""
    soft = torch.rand(50, 7).softmax(dim=1)
    labels = torch.arange(50) % 7
    for weight in (0.0, 0.3, 1.0):
        mix = targets.mixed(soft, labels, weight, rectify=rectify)
        assert (mix >= 0).all()
        torch.testing.assert_close(mix.sum(dim=1), torch.ones(50))
