"""Views made by docs/soft-label-store.md alone, in Python's integers, are the views we make."""

import hashlib
import math

import numpy as np
import pytest
import torch

from pipeline.images.augment import augment
from pipeline.images.augmentation import Augmentation

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def draw(seed, stream, view, sample, number):
    text = f"{seed}/{stream}/{view}".encode("ascii")
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    own = mix(sample * GOLDEN + key & MASK)
    return mix(own + (number + 1) * GOLDEN & MASK)


def cropped(image, padding, *place):
    top, left = ((draw(*place, number) >> 1) % (2 * padding + 1) for number in (0, 1))
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    height, width = image.shape[1:]
    return padded[:, top : top + height, left : left + width]


def box(height, width, least, most, *place):
    u = [(draw(*place, number) >> 40) / 2**24 for number in range(22)]
    low, high = math.log(3 / 4), math.log(4 / 3)
    for t in range(10):
        area = height * width * (least + (most - least) * u[2 * t])
        aspect = math.exp(low + (high - low) * u[2 * t + 1])
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 1 <= tall <= height and 1 <= wide <= width:
            top, left = int(u[20] * (height - tall + 1)), int(u[21] * (width - wide + 1))
            return top, left, tall, wide
    tall = max(1, min(height, round(width * 4 / 3)))
    wide = max(1, min(width, round(height * 4 / 3)))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def stretched(lines, start, length):
    size, out = len(lines), np.empty_like(lines)
    for o in range(size):
        centre = (2 * o + 1) * length - size
        lower = centre // (2 * size)
        weight = ((centre - 2 * size * lower) * 2**15 + size) // (2 * size)
        one, two = (
            lines[start + min(max(line, 0), length - 1)].astype(int) for line in (lower, lower + 1)
        )
        out[o] = (one * (2**15 - weight) + two * weight + 2**14) >> 15
    return out


def view_of(image, text, seed, view, sample):
    for part in text.split(","):
        name, _, numbers = part.partition(":")
        place = (seed, name, view, sample)
        if name == "crop":
            image = cropped(image, int(numbers), *place)
        elif name == "resized-crop":
            least, most = map(float, numbers.split("-"))
            top, left, tall, wide = box(*image.shape[1:], least, most, *place)
            image = stretched(image.transpose(2, 0, 1), left, wide).transpose(1, 2, 0)
            image = stretched(image.transpose(1, 0, 2), top, tall).transpose(1, 0, 2)
        elif name == "flip" and (draw(*place, 0) >> 1) % 2:
            image = image[:, :, ::-1]
    return image


@pytest.mark.parametrize("shape", [(12, 9), (8, 8), (3, 30)], ids=["12x9", "8x8", "3x30"])
@pytest.mark.parametrize(
    "text",
    ["flip", "crop:2,flip", "crop:1", "resized-crop:0.08-1,flip", "resized-crop:0.7-1"],
)
def test_the_page_is_enough(text, shape):
    """Every pixel of every view, from the text, the seed, the view and the sample's number."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 3, *shape), generator=generator, dtype=torch.uint8)
    index = torch.tensor([0, 1, 2, 500, 1_281_166, 2**40])
    for seed, view in ((0, 0), (7, 3), (2**31 - 1, 65_535)):
        ours = augment(images, index, Augmentation.parse(text), seed=seed, epoch=view)
        for image, sample, made in zip(images.numpy(), index.tolist(), ours.numpy(), strict=True):
            np.testing.assert_array_equal(view_of(image, text, seed, view, sample), made)
