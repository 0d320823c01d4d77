"""Which operations an image gets: TrivialAugment, RandAugment and AutoAugment, by counter.

Operations and ranges are those of torchvision's transforms of the same names; what is drawn is a
function of (seed, policy, epoch, sample index), by whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline import rng
from pipeline.images.autoaugment import POLICIES
from pipeline.images.operations import OPERATIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Step", "apply_policy", "steps_of"]

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
    # `pipeline.rng.integers` on the host.
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
