"""TrivialAugment, RandAugment and AutoAugment, as pure functions of (seed, epoch, sample index).

Operations and ranges are those of torchvision's transforms of the same names. Each image of a
batch has operations and amounts of its own, and all arithmetic is in integers, so that the result
has the same bits on any device: amounts are multiples of 2^-15 or 2^-16. Pixels that come from
outside are grey, as in the code of AutoAugment's authors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe import rng
from ltd_pipe.device import on_device
from ltd_pipe.images.decode import luminance

if TYPE_CHECKING:
    # For each sample the place of an operation in `OPERATIONS`, and its amount.
    Step = tuple[NDArray[np.int64], NDArray[np.float64]]

GREY = 128
# Of blending, and of coordinates.
_BLEND_BITS, _PLACE_BITS = 15, 16
_WHITE = 255
# Images at a time on a CPU, so that they stay in its cache: 3 times as fast as 16 of 224 × 224.
_GROUP = 4


def apply_policy(
    images: torch.Tensor, index: NDArray[np.int64], policy: str, *, seed: int, epoch: int
) -> torch.Tensor:
    """Do to each image what the policy draws for it, one operation after the other.

    Images are of shape (B, C, H, W), uint8; their sample indices, of shape (B,), are on the host,
    which says which image goes through what. The result is equal to the bit for any batch and
    device. For policies see `Augmentation`.
    """
    height, width = images.shape[2:]
    for drawn, amounts in draw_steps(policy, index, seed=seed, epoch=epoch, size=(height, width)):
        result = images.clone()
        # An operation at a time: the images that drew it go through it together.
        for number, operation in enumerate(OPERATIONS.values()):
            rows = np.flatnonzero(drawn == number)
            group = _GROUP if images.device.type == "cpu" else max(len(rows), 1)
            for begin in range(0, len(rows), group):
                part = rows[begin : begin + group]
                place = on_device(part, images.device)
                result[place] = operation(images[place], torch.from_numpy(amounts[part]))
        images = result
    return images


# --- What is drawn.


def draw_steps(
    policy: str, index: NDArray[np.int64], *, seed: int, epoch: int, size: tuple[int, int]
) -> list[Step]:
    """Draw what a policy does to some samples, whose images have this height and width."""
    name, _, numbers = policy.partition(":")
    key = rng.stream_key(seed, name, epoch)
    table = _amounts(name, size)
    # AutoAugment alone has the last operation, `invert`.
    common = len(OPERATIONS) - 1
    if name == "trivialaugment":
        # Müller and Hutter 2021, its wide ranges: one operation, of any magnitude.
        drawn = rng.integers(key, index, common, 0)
        magnitude = rng.integers(key, index, table.shape[1], 1)
        return [_signed(drawn, table[drawn, magnitude], key, index, 2)]
    if name == "randaugment":
        # Cubuk et al. 2020: any operations, always of the same magnitude.
        count, strength = map(int, numbers.split("-"))
        operations = [rng.integers(key, index, common, 2 * step) for step in range(count)]
        return [
            _signed(drawn, table[drawn, strength], key, index, 2 * step + 1)
            for step, drawn in enumerate(operations)
        ]
    # Cubuk et al. 2019, "AutoAugment": one of 25 pairs, each operation with its probability.
    pairs = _learned_pairs(numbers)
    chosen, steps = pairs[rng.integers(key, index, len(pairs), 0)], []
    for place in (0, 1):
        operation, tenths, magnitude = chosen[:, place].T
        # Tenths are whole numbers: no rounding decides.
        left_out = rng.integers(key, index, 10, 1 + 2 * place) >= tenths
        operation = np.where(left_out, 0, operation)
        steps.append(_signed(operation, table[operation, magnitude], key, index, 2 + 2 * place))
    return steps


def _signed(
    operation: NDArray[np.int64],
    amount: NDArray[np.float64],
    key: int,
    index: NDArray[np.int64],
    counter: int,
) -> Step:
    """Let the amounts of the operations from shear-x to sharpness go either way."""
    sign = 1 - 2 * rng.integers(key, index, 2, counter)
    return operation, np.where((operation >= 1) & (operation <= 9), sign * amount, amount)


@cache
def _learned_pairs(policy: str) -> NDArray[np.int64]:
    """Operation, tenths and magnitude: shape (25, 2, 3); tables 7 to 9 of AutoAugment's paper."""
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    numbers = {name.replace("-", ""): number for number, name in enumerate(OPERATIONS)}
    pairs = AutoAugment(AutoAugmentPolicy(policy)).policies
    found = [
        [(numbers[name.lower()], round(10 * p), m or 0) for name, p, m in pair] for pair in pairs
    ]
    return np.array(found, dtype=np.int64)


# Largest shear, degrees, factor beyond one; bits that posterize takes; bins.
_LARGEST = {
    "trivialaugment": (0.99, 135.0, 0.99, 6, 31),
    "randaugment": (0.3, 30.0, 0.9, 4, 31),
    "autoaugment": (0.3, 30.0, 0.9, 4, 10),
}


