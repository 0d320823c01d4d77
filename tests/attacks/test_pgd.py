"""PGD stays in its ball, finds what can be found, and leaves the model alone."""

import pytest
import torch
from refusals import refused
from torch import nn
from torch.nn import functional

from ltd_pipe import rng
from ltd_pipe.attacks import Ball, initial_point, pgd
from ltd_pipe.device import evaluation_mode
from ltd_pipe.errors import ModelError

IMAGES = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1, 0, 1])
INDEX = torch.arange(6)
LINF = Ball("linf", 0.1)


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
    settings = {"start": IMAGES, "ball": LINF, "step_size": 0.03, "steps": 10} | changes
    return pgd(model, IMAGES, loss, **settings)


def test_the_optimum_of_a_linear_model_is_found():
    """For a linear model the worst point is x ± eps · sign(w), clipped to [0, 1]."""
    model = Linear().eval()
    direction = torch.where(LABELS == 0, 1.0, -1.0)[:, None] * model.weight.sign()
    worst = (IMAGES.flatten(1) + 0.1 * direction).clamp(0, 1).view_as(IMAGES)
    torch.testing.assert_close(attack(model), worst)


def l2_optimum():
    """Of a linear model away from the box's sides: x ± eps · w / ‖w‖."""
    direction = torch.where(LABELS == 0, 1.0, -1.0)[:, None] * Linear().weight.detach()
    centre = torch.full_like(IMAGES, 0.5)
    return centre, centre + 0.2 * functional.normalize(direction, dim=1).view_as(IMAGES)


def test_the_l2_optimum_of_a_linear_model_is_found():
    """The ball's farthest point along the gradient, not a corner."""
    centre, worst = l2_optimum()
    settings = {"start": centre, "ball": Ball("l2", 0.2), "step_size": 0.05, "steps": 6}
    torch.testing.assert_close(pgd(Linear().eval(), centre, loss, **settings), worst)


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.5, 1.0])
def test_the_result_is_in_the_ball_and_in_range(eps):
    """|x' - x| <= eps and 0 <= x' <= 1, also for steps larger than the ball."""
    attacked = attack(Linear().eval(), ball=Ball("linf", eps), step_size=2 * eps)
    assert (attacked - IMAGES).abs().max() <= eps + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_a_model_in_training_mode_is_refused():
    """Batch statistics would make one image's attack depend on the others."""
    with refused(ModelError, where="Linear", what="training"):
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
        ball=LINF,
        step_size=0.03,
        steps=10,
    )
    torch.testing.assert_close(alone[0], attack(model)[2])


def test_the_image_itself_is_a_start():
    """`none` draws nothing, and the attack leaves the image it began at alone."""
    before = IMAGES.clone()
    start = initial_point("none", LINF, IMAGES, INDEX, 0)
    attacked = attack(Linear().eval(), start=start)
    assert torch.equal(start, before)
    assert torch.equal(IMAGES, before)
    assert not torch.equal(attacked, before)


def test_normal_starts_are_close():
    """TRADES starts 0.001 · N(0, 1) away."""
    grey = torch.full((500, 1, 4, 4), 0.5)
    offset = initial_point("normal", LINF, grey, torch.arange(500), rng.stream_key(0, "s")) - grey
    assert abs(offset.std() - 0.001) < 5e-5


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_puts_the_model_back(training):
    """The model is in the mode it was in, also after an error."""
    model = Linear().train(training)
    with pytest.raises(RuntimeError), evaluation_mode(model):
        assert not model.training
        raise RuntimeError
    assert model.training is training


def test_a_part_that_is_frozen_stays_frozen():
    """A layer in evaluation mode within a model in training mode is so afterwards, too."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Sequential(nn.BatchNorm2d(1))).train()
    model[0].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, False, True, True]


def reference(model, images, target, start, eps, step_size, steps):
    """The L-infinity attack as a textbook writes it, with both bounds made beforehand."""
    low, high = (images - eps).clamp(min=0.0), (images + eps).clamp(max=1.0)
    points = start
    for _ in range(steps):
        points = points.detach().requires_grad_()
        value = -(target * model(points).log_softmax(dim=1)).sum()
        (gradient,) = torch.autograd.grad(value, points)
        points = torch.clamp(points.detach() + step_size * gradient.sign(), low, high)
    return points


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_linf_attack_is_the_textbooks_to_the_bit(layout):
    """In place, of the input alone: and not one bit differs from the plain way."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)
    )
    model = model.eval().to(memory_format=layout)
    images = torch.rand(16, 3, 8, 8).contiguous(memory_format=layout)
    target = torch.softmax(3 * torch.randn(16, 5), dim=1)
    ball, settings = Ball("linf", 8 / 255), {"step_size": 2 / 255, "steps": 10}
    start = ball.uniform(images, torch.arange(16), rng.stream_key(0, "s"))
    expected = reference(model, images, target, start, ball.eps, **settings)
    found = pgd(
        model,
        images,
        lambda logits: -(target * logits.log_softmax(dim=1)).sum(dim=1),
        start=start,
        ball=ball,
        **settings,
    )
    assert torch.equal(found, expected)
    assert found.stride() == images.stride()
