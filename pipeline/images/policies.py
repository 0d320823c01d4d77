"""Which operations an image gets: TrivialAugment, RandAugment and AutoAugment, by counter.

Operations and ranges are those of torchvision's transforms of the same names; what is drawn is a
function of (seed, policy, epoch, sample index), by whole numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from ltd_pipe import rng
from ltd_pipe.images.folder import LUMA

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


# --- The fifteen distortions of the AutoAugment family, in integers: the same bits on any device.
#
# They are those of Pillow and torchvision (Cubuk et al. 2019, "AutoAugment", table 6), for a batch
# in which each image has an amount of its own. Pixels that come from outside are grey, as in the
# authors' code. Amounts are multiples of 2^-15 or 2^-16, so no device can round them otherwise.


GREY = 128
# Of blending, and of coordinates.
_BLEND_BITS, _PLACE_BITS = 15, 16
_WHITE = 255


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    """Luminance of RGB images: shape (B, 1, H, W), dtype int32; grey ones are it already."""
    wide = images.to(torch.int32)
    if images.shape[1] != len(LUMA):
        return wide[:, :1]
    red, green, blue = (wide[:, i : i + 1] * weight for i, weight in enumerate(LUMA))
    return (red + green + blue + (1 << 15)) >> 16


def _blended(images: torch.Tensor, other: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    # other + (1 + amount) · (image - other), cut off like Pillow's and torchvision's.
    one = 1 << _BLEND_BITS
    weight = one + _rounded(amount * one, images.device)[:, None, None, None]
    mixed = images.to(torch.int32) * weight + other * (one - weight)
    return (mixed >> _BLEND_BITS).clamp_(0, _WHITE).to(torch.uint8)


def _rounded(amount: torch.Tensor, device: torch.device) -> torch.Tensor:
    return amount.round().to(torch.int32).to(device)


def _brightness(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _blended(images, torch.zeros((), dtype=torch.int32, device=images.device), amount)


def _color(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _blended(images, grey_levels(images), amount)


def _contrast(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    grey = grey_levels(images).flatten(1)
    # The mean, halves rounded up.
    count = grey.shape[1]
    mean = (2 * grey.sum(dim=1, dtype=torch.int64) + count) // (2 * count)
    return _blended(images, mean.to(torch.int32)[:, None, None, None], amount)


def _sharpness(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    wide = images.to(torch.int32)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    smooth = wide.clone()  # its edge stays
    smooth[:, :, 1:-1, 1:-1] = (sums + 6) // 13
    return _blended(images, smooth, amount)


def _posterize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Keep the upper `amount` bits."""
    mask = 256 - (1 << (8 - _rounded(amount, images.device)))
    return images & mask.to(torch.uint8)[:, None, None, None]


def _solarize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Invert what is at least as bright as `amount`."""
    least = _rounded(amount.ceil(), images.device)[:, None, None, None]
    return torch.where(images.to(torch.int32) >= least, _WHITE - images, images)


def _invert(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    del amount
    return _WHITE - images


def _autocontrast(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0 … 255; one of a single level stays."""
    del amount
    flat = images.flatten(2).to(torch.int32)
    least, most = (x[..., None, None] for x in (flat.amin(dim=2), flat.amax(dim=2)))
    stretched = (images.to(torch.int32) - least) * _WHITE // (most - least).clamp(min=1)
    return torch.where(most > least, stretched.to(torch.uint8), images)


