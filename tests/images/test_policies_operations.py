"""The AutoAugment family's operations: torchvision's pixels, for a batch of many amounts."""

import math

import pytest
import torch
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from ltd_pipe.images.policies import GREY, OPERATIONS

GREYS = [float(GREY)] * 3
NEAREST = {"interpolation": InterpolationMode.NEAREST, "fill": GREYS}


def affine(image, shear=(0.0, 0.0), translate=(0, 0), **options):
    return functional.affine(image, 0.0, [*translate], 1.0, [*shear], **NEAREST, **options)


def degrees(tangent):
    return math.degrees(math.atan(tangent))


# What torchvision's policies call for the same: of each, how many pixels in 1,000 may differ and
# by how much (rounding on the way to grey, a coordinate on the edge of two pixels).
THEIRS = {
    "identity": (lambda image, _: image, 0, 0),
    "shear-x": (lambda image, x: affine(image, (degrees(x), 0.0), center=[0, 0]), 2, 255),
    "shear-y": (lambda image, x: affine(image, (0.0, degrees(x)), center=[0, 0]), 2, 255),
    "translate-x": (lambda image, x: affine(image, translate=(int(x), 0)), 0, 0),
    "translate-y": (lambda image, x: affine(image, translate=(0, int(x))), 0, 0),
    "rotate": (lambda image, x: functional.rotate(image, x, **NEAREST), 2, 255),
    "brightness": (lambda image, x: functional.adjust_brightness(image, 1 + x), 0, 0),
    "color": (lambda image, x: functional.adjust_saturation(image, 1 + x), 500, 1),
    "contrast": (lambda image, x: functional.adjust_contrast(image, 1 + x), 500, 1),
    "sharpness": (lambda image, x: functional.adjust_sharpness(image, 1 + x), 20, 1),
    "posterize": (lambda image, x: functional.posterize(image, int(x)), 0, 0),
    "solarize": (functional.solarize, 0, 0),
    "autocontrast": (lambda image, _: functional.autocontrast(image), 1, 1),
    "equalize": (lambda image, _: functional.equalize(image), 0, 0),
    "invert": (lambda image, _: functional.invert(image), 0, 0),
}
AMOUNTS = {
    "translate-x": [5.0, -17.0, 0.0, 60.0],
    "translate-y": [5.0, -17.0, 0.0, 60.0],
    "rotate": [30.0, -72.0, 0.0, 135.0],
    "posterize": [2.0, 4.0, 7.0, 8.0],
    "solarize": [128.0, 77.0, 0.0, 255.0],
}


@pytest.fixture(scope="module")
def photos():
    """Two photographs, noise, and one level everywhere, of 61×80."""
    pictures = [torch.tensor(image[60:182:2, 100:260:2]) for image in load_sample_images().images]
    pictures.append(
        torch.randint(256, (61, 80, 3), generator=torch.Generator().manual_seed(0)).byte()
    )
    pictures.append(torch.full((61, 80, 3), 77, dtype=torch.uint8))
    return torch.stack(pictures).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_pixels_are_torchvisions(photos, name):
    """Each image with an amount of its own, as torchvision does one after the other."""
    amounts = torch.tensor(AMOUNTS.get(name, [0.45, -0.81, 0.0, 0.3]), dtype=torch.float64)
    theirs, per_mille, levels = THEIRS[name]
    expected = torch.stack([theirs(*pair) for pair in zip(photos, amounts.tolist(), strict=True)])
    off = (OPERATIONS[name](photos, amounts).int() - expected.int()).abs()
    assert off.max() <= levels
    assert (off > 0).float().mean() <= per_mille / 1000