@cache
def _amounts(family: str, size: tuple[int, int]) -> NDArray[np.float64]:
    """Amounts by operation and magnitude: shape (15, bins)."""
    shear, degrees, factor, bits, bins = _LARGEST[family]
    number, last = np.arange(bins), bins - 1
    share = number / last
    height, width = size
    table = np.zeros((len(OPERATIONS), bins))
    # Whole pixels and levels in whole numbers: a quotient that is nearly one would be the next.
    wide = family == "trivialaugment"
    table[3] = 32 * number // last if wide else 150 * width * number // (331 * last)
    table[4] = 32 * number // last if wide else 150 * height * number // (331 * last)
    table[[1, 2]], table[5], table[6:10] = shear * share, degrees * share, factor * share
    table[10] = 8 - np.round(bits * share)
    table[11] = 255 - 255 * number // last
    return table


# --- The operations (Cubuk et al. 2019, "AutoAugment", table 6).


def _rounded(amount: torch.Tensor, device: torch.device) -> torch.Tensor:
    return on_device(amount.round().to(torch.int32).numpy(), device)[:, None, None, None]


def _blended(images: torch.Tensor, other: torch.Tensor | int, amount: torch.Tensor) -> torch.Tensor:
    # other + (1 + amount) · (image - other), cut off like Pillow's and torchvision's.
    one = 1 << _BLEND_BITS
    weight = one + _rounded(amount * one, images.device)
    mixed = images.to(torch.int32) * weight + other * (one - weight)
    return (mixed >> _BLEND_BITS).clamp_(0, _WHITE).to(torch.uint8)


def _luminance(images: torch.Tensor) -> torch.Tensor:
    """Luminance of shape (B, 1, H, W), dtype int32; of grey images themselves."""
    wide = images.to(torch.int32)
    if images.shape[1] != 3:
        return wide[:, :1]
    grey: torch.Tensor = luminance(*(wide[:, i : i + 1] for i in range(3)))
    return grey


def _contrast(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    grey = _luminance(images).flatten(1)
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
    mask = 256 - (1 << (8 - _rounded(amount, images.device)))
    return images & mask.to(torch.uint8)


def _solarize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    least = _rounded(amount.ceil(), images.device)
    return torch.where(images.to(torch.int32) >= least, _WHITE - images, images)


def _autocontrast(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0 … 255; one of a single level stays."""
    flat = images.flatten(2).to(torch.int32)
    least, most = (x[..., None, None] for x in (flat.amin(dim=2), flat.amax(dim=2)))
    stretched = (images.to(torch.int32) - least) * _WHITE // (most - least).clamp(min=1)
    return torch.where(most > least, stretched.to(torch.uint8), images)


def _equalize(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Pillow's: each channel's levels, spread so that they are equally frequent."""
    from torchvision.transforms.v2.functional import equalize

    result: torch.Tensor = equalize(images)
    return result


def _moved(
    images: torch.Tensor,
    amount: torch.Tensor,
    *,
    centred: bool = False,
    **entries: torch.Tensor | float,
) -> torch.Tensor:
    """Take each pixel from where a matrix says; outside is grey.

    Its rows are `ax ay ac / bx by bc`; entries that are not given are those of no movement.
    Coordinates are doubled, so that the centres of pixels are integers.
    """
    whole = {"ax": 1.0, "ay": 0.0, "ac": 0.0, "bx": 0.0, "by": 1.0, "bc": 0.0} | entries
    columns = [torch.as_tensor(value).expand(len(amount)) for value in whole.values()]
    matrix = (torch.stack(columns, dim=1).view(-1, 2, 3) * (1 << _PLACE_BITS)).round()
    matrix = on_device(matrix.to(torch.int64).numpy(), images.device)
    count, channels, height, width = images.shape
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


def _rotate(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    angle = amount * (math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    return _moved(images, amount, ax=cosine, ay=-sine, bx=sine, by=cosine, centred=True)


# Each maps images of shape (B, C, H, W), uint8, and amounts of shape (B,), float64 and on the
# host, to images. Amounts: degrees for rotate, pixels for translate, the tangent for shear; what
# is added to a factor of one for brightness to sharpness; bits that stay for posterize, the least
# level that is inverted for solarize; the others have none.
OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "identity": lambda images, _: images,
    "shear-x": lambda images, amount: _moved(images, amount, ay=amount),
    "shear-y": lambda images, amount: _moved(images, amount, bx=amount),
    "translate-x": lambda images, amount: _moved(images, amount, ac=-2 * amount),
    "translate-y": lambda images, amount: _moved(images, amount, bc=-2 * amount),
    "rotate": _rotate,
    "brightness": lambda images, amount: _blended(images, 0, amount),
    "color": lambda images, amount: _blended(images, _luminance(images), amount),
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": lambda images, _: _WHITE - images,
}
