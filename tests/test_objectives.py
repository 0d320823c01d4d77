"""Each objective is its equation."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline import objectives

# softmax(LOGITS) = (1/2, 1/4, 1/4), and TARGET is soft.
LOGITS = torch.tensor([[math.log(2.0), 0.0, 0.0]])
TARGET = torch.tensor([[0.6, 0.3, 0.1]])
TRUTH = torch.tensor([[0.0, 1.0, 0.0]])


class Shift(nn.Module):
    """Logits = images, shifted by a constant when in training mode, to see which mode is used."""

    def forward(self, images):
        return images + (torch.tensor([0.0, 1.0, 0.0]) if self.training else 0.0)


def no_attack(_loss):
    raise AssertionError("clean training must not attack")


def to_uniform(_loss):
    return torch.zeros(1, 3)


def test_cross_entropy_by_hand():
    """CE = 0.6 ln 2 + 0.3 ln 4 + 0.1 ln 4 = 1.4 ln 2."""
    value = objectives.cross_entropy(LOGITS, TARGET)
    torch.testing.assert_close(value, torch.tensor([1.4 * math.log(2.0)]))


def test_cross_entropy_of_one_hot_is_torchs():
    """With one-hot targets it is the usual loss."""
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    onehot = functional.one_hot(labels, 4).float()
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(objectives.cross_entropy(logits, onehot), expected)


def test_kl_divergence_by_hand():
    """KL((1/2,1/4,1/4) ‖ uniform) = ln 3 - 1.5 ln 2; summed over classes, not averaged."""
    uniform = torch.full((1, 3), 1 / 3).log()
    value = objectives.kl_divergence(functional.log_softmax(LOGITS, dim=1), uniform)
    torch.testing.assert_close(value, torch.tensor([math.log(3.0) - 1.5 * math.log(2.0)]))


def test_clean_is_the_mean_cross_entropy_and_does_not_attack():
    """The attack is never called."""
    model = Shift().eval()
    images, target = LOGITS.repeat(3, 1), TARGET.repeat(3, 1)
    loss = objectives.clean(model, images, target=target, truth=TRUTH, attack=no_attack)
    assert loss.value.item() == pytest.approx(1.4 * math.log(2.0))
    assert torch.equal(loss.logits, images)


OPPOSED = [("truth", 2 * math.log(2.0)), ("target", 1.4 * math.log(2.0))]


@pytest.mark.parametrize(("attack_label", "opposed"), OPPOSED, ids=[name for name, _ in OPPOSED])
def test_at_trains_on_the_attacked_images_with_the_soft_target(attack_label, opposed):
    """AT = CE(q, S(x')); x' maximises CE(y, S(·)) = ln 4 here, or CE(q, S(·))."""
    seen = []

    def attack(loss_of_logits):
        seen.append(loss_of_logits(LOGITS))
        return LOGITS

    objective, images = objectives.at(attack_label), torch.zeros(1, 3)
    loss = objective(Shift().eval(), images, target=TARGET, truth=TRUTH, attack=attack)
    assert loss.value.item() == pytest.approx(1.4 * math.log(2.0))
    assert seen[0].item() == pytest.approx(opposed)


def test_trades_by_hand():
    """TRADES = CE(q, S(x)) + beta · KL(S(x) ‖ S(x')) with x' uniform here."""
    kl = math.log(3.0) - 1.5 * math.log(2.0)
    objective = objectives.trades(beta=6.0)
    loss = objective(Shift().eval(), LOGITS, target=TARGET, truth=TRUTH, attack=to_uniform)
    assert loss.value.item() == pytest.approx(1.4 * math.log(2.0) + 6.0 * kl)


def test_trades_attacks_the_divergence_in_evaluation_mode():
    """The attack's reference is S(x) of the model in evaluation mode, and carries no gradient."""
    model, seen = Shift().train(), []

    def attack(loss_of_logits):
        seen.append(loss_of_logits(torch.zeros(1, 3)))
        return torch.zeros(1, 3)

    images = LOGITS.clone().requires_grad_()
    objectives.trades(beta=6.0)(model, images, target=TARGET, truth=TRUTH, attack=attack)
    assert seen[0].item() == pytest.approx(math.log(3.0) - 1.5 * math.log(2.0))
    assert not seen[0].requires_grad
    assert model.training


def test_trades_differentiates_both_terms():
    """The gradient reaches the clean logits through the KL term as well (as in the paper)."""
    images = LOGITS.clone().requires_grad_()
    own = functional.softmax(LOGITS, dim=1)  # CE's gradient vanishes at this target
    objective = objectives.trades(beta=1.0)
    loss = objective(Shift().eval(), images, target=own, truth=TRUTH, attack=to_uniform)
    loss.value.backward()
    assert images.grad.abs().max() > 0.05
