"""Views made by docs/soft-label-store.md alone, in Python's integers, are the views we make."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from ltd_pipe.images.augment import augment
from ltd_pipe.images.augmentation import Augmentation

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


def cut(image, side, *place):
    top, left = ((draw(*place, n) >> 1) % image.shape[n + 1] - side // 2 for n in (0, 1))
    image = image.copy()
    image[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 128
    return image


DRAWN = [
    "identity",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
]
WIDE = {"shear": 0.99, "rotate": 135, "factor": 0.99, "bits": 6}
NARROW = {"shear": 0.3, "rotate": 30, "factor": 0.9, "bits": 4}


def amount_of(name, m, last, width, height, family):
    share, reach = m / last, WIDE if family == "trivialaugment" else NARROW
    if name in ("translate-x", "translate-y"):
        size = width if name == "translate-x" else height
        return 32 * m // last if reach is WIDE else 150 * size * m // (331 * last)
    if name in ("shear-x", "shear-y", "rotate"):
        return reach[name[:5] if name[0] == "s" else name] * share
    if name == "posterize":
        return 8 - round(reach["bits"] * share)
    return 255 - 255 * m // last if name == "solarize" else reach["factor"] * share


def moved(image, name, amount):
    height, width = image.shape[1:]
    one, out = 2**16, np.full_like(image, 128)
    (a, b, c), (d, e, f), (ox, oy) = (one, 0, 0), (0, one, 0), (0, 0)
    if name == "rotate":
        angle = amount * (math.pi / 180)
        a = e = round(one * math.cos(angle))
        d, (ox, oy) = round(one * math.sin(angle)), (width, height)
        b = -d
    elif name[:5] == "shear":
        b, d = (round(one * amount), 0) if name[-1] == "x" else (0, round(one * amount))
    else:
        c, f = (-2 * one * amount, 0) if name[-1] == "x" else (0, -2 * one * amount)
    for y in range(height):
        for x in range(width):
            u, v = 2 * x + 1 - ox, 2 * y + 1 - oy
            sx = (a * u + b * v + c + one * ox) >> 17
            sy = (d * u + e * v + f + one * oy) >> 17
            if 0 <= sx < width and 0 <= sy < height:
                out[:, y, x] = image[:, sy, sx]
    return out


def blended(image, other, amount):
    k = 2**15 + round(2**15 * amount)
    mixed = (image.astype(int) * k + other * (2**15 - k)) >> 15
    return mixed.clip(0, 255).astype(np.uint8)


def luminance(image):
    red, green, blue = image.astype(int)
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def smoothed(image):
    out = image.astype(int)
    wide = out.copy()
    for y in range(1, image.shape[1] - 1):
        for x in range(1, image.shape[2] - 1):
            around = wide[:, y - 1 : y + 2, x - 1 : x + 2].sum(axis=(1, 2))
            out[:, y, x] = (around + 4 * wide[:, y, x] + 6) // 13
    return out


def equalized(channel):
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (channel.size - counts[channel.max()]) // 255
    if step == 0:
        return channel
    before = np.cumsum(counts) - counts
    return np.minimum((before + step // 2) // step, 255).astype(np.uint8)[channel]


def stretched_levels(channel):
    low, high = int(channel.min()), int(channel.max())
    if low == high:
        return channel
    return ((channel.astype(int) - low) * 255 // (high - low)).astype(np.uint8)


def operated(image, name, amount):
    if name in ("brightness", "color", "contrast", "sharpness"):
        grey = luminance(image)
        mean = (2 * grey.sum() + grey.size) // (2 * grey.size)
        other = {"brightness": 0, "color": grey, "contrast": mean, "sharpness": smoothed(image)}
        return blended(image, other[name], amount)
    if name in DRAWN[1:6]:
        return moved(image, name, amount)
    if name == "posterize":
        return image & np.uint8(256 - 2 ** (8 - amount))
    if name == "solarize":
        return np.where(image >= amount, 255 - image, image)
    by_channel = {
        "invert": lambda channel: 255 - channel,
        "equalize": equalized,
        "autocontrast": stretched_levels,
        "identity": lambda channel: channel,
    }
    return np.stack([by_channel[name](channel) for channel in image])


def signed(name, amount, *place_and_number):
    turns = (draw(*place_and_number) >> 1) % 2 and name in DRAWN[1:10]
    return -amount if turns else amount


def by_policy(image, family, numbers, *place):
    height, width = image.shape[1:]

    def below(n, number):
        return (draw(*place, number) >> 1) % n

    if family == "autoaugment":
        pair = AutoAugment(AutoAugmentPolicy(numbers)).policies[below(25, 0)]
        names = {drawn.replace("-", ""): drawn for drawn in [*DRAWN, "invert"]}
        plan = [
            (names[name.lower()], m or 0, 9, 2 + 2 * j)
            for j, (name, probability, m) in enumerate(pair)
            if below(10, 1 + 2 * j) < round(10 * probability)
        ]
    elif family == "trivialaugment":
        plan = [(DRAWN[below(14, 0)], below(31, 1), 30, 2)]
    else:
        count, m = map(int, numbers.split("-"))
        plan = [(DRAWN[below(14, 2 * j)], m, 30, 2 * j + 1) for j in range(count)]
    for name, m, last, number in plan:
        amount = amount_of(name, m, last, width, height, family)
        image = operated(image, name, signed(name, amount, *place, number))
    return image


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
        elif name == "cutout":
            image = cut(image, int(numbers), *place)
        elif name.endswith("augment"):
            image = by_policy(image, name, numbers, *place)
        elif name == "flip" and (draw(*place, 0) >> 1) % 2:
            image = image[:, :, ::-1]
    return image


@pytest.mark.parametrize("shape", [(12, 9), (8, 8), (3, 30)], ids=["12x9", "8x8", "3x30"])
@pytest.mark.parametrize(
    "text",
    [
        *("flip", "crop:2,flip", "crop:1", "resized-crop:0.08-1,flip", "resized-crop:0.7-1"),
        *("cutout:5", "crop:1,flip,cutout:4", "trivialaugment", "flip,randaugment:3-20"),
        *("autoaugment:cifar10", "autoaugment:imagenet,cutout:2", "autoaugment:svhn"),
    ],
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
