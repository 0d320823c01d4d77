"""PGD stays in its ball, finds what can be found, and leaves the model alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline import rng
from pipeline.attacks import evaluation_mode, normal_start, pgd, uniform_start
from pipeline.errors import ModelError

IMAGES = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1, 0, 1])
INDEX = torch.arange(6)


class Linear(nn.Module):
    """Logits (0, w·x): the loss's gradient is known in closed form."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, 16))

    def forward(self, images):
        score = images.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(score), score], dim=1)


def loss(logits):
    return functional.cross_entropy(logits, LABELS, reduction="none")


def attack(model, **changes):
    settings = {"start": IMAGES, "eps": 0.1, "step_size": 0.03, "steps": 10} | changes
    return pgd(model, IMAGES, loss, **settings)


def test_the_optimum_of_a_linear_model_is_found():
    """For a linear model the worst point is x ± eps · sign(w), clipped to [0, 1]."""
    model = Linear().eval()
    direction = torch.where(LABELS == 0, 1.0, -1.0)[:, None] * model.weight.sign()
    worst = (IMAGES.flatten(1) + 0.1 * direction).clamp(0, 1).view_as(IMAGES)
    torch.testing.assert_close(attack(model), worst)


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.5, 1.0])
def test_the_result_is_in_the_ball_and_in_range(eps):
    """|x' - x| <= eps and 0 <= x' <= 1, also for steps larger than the ball."""
    attacked = attack(Linear().eval(), eps=eps, step_size=2 * eps)
    assert (attacked - IMAGES).abs().max() <= eps + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_a_model_in_training_mode_is_refused():
    """Batch statistics would make one image's attack depend on the others."""
    with pytest.raises(ModelError, match="Linear: is attacked in training mode"):
        attack(Linear().train())


def test_weights_get_no_gradients():
    """Only the images are differentiated."""
    model = Linear().eval()
    attack(model)
    assert model.weight.grad is None


def test_it_works_inside_no_grad():
    """An attack in an evaluation that forbids gradients still finds the optimum."""
    model = Linear().eval()
    with torch.no_grad():
        inside = attack(model)
    assert torch.equal(inside, attack(model))
    assert not inside.requires_grad


def test_an_image_is_attacked_the_same_alone_and_in_a_batch():
    """Nothing leaks between the images of a batch."""
    model = Linear().eval()
    alone = pgd(
        model,
        IMAGES[2:3],
        lambda logits: functional.cross_entropy(logits, LABELS[2:3], reduction="none"),
        start=IMAGES[2:3],
        eps=0.1,
        step_size=0.03,
        steps=10,
    )
    torch.testing.assert_close(alone[0], attack(model)[2])


def test_uniform_starts_fill_the_ball():
    """Starts are spread over the whole ball and stay within [0, 1]."""
    grey = torch.full((500, 1, 4, 4), 0.5)
    start = uniform_start(grey, torch.arange(500), 0.2, rng.stream_key(0, "s"))
    offset = start - grey
    assert offset.abs().max() <= 0.2
    assert abs(offset.mean()) < 0.01
    assert offset.abs().max() > 0.199


def test_normal_starts_are_close():
    """TRADES starts 0.001 · N(0, 1) away."""
    grey = torch.full((500, 1, 4, 4), 0.5)
    offset = normal_start(grey, torch.arange(500), rng.stream_key(0, "s")) - grey
    assert abs(offset.std() - 0.001) < 5e-5


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_puts_the_model_back(training):
    """The model is in the mode it was in, also after an error."""
    model = Linear().train(training)
    with pytest.raises(RuntimeError), evaluation_mode(model):
        assert not model.training
        raise RuntimeError
    assert model.training is training
