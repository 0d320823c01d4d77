"""Each objective is its equation."""

import math
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional

from ltd_pipe import objectives
from ltd_pipe.attacks import Adversary, Ball, cross_entropy, kl_divergence
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.params import TrainParams

# softmax(LOGITS) = (1/2, 1/4, 1/4), and TARGET is soft.
LOGITS = torch.tensor([[math.log(2.0), 0.0, 0.0]])
TARGET = torch.tensor([[0.6, 0.3, 0.1]])
TRUTH = torch.tensor([[0.0, 1.0, 0.0]])


class Shift(nn.Module):
    """Logits = images, shifted by a constant when in training mode, to see which mode is used."""

    def forward(self, images):
        return images + (torch.tensor([0.0, 1.0, 0.0]) if self.training else 0.0)


UNIFORM = torch.zeros(1, 3)


def loss_of(objective, images, adversarial=UNIFORM, target=TARGET, truth=TRUTH):
    """The loss of a model that answers with its images."""
    batch = objectives.TrainBatch(images, target, truth)
    return objective.loss(Shift().eval(), batch, adversarial)


def confident(seed=0):
    """A model whose answers are sure, and change with its images."""
    torch.manual_seed(seed)
    layers = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    network = nn.Sequential(nn.Flatten(), *layers)
    with torch.no_grad():
        torch._foreach_mul_([*network.parameters()], 4)
    names = tuple("abcdefghij")
    model = Classifier(network, architecture="x", class_names=names, shape=(1, 8, 8))
    return model.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize(
    "objective",
    [objectives.Trades(6.0), objectives.Adaad(confident(1)), objectives.Mart(5.0)],
    ids=lambda objective: type(objective).__name__,
)
def test_an_attack_is_as_strong_in_half_precision(objective):
    """Its loss is not in bfloat16, where a divergence of near answers is noise."""
    model, images = confident(), torch.rand(256, 1, 8, 8)
    truth = functional.one_hot(model(images).argmax(dim=1), 10).float()
    batch = objectives.TrainBatch(images, truth, truth)
    adversary, right = Adversary(Ball("linf", 0.03), 0.01, 10), []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            attacked = objective.attack(
                adversary, model, batch, index=torch.arange(len(images)), key=7
            )
            divergence = objectives.Trades(6.0).attack_loss(model, batch)(model(attacked))
        assert divergence.dtype == torch.float32
        assert (divergence > -1e-5).all()
        right.append((model(attacked) * truth).sum(dim=1) >= model(attacked).amax(dim=1))
    before, after = (float(each.float().mean()) for each in right)
    assert 0 < before < 0.95
    assert after < before + 0.04


def test_each_objective_can_be_chosen_and_is_explained():
    """By its name in the parameters, in the package's equations and on the page."""
    names = set(get_args(TrainParams.model_fields["objective"].annotation))
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    assert names == set(objectives.OBJECTIVES)
    assert names <= set(re.findall(r"^ {4}(\w+) ", objectives.__doc__, re.MULTILINE))
    assert names <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_cross_entropy_by_hand():
    """CE = 0.6 ln 2 + 0.3 ln 4 + 0.1 ln 4 = 1.4 ln 2."""
    value = cross_entropy(LOGITS, TARGET)
    torch.testing.assert_close(value, torch.tensor([1.4 * math.log(2.0)]))


def test_cross_entropy_of_one_hot_is_torchs():
    """With one-hot targets it is the usual loss."""
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    onehot = functional.one_hot(labels, 4).float()
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, onehot), expected)


def test_kl_divergence_by_hand():
    """KL((1/2,1/4,1/4) ‖ uniform) = ln 3 - 1.5 ln 2; summed over classes, not averaged."""
    uniform = torch.full((1, 3), 1 / 3).log()
    value = kl_divergence(functional.log_softmax(LOGITS, dim=1), uniform)
    torch.testing.assert_close(value, torch.tensor([math.log(3.0) - 1.5 * math.log(2.0)]))


def test_clean_is_the_mean_cross_entropy():
    """Of the images as they are."""
    images, target = LOGITS.repeat(3, 1), TARGET.repeat(3, 1)
    loss = loss_of(objectives.Clean(), images, images, target=target)
    assert loss.value.item() == pytest.approx(1.4 * math.log(2.0))
    assert torch.equal(loss.logits, images)


ATTACK_LABELS = [
    ("truth", 2 * math.log(2.0)),
    ("target", 1.4 * math.log(2.0)),
    ("likeliest", math.log(2.0)),
]


