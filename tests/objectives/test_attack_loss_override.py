"""Another attack loss replaces what the attack maximises, and nothing of what is trained."""

import pytest
import torch
from torch import nn

from ltd_pipe import objectives
from ltd_pipe.attacks import Adversary, Ball
from ltd_pipe.objectives import AttackLossOverride, TrainBatch

IMAGES = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
TRUTH = torch.eye(3)[[0, 1, 2, 0, 1]]
TARGET = 0.7 * TRUTH + 0.1
BATCH = TrainBatch(IMAGES, TARGET, TRUTH)
# Worst to best for the truth 0: its own logit, and the largest other one.
LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0], [2.0, -1.0, 1.5]])
OF_ZERO = TrainBatch(IMAGES[:3], *[torch.eye(3)[[0, 0, 0]]] * 2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5)).train()


def attack_loss(model, name, batch=BATCH):
    return AttackLossOverride(objectives.Mart(5.0), name).attack_loss(model, batch)


def test_margin_is_the_largest_wrong_logit_less_the_true_one(model):
    """Also where the true class leads; ties are 0."""
    losses = attack_loss(model, "margin", OF_ZERO)(LOGITS)
    torch.testing.assert_close(losses, torch.tensor([2.0, 0.0, -0.5]))


def test_ce_is_of_the_truth_and_not_the_target(model):
    """-log softmax of the true class, whatever the soft label."""
    expected = -(TRUTH * model.eval()(IMAGES).log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(attack_loss(model, "ce")(model(IMAGES)), expected)


def test_kl_is_from_the_clean_answer_in_evaluation_mode(model):
    """Zero at the clean answer itself, without dropout, and positive elsewhere."""
    losses = attack_loss(model, "kl")
    clean = model.eval()(IMAGES).detach()
    torch.testing.assert_close(losses(clean), torch.zeros(5), atol=1e-6, rtol=0)
    assert (losses(clean + torch.randn(5, 3)) > 0).all()


def test_what_is_trained_stays(model):
    """Loss and start are the inner objective's."""
    inner = objectives.Mart(5.0)
    outer = AttackLossOverride(inner, "margin")
    model.eval()
    args = model, BATCH, IMAGES + 0.01
    assert torch.equal(outer.loss(*args).value, inner.loss(*args).value)
    assert outer.start == "normal"


def test_the_attack_follows_the_loss(model):
    """The margin's attack raises the margin more than the divergence's does."""
    adversary = Adversary(Ball("linf", 0.3), 0.1, 5)
    how = {"index": torch.arange(5), "key": 7}
    margins = {}
    for loss in ("margin", "kl"):
        objective = AttackLossOverride(objectives.Trades(6.0), loss)
        attacked = objective.attack(adversary, model, BATCH, **how)
        margins[loss] = attack_loss(model, "margin")(model.eval()(attacked)).sum()
        model.train()
    assert margins["margin"] > margins["kl"]
