"""The attack of training: one step or many, where it begins, and how it grows in warm-up."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from ltd_pipe import rng
from ltd_pipe.attacks import Adversary, Ball
from ltd_pipe.objectives import AttackLossOverride, Madry, TrainBatch

EPS = 0.1
KEY = rng.stream_key(0, "adversary")
INDEX = torch.arange(32)
IMAGES = torch.rand(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = INDEX % 3
LOSS = partial(functional.cross_entropy, target=LABELS, reduction="none")
N_FGSM = Adversary(Ball("linf", EPS), EPS, 1, method="n-fgsm")
FGSM_RS = Adversary(Ball("linf", EPS), 1.25 * EPS, 1, start="uniform")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(96, 3)
    return nn.Sequential(*layers).train()


def attack(adversary, model, **changes):
    how = {"start": "uniform", "index": INDEX, "key": KEY} | changes
    return adversary.attack(model, IMAGES, LOSS, **how)


def signs(model, points):
    """Of the input gradient, in evaluation mode."""
    points = points.clone().requires_grad_()
    model.eval()
    (gradient,) = torch.autograd.grad(LOSS(model(points)).sum(), points)
    model.train()
    return gradient.sign()


def noise(factor):
    return factor * EPS * (2 * rng.uniform(KEY, INDEX, (1, 6, 6)) - 1)


def test_n_fgsm_is_its_authors(model):
    """clamp(η), one step of eps, clamp: nothing brings the point back into the ball."""
    start = (IMAGES + noise(2)).clamp(0, 1)
    expected = (start + EPS * signs(model, start)).clamp(0, 1)
    assert torch.equal(attack(N_FGSM, model), expected)


def test_n_fgsm_leaves_the_ball_and_stays_within_three_eps(model):
    """What holds is k · eps + step, and [0, 1]."""
    attacked = attack(N_FGSM, model)
    distance = (attacked - IMAGES).abs()
    assert (distance > 2 * EPS).any()
    assert distance.max() <= 3 * EPS + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_n_fgsm_without_noise_is_fgsm(model):
    """Noise 0: one signed step from the image (Goodfellow et al. 2015)."""
    expected = (IMAGES + EPS * signs(model, IMAGES)).clamp(0, 1)
    assert torch.equal(attack(replace(N_FGSM, noise=0.0), model), expected)


def test_fgsm_rs_is_its_authors(model):
    """Uniform in the ball, one step of 1.25 eps, back into the ball and into [0, 1]."""
    start = (IMAGES + noise(1)).clamp(0, 1)
    moved = start + 1.25 * EPS * signs(model, start)
    expected = IMAGES + (moved - IMAGES).clamp(-EPS, EPS)
    torch.testing.assert_close(attack(FGSM_RS, model), expected.clamp(0, 1))


def test_the_parameters_start_goes_before_the_objectives(model):
    """An adversary with a start of its own asks nobody; one without asks the objective."""
    pgd = Adversary(Ball("linf", EPS), 0.03, 2)
    own = attack(replace(pgd, start="none"), model, start="uniform")
    assert torch.equal(own, attack(pgd, model, start="none"))
    assert not torch.equal(own, attack(pgd, model, start="uniform"))


@pytest.mark.parametrize("adversary", [N_FGSM, FGSM_RS], ids=["n-fgsm", "fgsm-rs"])
def test_the_model_is_as_it_was(model, adversary):
    """In training mode again, its statistics and gradients untouched."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attack(adversary, model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    ("epochs", "share"), [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5), (2.0, 1.0), (9.0, 1.0)]
)
def test_eps_and_the_step_grow_linearly(epochs, share):
    """From 0 at the first step to all of it at the end of the warm-up, and then no more."""
    whole = Adversary(Ball("l2", 0.8), 0.2, 4, warmup_epochs=2.0)
    now = whole.at(epochs)
    assert now.ball == Ball("l2", pytest.approx(0.8 * share))
    assert now.step_size == pytest.approx(0.2 * share)
    assert replace(now, ball=whole.ball, step_size=whole.step_size) == whole


def test_without_warm_up_the_first_step_is_whole():
    """No epochs of warm-up divide nothing by zero."""
    assert N_FGSM.at(0.0) is N_FGSM


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0.01, 2), (0.99, 2), (1.01, 4), (1.99, 4), (2.01, 5)]
)
def test_an_epoch_has_its_number_of_steps(epochs, steps):
    """From its first batch to its last, in warm-up, too."""
    whole = Adversary(Ball("l2", 0.8), 0.2, 5, steps_by_epoch=(2, 4, 5))
    assert whole.at(epochs) == replace(whole, steps=steps)
    warming = replace(whole, warmup_epochs=2.0)
    assert warming.at(epochs).steps == steps
    assert warming.at(epochs).step_size == pytest.approx(0.2 * min(epochs / 2, 1))


@pytest.mark.parametrize("start", ["uniform", "normal", "none"])
def test_a_small_ball_holds_any_start(model, start):
    """Early in warm-up 0.001 · N(0, 1) is outside: the first step brings it back."""
    adversary = Adversary(Ball("linf", EPS), 0.03, 2, start=start, warmup_epochs=5.0)
    attacked = attack(adversary.at(0.001), model)
    assert (attacked - IMAGES).abs().max() <= EPS * 0.001 / 5 + 1e-7


EVERY_KIND = {
    "linf": Adversary(Ball("linf", EPS), 0.03, 2),
    "l2": Adversary(Ball("l2", 1.0), 0.3, 2),
    "from a normal start": Adversary(Ball("l2", 1.0), 0.3, 2, start="normal"),
    "from the image": Adversary(Ball("linf", EPS), 0.03, 2, start="none"),
    "in warm-up": Adversary(Ball("l2", 1.0), 0.3, 2, warmup_epochs=5.0),
    "n-fgsm": N_FGSM,
}


@pytest.mark.parametrize("adversary", EVERY_KIND.values(), ids=EVERY_KIND)
@pytest.mark.parametrize("loss", ["ce", "kl", "margin"])
def test_no_value_is_read_back_from_the_device(adversary, loss):
    """On the meta device there are none: an item(), a branch or a copy would raise."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 3)).to("meta")
    images, index = IMAGES.to("meta"), INDEX.to("meta")
    batch = TrainBatch(images, *[torch.zeros(32, 3, device="meta")] * 2)
    objective = AttackLossOverride(Madry(), loss)
    attacked = objective.attack(adversary.at(1.0), model, batch, index=index, key=KEY)
    assert attacked.shape == images.shape