@pytest.mark.parametrize(
    ("attack_label", "expected"), ATTACK_LABELS, ids=[name for name, _ in ATTACK_LABELS]
)
def test_madry_trains_on_the_attacked_images_with_the_soft_target(attack_label, expected):
    """AT = CE(q, S(x')); x' maximises CE(y, S(·)) = ln 4 here, CE(q, S(·)), or that of q's top."""
    objective = objectives.Madry(attack_label)
    assert loss_of(objective, UNIFORM, LOGITS).value.item() == pytest.approx(1.4 * math.log(2.0))
    attack_loss = objective.attack_loss(Shift(), objectives.TrainBatch(UNIFORM, TARGET, TRUTH))
    assert attack_loss(LOGITS).item() == pytest.approx(expected)


def test_trades_by_hand():
    """TRADES = CE(q, S(x)) + beta · KL(S(x) ‖ S(x')) with x' uniform here."""
    kl = math.log(3.0) - 1.5 * math.log(2.0)
    loss = loss_of(objectives.Trades(beta=6.0), LOGITS)
    assert loss.value.item() == pytest.approx(1.4 * math.log(2.0) + 6.0 * kl)


def test_trades_attacks_the_divergence_in_evaluation_mode():
    """The attack's reference is S(x) of the model in evaluation mode, and carries no gradient."""
    model, images = Shift().train(), LOGITS.clone().requires_grad_()
    batch = objectives.TrainBatch(images, TARGET, TRUTH)
    attack_loss = objectives.Trades(beta=6.0).attack_loss(model, batch)
    assert attack_loss(UNIFORM).item() == pytest.approx(math.log(3.0) - 1.5 * math.log(2.0))
    assert not attack_loss(UNIFORM).requires_grad
    assert model.training


def test_trades_differentiates_both_terms():
    """The gradient reaches the clean logits through the KL term as well (as in the paper)."""
    images = LOGITS.clone().requires_grad_()
    own = functional.softmax(LOGITS, dim=1)  # CE's gradient vanishes at this target
    loss_of(objectives.Trades(beta=1.0), images, target=own).value.backward()
    assert images.grad.abs().max() > 0.05


def test_mart_by_hand():
    """S(x) = (1/2, 1/4, 1/4), S(x') uniform, y = 1: each term as in the paper's equation 8."""
    cross_entropy = math.log(3.0)  # of any target
    margin = -math.log(1.0001 - 1 / 3)
    consistency = (math.log(3.0) - 1.5 * math.log(2.0)) * (1 - 1 / 4)
    loss = loss_of(objectives.Mart(beta=5.0), LOGITS)
    assert loss.value.item() == pytest.approx(cross_entropy + margin + 5.0 * consistency)


# The losses of `mart_loss` in the authors' repository (YisenWang/MART, mart.py) less its attack,
# for one-hot targets; computed once from its equations in float64.
def published_mart(logits, attacked, labels, beta):
    nat, adv = logits.double().softmax(1), attacked.double().softmax(1)
    order = adv.argsort(dim=1)[:, -2:]
    other = torch.where(order[:, -1] == labels, order[:, -2], order[:, -1])
    wrong = (1.0001 - adv + 1e-12).log().gather(1, other[:, None]).squeeze(1)
    boosted = functional.cross_entropy(attacked.double(), labels) - wrong.mean()
    kl = (nat * (nat.log() - (adv + 1e-12).log())).sum(dim=1)
    true = nat.gather(1, labels[:, None]).squeeze(1)
    return boosted + beta * (kl * (1.0000001 - true)).mean()


def test_mart_of_one_hot_targets_is_the_published_one():
    """Term by term as the authors' code computes it."""
    generator = torch.Generator().manual_seed(0)
    logits, attacked = (torch.randn(64, 10, generator=generator) * 3 for _ in range(2))
    labels = torch.randint(10, (64,), generator=generator)
    onehot = functional.one_hot(labels, 10).float()
    loss = loss_of(objectives.Mart(beta=5.0), logits, attacked, target=onehot, truth=onehot)
    expected = published_mart(logits, attacked, labels, 5.0).item()
    assert loss.value.item() == pytest.approx(expected, rel=1e-5)


def test_mart_attacks_the_truth():
    """Its attack is that of standard adversarial training."""
    batch = objectives.TrainBatch(UNIFORM, TARGET, TRUTH)
    attack_loss = objectives.Mart(beta=5.0).attack_loss(Shift(), batch)
    assert attack_loss(LOGITS).item() == pytest.approx(2 * math.log(2.0))


def test_mart_stays_finite_when_a_wrong_class_has_all_the_mass():
    """log(1 - p) at p = 1."""
    images = (LOGITS * 0 + torch.tensor([[200.0, 0.0, 0.0]])).requires_grad_()
    value = loss_of(objectives.Mart(beta=5.0), images, images).value
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(images.grad).all()
