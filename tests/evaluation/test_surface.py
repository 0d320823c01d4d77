"""The loss surface: what it measures, and that its picture is the same twice."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from ltd_pipe.attacks import Ball
from ltd_pipe.evaluation.audit import loss_surface
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.report.surface import draw_surface


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_gradient_leads_up_on_a_smooth_surface(bench, right, norm):
    """In the middle is the clean loss; along the gradient it rises, and faster than by chance."""
    surface = loss_surface(bench(), Ball(norm, 0.05), right)
    assert surface.n == 16
    assert (surface.rises, surface.beats_random) == (1.0, 1.0)
    grid, middle = np.array(surface.loss), 10
    assert surface.offsets[middle] == 0
    assert (np.diff(grid[:, middle]) > 0).all()
    assert surface.offsets[-1] == pytest.approx(0.1)


def test_the_middle_is_the_clean_loss(bench, images, right, model):
    """The mean cross entropy of the images themselves."""
    surface = loss_surface(bench(), Ball("linf", 0.05), right)
    rows = right.nonzero().flatten()[:16]
    pixels, labels, _ = images.take(rows)
    with torch.no_grad():
        clean = nn.functional.cross_entropy(model(pixels), labels)
    assert surface.loss[10][10] == pytest.approx(float(clean))


class Flat(nn.Module):
    """The right answers, without a gradient."""

    def forward(self, images):
        return 4.0 * torch.round(images * 1e-9 + images.detach() * 255).sum(dim=(1, 3))


def test_without_a_gradient_nothing_rises(bench, right):
    """The zero direction leads nowhere, and JSON takes what comes out."""
    names = tuple("abcde")
    model = Classifier(Flat(), architecture="x", class_names=names, shape=(1, 5, 5)).eval()
    surface = loss_surface(bench(network=model), Ball("linf", 1e-9), right)
    assert surface.rises < 1
    json.dumps(surface.dump(), allow_nan=False)


def test_the_picture_says_what_it_shows_and_is_the_same_twice(bench, right):
    """Both axes, n, norm and radius; no time, no random ids."""
    surface, ball = loss_surface(bench(), Ball("l2", 0.5), right), Ball("l2", 0.5)
    text = draw_surface(surface, ball)
    assert text == draw_surface(surface, ball)
    for words in ("along the gradient", "random direction", "Loss around 16 images (L2 0.5)"):
        assert words in text
    assert "<dc:date>" not in text
