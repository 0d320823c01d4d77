"""PGD finds what torchattacks' PGD finds from the same start, in both norms.

The numbers are the output of torchattacks 3.5.1 (PGD and PGDL2, float32, torch 2.15) on this
network and these images; its uniform noise was replaced by NOISE, and PGDL2 began at the image.
There our L-infinity result was the same to the bit, the L2 one within 6e-8.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from ltd_pipe import rng
from ltd_pipe.attacks import Ball, pgd


def numbers(which, *shape):
    """Uniform in [0, 1), the same on every machine."""
    key = rng.stream_key(0, "agreement") + which
    return rng.uniform(key, torch.arange(shape[0]), tuple(shape[1:]))


IMAGES, NOISE = numbers(10, 4, 1, 3, 3), 2 * numbers(11, 4, 1, 3, 3) - 1
LABELS = torch.tensor([0, 1, 2, 0])
# eps, step size, start, and what torchattacks found after ten steps
# fmt: off
LINF = 0.1, 0.03, (IMAGES + 0.1 * NOISE).clamp(0, 1), [
    1.0, 0.767777, 0.0, 0.267177, 0.223843, 1.0, 0.512029, 0.36536, 0.803297,
    0.243903, 0.577909, 0.146194, 0.799417, 0.759394, 0.394079, 0.440492, 0.964409, 0.402733,
    1.0, 0.138251, 0.453959, 0.754824, 0.048901, 0.685353, 0.61004, 0.0, 0.366376,
    0.685578, 0.278684, 0.107192, 0.643932, 0.43865, 1.0, 0.970062, 0.036498, 0.62449,
]
L2 = 0.5, 0.2, IMAGES, [
    1.0, 0.839341, 0.05471, 0.468003, 0.070423, 1.0, 0.462074, 0.224259, 0.837736,
    0.295281, 0.515151, 0.118304, 0.713753, 0.971045, 0.440361, 0.531368, 1.0, 0.246177,
    0.970896, 0.147973, 0.411853, 0.825611, 0.0, 0.447345, 0.51623, 0.055192, 0.447799,
    0.687619, 0.368298, 0.185051, 0.874423, 0.293796, 1.0, 0.877051, 0.0, 0.687171,
]
# fmt: on


def network():
    """Two layers whose weights are numbers of their own."""
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        for which, weight in enumerate(model.parameters()):
            weight.copy_(2 * numbers(which, *weight.shape) - 1)
    return model.eval()


@pytest.mark.parametrize(("norm", "case"), [("linf", LINF), ("l2", L2)], ids=["linf", "l2"])
def test_pgd_agrees_with_torchattacks(norm, case):
    """Every pixel of ten steps' result, to the digits that were written down."""
    eps, step_size, start, expected = case
    loss = partial(functional.cross_entropy, target=LABELS, reduction="none")
    settings = {"ball": Ball(norm, eps), "step_size": step_size, "steps": 10}
    found = pgd(network(), IMAGES, loss, start=start, **settings)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), atol=2e-6, rtol=0)
