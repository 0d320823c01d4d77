"""Both balls hold what they are said to hold, and steps in them go the steepest way up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltd_pipe import rng
from ltd_pipe.attacks import Ball

NORMS = ("linf", "l2")
KEY = rng.stream_key(0, "ball")
IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def random_like(images, seed):
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def lengths(offset, norm):
    order = torch.inf if norm == "linf" else 2
    return torch.linalg.vector_norm(offset.flatten(1).double(), ord=order, dim=1)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=25, deadline=None)
@given(eps=st.floats(0, 6), scale=st.floats(0, 20), seed=st.integers(0, 99))
def test_projections_lie_in_the_ball_and_in_range(norm, eps, scale, seed):
    """Whatever the point: within eps to rounding, each pixel in [0, 1], and the image is kept."""
    images, before = IMAGES.clone(), IMAGES.clone()
    points = images + scale * random_like(images, seed)
    assert Ball(norm, eps).project_(points, images) is points
    assert lengths(points - images, norm).max() <= eps * (1 + 1e-6) + 1e-6
    assert points.min() >= 0
    assert points.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_inside_stays_where_it_is(norm):
    """Projection changes nothing there, but for rounding."""
    ball = Ball(norm, 0.5)
    inside = ball.uniform(IMAGES, torch.arange(6), KEY)
    torch.testing.assert_close(ball.project_(inside.clone(), IMAGES), inside)


def test_the_l2_projection_is_the_nearest_point():
    """Away from the box's sides: along the line to the centre, each image by itself."""
    centre = torch.full((2, 1, 1, 2), 0.5)
    points = centre + torch.tensor([[0.3, 0.4], [0.03, 0.04]]).view(2, 1, 1, 2)
    Ball("l2", 0.25).project_(points, centre)
    expected = torch.tensor([[0.65, 0.7], [0.53, 0.54]]).view(2, 1, 1, 2)
    torch.testing.assert_close(points, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_has_its_length_and_no_direction_climbs_faster(norm):
    """<g, step> is step_size times the dual norm of g, the largest there is (Hölder)."""
    gradient, points = random_like(IMAGES, 1), IMAGES.clone()
    Ball(norm, 1.0).step_(points, gradient, 0.1)
    step = points - IMAGES
    dual = gradient.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1)
    torch.testing.assert_close(lengths(step, norm).float(), torch.full((6,), 0.1))
    torch.testing.assert_close((gradient * step).flatten(1).sum(dim=1), 0.1 * dual)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1.0, 1e25])
def test_the_scale_of_a_gradient_does_not_matter(norm, scale):
    """A saturated model's tiny gradients point as well as large ones, in both norms."""
    gradient = random_like(IMAGES, 2)
    one, other = IMAGES.clone(), IMAGES.clone()
    Ball(norm, 1.0).step_(one, gradient, 0.1)
    Ball(norm, 1.0).step_(other, gradient * scale, 0.1)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_moves_nothing(norm):
    """No division by zero: the image stays, its neighbours move."""
    gradient = random_like(IMAGES, 3)
    gradient[2] = 0
    points = Ball(norm, 1.0).step_(IMAGES.clone(), gradient, 0.1)
    assert torch.equal(points[2], IMAGES[2])
    assert torch.isfinite(points).all()
    assert not torch.equal(points[1], IMAGES[1])


@pytest.mark.parametrize("norm", NORMS)
def test_an_expanded_gradient_is_left_as_it_is(norm):
    """The gradient of a mean is one number, expanded: nothing may be written into it."""
    number = torch.full((1, 1, 1, 1), 2.0)
    points = Ball(norm, 1.0).step_(IMAGES.clone(), number.expand_as(IMAGES), 0.1)
    assert (points > IMAGES).all()
    assert number.item() == 2.0


def test_linf_starts_are_uniform_in_the_ball():
    """Spread over the whole ball, within [0, 1]."""
    grey = torch.full((500, 1, 4, 4), 0.5)
    offset = Ball("linf", 0.2).uniform(grey, torch.arange(500), KEY) - grey
    assert 0.199 < offset.abs().max() <= 0.2
    assert abs(offset.mean()) < 0.01


def test_l2_starts_are_uniform_in_the_ball():
    """The share within radius r is r^d, so its d-th power is uniform; directions have no mean."""
    dimensions, n = 6, 4000
    grey = torch.full((n, 1, 2, 3), 0.5)
    offset = Ball("l2", 0.25).uniform(grey, torch.arange(n), KEY) - grey
    share = (lengths(offset, "l2") / 0.25).pow(dimensions).sort().values
    uniform = (torch.arange(n) + 0.5) / n
    # Kolmogorov and Smirnov's statistic: above 1.95 / √n once in a thousand samples.
    assert (share - uniform).abs().max() < 1.95 / math.sqrt(n)
    assert offset.mean(dim=0).abs().max() < 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_starts_belong_to_samples_and_not_to_batches(norm):
    """Alone, or in a batch of any order, a sample begins at the same point."""
    ball, index = Ball(norm, 0.5), torch.tensor([5, 0, 9, 3, 1, 2])
    together = ball.uniform(IMAGES, index, KEY)
    alone = ball.uniform(IMAGES[2:3], index[2:3], KEY)
    torch.testing.assert_close(together[2:3], alone)
    assert not torch.allclose(together, ball.uniform(IMAGES, index, KEY + 1))


@pytest.mark.parametrize("norm", NORMS)
def test_no_images_have_no_starts(norm):
    """As of an evaluation without examples."""
    nobody = torch.empty(0, dtype=torch.int64)
    assert Ball(norm, 0.1).uniform(torch.empty(0, 3, 4, 4), nobody, key=1).shape == (0, 3, 4, 4)
