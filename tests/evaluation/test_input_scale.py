"""A model that gets its pixels on another scale than it wants is noticed."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.evaluation.input_scale import contradicted_accuracy, wrong_scale
from pipeline.evaluation.selection import TestImages
from pipeline.models.classifier import Classifier

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


@pytest.fixture(scope="module")
def grey_images():
    """Evenly grey pictures of 60 levels, whose class is one of four ranges of brightness."""
    level = torch.arange(60) * 4 + 8
    pixels = level[:, None, None, None].expand(60, 3, 4, 4).to(torch.uint8).contiguous()
    labels, index = level // 64, torch.arange(60)
    return TestImages(pixels, labels, index, np.arange(60, dtype=np.uint64), torch.device("cpu"))


class Brightness(nn.Module):
    """Right about images on one scale: value = (pixel in [0, 1] - mean) / std · factor."""

    def __init__(self, mean=0.0, std=1.0, factor=1.0):
        super().__init__()
        self.mean, self.std, self.factor = mean, std, factor

    def forward(self, images):
        light = images.mean(dim=(1, 2, 3)) / self.factor * self.std + self.mean
        centres = torch.tensor([0.125, 0.375, 0.625, 0.875])
        return -((light[:, None] - centres) ** 2)


def wrapped(network, **normalisation):
    names, shape = tuple("abcd"), (3, 4, 4)
    model = Classifier(network, architecture="x", class_names=names, shape=shape, **normalisation)
    return model.eval()


CIFAR = {"mean": float(np.mean(MEAN)), "std": float(np.mean(STD))}


def test_a_model_with_its_own_normalisation_is_left_alone(grey_images):
    """Raw, or normalised once: nothing is said."""
    assert wrong_scale(wrapped(Brightness()), grey_images) is None
    once = wrapped(Brightness(**CIFAR), mean=MEAN, std=STD)
    assert wrong_scale(once, grey_images) is None


WRONG = [
    (Brightness(factor=255), {}, r"multiplied by 255: the network expects pixels in 0…255"),
    (Brightness(**CIFAR), {}, r"normalised \(CIFAR-10's mean and std\): pass the .* --mean"),
    (Brightness(), {"mean": MEAN, "std": STD}, "our normalisation is undone: .* its own"),
]


@pytest.mark.parametrize(
    ("network", "normalisation", "message"), WRONG, ids=["0 to 255", "never", "twice"]
)
def test_a_wrong_scale_is_said_with_what_to_do(grey_images, network, normalisation, message):
    """How many are right as they are, and how many on the other scale."""
    found = wrong_scale(wrapped(network, **normalisation), grey_images)
    assert found is not None
    assert re.search(message, found), found
    assert "of 60 images" in found


def test_a_model_that_knows_nothing_is_not_blamed_on_the_scale(grey_images):
    """No other scale makes it better."""
    assert wrong_scale(wrapped(Brightness(factor=-1)), grey_images) is None


@pytest.mark.parametrize(
    ("hits", "said", "doubted"),
    [(970, 0.97, False), (930, 0.97, False), (900, 0.97, True), (300, 0.95, True), (60, 0.0, True)],
)
def test_a_checkpoint_is_held_to_what_it_says(hits, said, doubted):
    """A difference of more than five points that chance cannot explain."""
    found = contradicted_accuracy(hits, 1000, said, "validation images")
    assert (found is not None) is doubted
    if found:
        assert f"the checkpoint says {said:.1%} (validation images)" in found
