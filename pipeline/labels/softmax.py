"""Logits to soft labels: softmax at a temperature, and which temperature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ParamsError
from pipeline.labels.format import MAX_TEMPERATURE, MIN_TEMPERATURE
from pipeline.labels.half import to_float16, to_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "bisect_temperature",
    "mean_softened",
    "require_temperature",
    "soften",
    "softened_half",
    "solve_temperature",
    "top_probability",
]

# Rows at a time: float32 copies of a few MiB stay in the cache and never fill the memory.
_BLOCK_ELEMENTS = 2**20
_CACHED_ELEMENTS = 2**16


def require_temperature(temperature: float) -> float:
    """Refuse a temperature at which float32 arithmetic gives nothing but zeros or NaN."""
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise ParamsError(
            "temperature",
            "is out of range",
            expected=f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
            found=temperature,
        )
    return float(temperature)


def soften(logits: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float32]:
    """softmax(logits / temperature), in float32.

    Parameters
    ----------
    logits : ndarray of shape (..., K), dtype float16 or float32
        Finite.
    temperature : float
        In [1e-6, 1e6].

    Returns
    -------
    ndarray of shape (..., K), dtype float32
        Rows sum to one within float32 rounding.
    """
    require_temperature(temperature)
    soft = to_float32(logits)
    # The maximum is subtracted before the division: exponents are never positive, so nothing
    # overflows, and the rounding of large logits over small temperatures is not amplified.
    soft -= soft.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", under="ignore"):
        soft /= np.float32(temperature)
        np.exp(soft, out=soft)
        soft /= soft.sum(axis=-1, keepdims=True)
    return soft


def top_probability(logits: Sequence[NDArray[np.floating[Any]]], temperature: float) -> float:
    """Sum over samples and views of the largest probability.

    Parameters
    ----------
    logits : sequence of ndarray of shape (..., K)
        Of each teacher.
    temperature : float
    """
    return float(mean_softened(logits, temperature).max(axis=-1).sum(dtype=np.float64))


def mean_softened(
    logits: Sequence[NDArray[np.floating[Any]]], temperature: float
) -> NDArray[np.float32]:
    """The average of several teachers' probabilities, each softened as `soften` does.

    Parameters
    ----------
    logits : sequence of ndarray of shape (..., K)
        Of each teacher.
    temperature : float

    Returns
    -------
    ndarray of shape (..., K), dtype float32
    """
    total = soften(logits[0], temperature)
    if len(logits) > 1:
        for teacher in logits[1:]:
            total += soften(teacher, temperature)
        total /= np.float32(len(logits))
    return total


def softened_half(
    logits: Sequence[NDArray[np.floating[Any]]], temperature: float
) -> NDArray[np.float16]:
    """What a store holds: `mean_softened`, rounded to float16.

    Block by block, so that the float32 numbers never leave the processor's cache.

    Parameters
    ----------
    logits : sequence of ndarray of shape (n, ..., K)
        Of each teacher.
    temperature : float

    Returns
    -------
    ndarray of shape (n, ..., K), dtype float16
    """
    rounded = np.empty(logits[0].shape, np.float16)
    step = max(_CACHED_ELEMENTS * len(rounded) // max(rounded.size, 1), 1)
    for start in range(0, len(rounded), step):
        rows = slice(start, start + step)
        block = mean_softened([teacher[rows] for teacher in logits], temperature)
        to_float16(block, out=rounded[rows])
    return rounded


def solve_temperature(logits: NDArray[np.floating[Any]], target_top_probability: float) -> float:
    """The temperature at which the largest probability is so high, averaged over samples.

    Parameters
    ----------
    logits : ndarray of shape (N, K), or (M, N, K) for the average of M teachers
    target_top_probability : float
        In (1/K, 1).

    Raises
    ------
    ParamsError
        When no temperature gives it.
    """
    stacked = logits[None] if logits.ndim == 2 else logits
    num_samples, num_classes = stacked.shape[1:]
    step = max(_BLOCK_ELEMENTS // num_classes, 1)

    def mean_top(temperature: float) -> float:
        blocks = (stacked[:, at : at + step] for at in range(0, num_samples, step))
        total = sum(top_probability([*block], temperature) for block in blocks)
        return float(total / num_samples)

    return bisect_temperature(mean_top, target_top_probability)


def bisect_temperature(mean_top: Callable[[float], float], target: float) -> float:
    """Solve `mean_top(temperature) = target` for a function that falls with temperature.

    Bisection in the logarithm, since useful temperatures span orders of magnitude; the mean
    top probability of softmax(z / τ) falls strictly in τ unless all logits are equal.

    Returns
    -------
    float
        Rounded to six digits, so that it can be typed from a report and give the same bytes.
    """
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    largest, smallest = mean_top(MIN_TEMPERATURE), mean_top(MAX_TEMPERATURE)
    if not smallest < target < largest:
        raise ParamsError(
            "temperature",
            "no temperature gives this mean top probability",
            expected=f"above {smallest:.6g} and below {largest:.6g} for these logits",
            found=f"auto:{target:g}",
        )
    while high - low > 1e-7:
        middle = (low + high) / 2
        if mean_top(math.exp(middle)) > target:
            low = middle
        else:
            high = middle
    return float(f"{math.exp(low):.6g}")
