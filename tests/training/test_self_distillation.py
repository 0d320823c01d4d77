"""ADR's targets are those of its authors' code."""

import pytest
import torch
from torch import nn

from ltd_pipe.objectives import StepInfo, TrainBatch
from ltd_pipe.training.targets import SelfDistillation, annealed

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [1.5, 1.0, 0.0], [-2.0, 1.0, 3.0]])
TRUTH = torch.eye(3)[[0, 1, 0]]
# `ADR(3, 10, 4, 2.0, 2.5, 0.7, 0.95)` of yuyuwu5/ADR at 515da0e (src/adr.py), run on these
# logits and labels at three of its forty steps: temperature, weight, and rectified labels.
PUBLISHED = {
    0: (
        2.5,
        0.7,
        [
            [0.6998805, 0.1796779, 0.1204417],
            [0.2633261, 0.5921575, 0.1445164],
            [0.8588277, 0.0437670, 0.0974053],
        ],
    ),
    13: (
        2.3806246411789873,
        0.7596876794105063,
        [
            [0.6832104, 0.1911816, 0.1256080],
            [0.2897171, 0.5559953, 0.1542876],
            [0.8203658, 0.0541616, 0.1254726],
        ],
    ),
    39: (
        2.000770666566718,
        0.949614666716641,
        [
            [0.6471468, 0.2196208, 0.1332324],
            [0.3781671, 0.4431478, 0.1786851],
            [0.7012386, 0.0803719, 0.2183895],
        ],
    ),
}
ENDS = {"temperatures": (2.5, 2.0), "weights": (0.7, 0.95)}


@pytest.mark.parametrize("step", PUBLISHED)
def test_targets_are_the_published_ones(step):
    """The second image's truth is its second class, the third one's its least likely."""
    temperature, weight, expected = PUBLISHED[step]
    info = StepInfo(step=step, steps=40)
    assert annealed(ENDS["temperatures"], info) == pytest.approx(temperature, abs=1e-12)
    assert annealed(ENDS["weights"], info) == pytest.approx(weight, abs=1e-12)
    batch = TrainBatch(LOGITS, TRUTH, TRUTH, info)
    found = SelfDistillation(**ENDS)(batch, nn.Identity())
    torch.testing.assert_close(found.target, torch.tensor(expected), atol=1e-6, rtol=0)
    assert torch.equal(found.truth, TRUTH)


def test_an_answer_far_from_the_truth_is_not_taken_at_all():
    """λ - (max p - p_y) below zero: the label is one-hot."""
    adr = SelfDistillation((1.0, 1.0), (0.5, 0.5))
    batch = TrainBatch(torch.tensor([[-9.0, 9.0]]), torch.eye(2)[:1], torch.eye(2)[:1])
    found = adr(batch, nn.Identity())
    torch.testing.assert_close(found.target, torch.eye(2)[:1])


def test_targets_carry_no_gradient():
    """The average is not trained by its own answers."""
    logits = LOGITS.clone().requires_grad_()
    found = SelfDistillation(**ENDS)(TrainBatch(logits, TRUTH, TRUTH), nn.Identity())
    assert not found.target.requires_grad