@pytest.mark.parametrize("name", OPERATIONS)
def test_grey_images_too(name):
    """One channel: the grey of a grey image is itself."""
    image = (torch.arange(24) * 37 % 250).to(torch.uint8).view(1, 1, 4, 6)
    coloured = image.expand(1, 3, 4, 6).contiguous()
    amount = torch.tensor(AMOUNTS.get(name, [0.5])[:1], dtype=torch.float64)
    grey = OPERATIONS[name](image, amount)
    assert torch.equal(OPERATIONS[name](coloured, amount)[:, :1], grey)
    # 24 pixels are too few for a step of 255 levels.
    still = name in {"identity", "color", "equalize"}
    assert torch.equal(grey, image) == still


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3)], ids=["1x1", "1x7", "2x3"])
def test_the_smallest_images(name, shape):
    """Nothing to sharpen, stretch or turn is no reason to fail."""
    images = torch.full((2, 3, *shape), 9, dtype=torch.uint8)
    amount = torch.tensor(AMOUNTS.get(name, [0.5])[:1] * 2, dtype=torch.float64)
    assert OPERATIONS[name](images, amount).shape == images.shape


IMAGE = [[10, 20, 30, 40], [50, 60, 70, 80], [90, 100, 110, 120], [130, 140, 150, 160]]
G = GREY
BY_HAND = {
    "translate-x": (1.0, [[G, *row[:3]] for row in IMAGE]),
    "translate-y": (-1.0, [*IMAGE[1:], [G] * 4]),
    # The rows' middles lie 1/2, 3/2, 5/2 and 7/2 from the edge: by 1/2 of that, rounded.
    "shear-x": (0.5, [IMAGE[0], [*IMAGE[1][1:], G], [*IMAGE[2][1:], G], [*IMAGE[3][2:], G, G]]),
    "rotate": (90.0, [[row[3 - i] for row in IMAGE] for i in range(4)]),
    "brightness": (-0.5, [[x // 2 for x in row] for row in IMAGE]),
    # The mean is 85: half as far from it.
    "contrast": (-0.5, [[(x + 85) // 2 for x in row] for row in IMAGE]),
    "posterize": (3.0, [[x // 32 * 32 for x in row] for row in IMAGE]),
    "solarize": (100.0, [[255 - x if x >= 100 else x for x in row] for row in IMAGE]),
    "autocontrast": (0.0, [[(x - 10) * 255 // 150 for x in row] for row in IMAGE]),
    "invert": (0.0, [[255 - x for x in row] for row in IMAGE]),
    # 16 levels, 15 without the brightest: a step of none changes nothing.
    "equalize": (0.0, IMAGE),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    """4×4 pixels, worked out on paper."""
    amount, expected = BY_HAND[name]
    image = torch.tensor(IMAGE, dtype=torch.uint8)[None, None]
    found = OPERATIONS[name](image, torch.tensor([amount], dtype=torch.float64))
    assert found[0, 0].tolist() == expected


def test_sharpness_by_hand():
    """One bright pixel: twice as far from its neighbourhood's weighted mean, edges as they are."""
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[0, 0, 1, 1] = 130
    # In the middle 130 · 5 / 13 = 50, beside it 130 / 13 = 10: 2 · 130 - 50 and -10, cut off.
    found = OPERATIONS["sharpness"](image, torch.tensor([1.0], dtype=torch.float64))
    assert found[0, 0].tolist() == [[0] * 4, [0, 210, 0, 0], [0] * 4, [0] * 4]
    blurred = OPERATIONS["sharpness"](image, torch.tensor([-1.0], dtype=torch.float64))
    assert blurred[0, 0].tolist() == [[0] * 4, [0, 50, 10, 0], [0, 10, 10, 0], [0] * 4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", OPERATIONS)
def test_devices_cannot_be_told(photos, name):
    """Whole numbers have no last bit to lose."""
    amounts = torch.tensor(AMOUNTS.get(name, [0.45, -0.81, 0.0, 0.3]), dtype=torch.float64)
    found = OPERATIONS[name](photos.cuda(), amounts).cpu()
    assert torch.equal(found, OPERATIONS[name](photos, amounts))