def _equalize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Pillow's: each channel's levels, spread so that they are equally frequent."""
    del amount
    count, channels, height, width = images.shape
    flat = images.reshape(count * channels, height * width).to(torch.int64)
    base = 256 * torch.arange(len(flat), device=images.device)[:, None]
    histogram = torch.bincount((flat + base).view(-1), minlength=256 * len(flat)).view(-1, 256)
    # The brightest level that occurs is left out of the step.
    brightest = flat.amax(dim=1, keepdim=True)
    step = (height * width - histogram.gather(1, brightest)) // 255
    before = histogram.cumsum(dim=1) - histogram
    levels = ((before + step // 2) // step.clamp(min=1)).clamp_(max=_WHITE)
    result = torch.where(step > 0, levels.gather(1, flat), flat)
    return result.to(torch.uint8).view_as(images)


def _moved(images: torch.Tensor, matrix: torch.Tensor, *, centred: bool = False) -> torch.Tensor:
    """Take each pixel from where a matrix of shape (B, 2, 3), in 2^-16, says; outside is grey.

    Coordinates are doubled, so that the centres of pixels are integers.
    """
    count, channels, height, width = images.shape
    matrix = matrix.round().to(torch.int64).to(images.device)
    across, down = (2 * torch.arange(n, device=images.device) + 1 for n in (width, height))
    origin = (width, height) if centred else (0, 0)
    x, y = (across - origin[0])[None, None, :], (down - origin[1])[None, :, None]
    inside, places = torch.ones((), dtype=torch.bool, device=images.device), []
    for row, size, middle in ((0, width, origin[0]), (1, height, origin[1])):
        a, b, c = matrix[:, row, :, None, None].unbind(dim=1)
        place = (a * x + b * y + c + (middle << _PLACE_BITS)) >> (_PLACE_BITS + 1)
        inside = inside & (place >= 0) & (place < size)
        places.append(place.clamp_(0, size - 1))
    source = (places[1] * width + places[0]).view(count, 1, -1).expand(-1, channels, -1)
    taken = images.flatten(2).gather(2, source).view_as(images)
    return taken.masked_fill_(~inside[:, None], GREY)


def _matrix(amount: torch.Tensor, **places: torch.Tensor | float) -> torch.Tensor:
    """Rows of `ax ay ac / bx by bc`: what is not given is that of no movement."""
    whole = {"ax": 1.0, "ay": 0.0, "ac": 0.0, "bx": 0.0, "by": 1.0, "bc": 0.0} | places
    columns = [torch.as_tensor(value).expand(len(amount)) for value in whole.values()]
    return torch.stack(columns, dim=1).view(-1, 2, 3) * (1 << _PLACE_BITS)


def _shear_x(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _moved(images, _matrix(amount, ay=amount))


def _shear_y(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _moved(images, _matrix(amount, bx=amount))


def _translate_x(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _moved(images, _matrix(amount, ac=-2 * amount))


def _translate_y(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _moved(images, _matrix(amount, bc=-2 * amount))


def _rotate(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    angle = amount * (math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    return _moved(images, _matrix(amount, ax=cosine, ay=-sine, bx=sine, by=cosine), centred=True)


def _identity(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    del amount
    return images


# Each maps images of shape (B, C, H, W), uint8, and amounts of shape (B,), float64 and on the
# host, to images. Amounts: degrees for rotate, pixels for translate, the tangent for shear; what
# is added to a factor of one for brightness to sharpness; bits for posterize, the least level
# that is inverted for solarize; the others have none.
OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "identity": _identity,
    "shear-x": _shear_x,
    "shear-y": _shear_y,
    "translate-x": _translate_x,
    "translate-y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
}


# --- AutoAugment's learned policies (Cubuk et al. 2019, tables 7 to 9 of the appendix).
#
# A line is one of 25 pairs: operation, probability in tenths, and magnitude of 0 to 9, twice.


POLICIES = {
    "cifar10": """\
invert 1 0, contrast 2 6
rotate 7 2, translate-x 3 9
sharpness 8 1, sharpness 9 3
shear-y 5 8, translate-y 7 9
autocontrast 5 0, equalize 9 0
shear-y 2 7, posterize 3 7
color 4 3, brightness 6 7
sharpness 3 9, brightness 7 9
equalize 6 0, equalize 5 0
contrast 6 7, sharpness 6 5
color 7 7, translate-x 5 8
equalize 3 0, autocontrast 4 0
translate-y 4 3, sharpness 2 6
brightness 9 6, color 2 8
solarize 5 2, invert 0 0
equalize 2 0, autocontrast 6 0
equalize 2 0, equalize 6 0
color 9 9, equalize 6 0
autocontrast 8 0, solarize 2 8
brightness 1 3, color 7 0
solarize 4 5, autocontrast 9 0
translate-y 9 9, translate-y 7 9
autocontrast 9 0, solarize 8 3
equalize 8 0, invert 1 0
translate-y 7 9, autocontrast 9 0
""",
    "imagenet": """\
