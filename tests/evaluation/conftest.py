"""A model whose robustness is known exactly, and images on both sides of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ltd_pipe.evaluation.bench import Bench, Journal, TestImages, silent
from ltd_pipe.models.classifier import Classifier

# AutoAttack's Square needs five rows of pixels for its L2 squares.
SHAPE = (1, 5, 5)


class Sums(nn.Module):
    """Logit k is the sum of the k-th row of pixels: attacks have a known optimum."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(4.0))

    def forward(self, images):
        return self.weight * images.sum(dim=(1, 3))


def sums_model():
    """In evaluation mode, of four classes."""
    names = tuple("abcde")
    return Classifier(Sums(), architecture="sums", class_names=names, shape=SHAPE).eval()


@pytest.fixture(scope="session")
def new_model():
    """The function that makes the model of sums."""
    return sums_model


@pytest.fixture
def model():
    """The model of sums, of this test alone."""
    return sums_model()


@pytest.fixture(scope="session")
def images():
    """Images of margins between 0 and 1.5, some of which an attack with eps 0.05 overcomes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 5
    pixels = torch.full((24, *SHAPE), 100, dtype=torch.uint8)
    for i, label in enumerate(labels):
        pixels[i, 0, label] += 4 * i
    pixels += torch.randint(0, 3, pixels.shape, generator=generator).to(torch.uint8)
    hashes = np.arange(24, dtype=np.uint64) + 1000
    return TestImages(pixels, labels, torch.arange(24), hashes, torch.device("cpu"))


@pytest.fixture
def bench(images):
    """A function that makes a bench of the model and the images, with or without a journal."""

    def make(folder=None, tick=silent, network=None):
        return Bench(network or sums_model(), images, 3, 10, Journal(folder), tick)

    return make


@pytest.fixture
def right(bench, images):
    """Which images are right when clean."""
    return bench().answers("clean", torch.arange(24), title="clean").correct(images.labels)


@pytest.fixture(scope="session")
def exactly_robust(images):
    """A function that says which images truly stand: whose true row leads by enough."""

    def stands(norm, eps):
        rows = images.images.float().div(255).sum(dim=(1, 3))
        true = rows.gather(1, images.labels[:, None])
        others = rows.scatter(1, images.labels[:, None], -9.0).amax(dim=1, keepdim=True)
        # Five pixels go down and five go up: by eps each, or along a vector of length eps.
        reach = 10 * eps if norm == "linf" else 10**0.5 * eps
        return (true - others).squeeze(1) > reach

    return stands