posterize 4 8, rotate 6 9
solarize 6 5, autocontrast 6 0
equalize 8 0, equalize 6 0
posterize 6 7, posterize 6 6
equalize 4 0, solarize 2 4
equalize 4 0, rotate 8 8
solarize 6 3, equalize 6 0
posterize 8 5, equalize 10 0
rotate 2 3, solarize 6 8
equalize 6 0, posterize 4 6
rotate 8 8, color 4 0
rotate 4 9, equalize 6 0
equalize 0 0, equalize 8 0
invert 6 0, equalize 10 0
color 6 4, contrast 10 8
rotate 8 8, color 10 2
color 8 8, solarize 8 7
sharpness 4 7, invert 6 0
shear-x 6 5, equalize 10 0
color 4 0, equalize 6 0
equalize 4 0, solarize 2 4
solarize 6 5, autocontrast 6 0
invert 6 0, equalize 10 0
color 6 4, contrast 10 8
equalize 8 0, equalize 6 0
""",
    "svhn": """\
shear-x 9 4, invert 2 0
shear-y 9 8, invert 7 0
equalize 6 0, solarize 6 6
invert 9 0, equalize 6 0
equalize 6 0, rotate 9 3
shear-x 9 4, autocontrast 8 0
shear-y 9 8, invert 4 0
shear-y 9 5, solarize 2 6
invert 9 0, autocontrast 8 0
equalize 6 0, rotate 9 3
shear-x 9 4, solarize 3 3
shear-y 8 8, invert 7 0
equalize 9 0, translate-y 6 6
invert 9 0, equalize 6 0
contrast 3 3, rotate 8 4
invert 8 0, translate-y 0 2
shear-y 7 6, solarize 4 8
invert 6 0, rotate 8 4
shear-y 3 7, translate-x 9 3
shear-x 1 6, invert 6 0
solarize 7 2, translate-y 6 7
shear-y 8 4, invert 8 0
shear-x 7 9, translate-y 8 3
shear-y 8 5, autocontrast 7 0
shear-x 7 2, invert 1 0
""",
}


# --- Which operations an image gets: TrivialAugment, RandAugment and AutoAugment, by counter.


# Images at a time on a CPU, so that they stay in its cache: 3 times as fast as 16 of 224 × 224.
_GROUP = 4
# An operation is its place in `OPERATIONS`; `invert`, the last, is AutoAugment's alone.
_NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}
_DRAWN = len(OPERATIONS) - 1
# From shear to sharpness: their amounts go either way.
_SIGNED = range(_NUMBERS["shear-x"], _NUMBERS["sharpness"] + 1)
_BINS = 31


@dataclass(frozen=True)
class Step:
    """One operation for each sample.

    Attributes
    ----------
    operation : ndarray of shape (B,), dtype int64
        Places in `OPERATIONS`.
    amount : ndarray of shape (B,), dtype float64
    """

    operation: NDArray[np.int64]
    amount: NDArray[np.float64]


def apply_policy(images: torch.Tensor, steps: list[Step]) -> torch.Tensor:
    """Do to each image what was drawn for it, one step after the other.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W), dtype uint8
    steps : list of Step
        From `steps_of`, for these images.

    Returns
    -------
    Tensor like images
        Equal to the bit for any batch and device.
    """
    for step in steps:
        result = images.clone()
        # An operation at a time: the images that drew it go through it together.
        for number, operation in enumerate(OPERATIONS.values()):
            rows = np.flatnonzero(step.operation == number)
            size = _GROUP if images.device.type == "cpu" else max(len(rows), 1)
            for begin in range(0, len(rows), size):
                part = rows[begin : begin + size]
                place = torch.from_numpy(part).to(images.device)
                amount = torch.from_numpy(step.amount[part])
                result[place] = operation(images[place], amount)
        images = result
    return images


def steps_of(
    policy: str, index: NDArray[np.int64], *, seed: int, epoch: int, shape: tuple[int, int]
) -> list[Step]:
    """Draw what a policy does to some samples.

    Parameters
    ----------
    policy : str
        `trivialaugment`, `randaugment:N-M` or `autoaugment:NAME`; see `Augmentation`.
    index : ndarray of shape (B,), dtype int64
        Sample indices.
    seed, epoch : int
    shape : tuple of int
        Height and width of the images.

    Returns
    -------
    list of Step
    """
    name, _, numbers = policy.partition(":")
    key = rng.stream_key(seed, name, epoch)
    if name == "trivialaugment":
        return [_trivial(key, index)]
    if name == "randaugment":
        count, magnitude = map(int, numbers.split("-"))
        amounts = _range("randaugment", shape)[:, magnitude]
        return [_random(key, index, 2 * number, amounts) for number in range(count)]
    return _learned(key, index, POLICIES[numbers], shape)


def _below(key: int, index: NDArray[np.int64], high: int, counter: int) -> NDArray[np.int64]:
    # `ltd_pipe.rng.integers` on the host.
    return ((rng.bits(key, index, counter) >> np.uint64(1)) % np.uint64(high)).astype(np.int64)


def _sign(key: int, index: NDArray[np.int64], counter: int) -> NDArray[np.float64]:
    return (1 - 2 * _below(key, index, 2, counter)).astype(np.float64)


def _trivial(key: int, index: NDArray[np.int64]) -> Step:
    """Müller and Hutter 2021, "TrivialAugment", its wide ranges: one operation, any magnitude."""
    drawn = _below(key, index, _DRAWN, 0)
    amount = _range("trivialaugment", (0, 0))[drawn, _below(key, index, _BINS, 1)]
    return _signed(drawn, amount, _sign(key, index, 2))


def _random(key: int, index: NDArray[np.int64], counter: int, amounts: NDArray[np.float64]) -> Step:
    """Cubuk et al. 2020, "RandAugment": any operation, always the same magnitude."""
    drawn = _below(key, index, _DRAWN, counter)
    return _signed(drawn, amounts[drawn], _sign(key, index, counter + 1))


def _learned(key: int, index: NDArray[np.int64], policy: str, shape: tuple[int, int]) -> list[Step]:
    """Cubuk et al. 2019, "AutoAugment": one of 25 pairs, each operation with its probability."""
    drawn = _below(key, index, len(_pairs(policy)), 0)
    table, steps = _range("autoaugment", shape), []
    for place in (0, 1):
        number, tenths, magnitude = _pairs(policy)[drawn, place].T
        # Tenths are whole numbers: no rounding decides.
        left_out = _below(key, index, 10, 1 + 2 * place) >= tenths
        operation = np.where(left_out, _NUMBERS["identity"], number)
        amount = table[operation, magnitude]
        steps.append(_signed(operation, amount, _sign(key, index, 2 + 2 * place)))
    return steps


@cache
def _pairs(policy: str) -> NDArray[np.int64]:
    """Operation, tenths and magnitude: shape (25, 2, 3)."""
    parts = policy.replace("\n", ",").rstrip(",").split(",")
    words = [part.split() for part in parts]
    numbers = [(_NUMBERS[name], int(tenths), int(size)) for name, tenths, size in words]
    return np.array(numbers, dtype=np.int64).reshape(-1, 2, 3)


def _signed(
    operation: NDArray[np.int64], amount: NDArray[np.float64], sign: NDArray[np.float64]
) -> Step:
    return Step(operation, np.where(np.isin(operation, _SIGNED), sign * amount, amount))


# Largest shear, degrees, factor beyond one; bits that posterize takes; bins.
_LARGEST = {
    "trivialaugment": (0.99, 135.0, 0.99, 6, 31),
    "randaugment": (0.3, 30.0, 0.9, 4, 31),
    "autoaugment": (0.3, 30.0, 0.9, 4, 10),
}


@cache
def _range(family: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Amounts by operation and bin: shape (15, bins)."""
    shear, degrees, factor, bits, bins = _LARGEST[family]
    number, last = np.arange(bins), bins - 1
    share = number / last
    height, width = shape
    table = np.zeros((len(OPERATIONS), bins))
    # Whole pixels and levels in whole numbers: a quotient that is nearly one would be the next.
    wide = family == "trivialaugment"
    table[3] = 32 * number // last if wide else 150 * width * number // (331 * last)
    table[4] = 32 * number // last if wide else 150 * height * number // (331 * last)
    table[[1, 2]], table[5], table[6:10] = shear * share, degrees * share, factor * share
    table[10] = 8 - np.round(bits * share)
    table[11] = 255 - 255 * number // last
    return table
