"""Logits to soft labels: softmax at a temperature, and which temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import ParamsError
from ltd_pipe.labels.format import MAX_TEMPERATURE, MIN_TEMPERATURE, to_float16, to_float32

if TYPE_CHECKING:
    import torch


# --- Sparse soft labels: the k largest probabilities, the rest spread evenly.
#
# As FKD's marginal smoothing (arXiv 2112.01528, equation 6) and TinyViT's sparse logits
# (arXiv 2207.10666, equation 2): q_c = p_c for the k classes that are stored, and
# (1 - Σ p) / (K - k) for each other class.


def largest(
    soft: NDArray[np.floating[Any]], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """The k largest of float32 probabilities (..., K): classes (int64) and probabilities (float16).

    Both are of shape (..., k); probabilities fall, and of equal ones the lower class comes first.
    """
    import torch

    rows = torch.from_numpy(np.ascontiguousarray(soft))
    classes = _largest_classes(rows, k).sort(dim=-1).values
    probs = rows.gather(-1, classes).to(torch.float16)
    # Stable, and after rounding: the order does not depend on how topk treats equal numbers.
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    return classes.gather(-1, order).numpy(), ranked.numpy()


def _largest_classes(rows: torch.Tensor, k: int) -> torch.Tensor:
    # One more than is kept: which of several equal ones topk takes is left to each machine.
    found = rows.topk(min(k + 1, rows.shape[-1]), dim=-1)
    classes = found.indices[..., :k].contiguous()
    tied = (found.values[..., k:] == found.values[..., k - 1 : k]).any(dim=-1)
    if tied.any():
        ordered = rows[tied].sort(dim=-1, descending=True, stable=True).indices
        classes[tied] = ordered[..., :k]
    return classes


def spread(indices: torch.Tensor, probs: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Rows over all classes, float32 of shape (..., K) that sum to one, on the arguments' device.

    Parameters
    ----------
    indices : Tensor of shape (..., k), any integers
        Classes, all different within a row, below num_classes.
    probs : Tensor of shape (..., k), dtype float16 or float32
    num_classes : int
        K.
    """
    import torch

    probs = probs.to(torch.float32)
    total = probs.sum(dim=-1, keepdim=True)
    # Rounding to float16 can bring the sum above one.
    others = (1.0 - total).clamp(min=0.0) / max(num_classes - probs.shape[-1], 1)
    rows = others.expand(*probs.shape[:-1], num_classes).clone()
    rows.scatter_(-1, indices.to(torch.int64), probs)
    return rows / rows.sum(dim=-1, keepdim=True)


def expand(
    indices: NDArray[np.integer[Any]], probs: NDArray[np.floating[Any]], num_classes: int
) -> NDArray[np.float32]:
    """`spread` for arrays: float32 rows of shape (..., K) that sum to one."""
    import torch

    classes = torch.from_numpy(indices.astype(np.int64))
    # Copied, since torch warns of memory that must not be written to.
    rows: NDArray[np.float32] = spread(
        classes, torch.from_numpy(np.array(probs)), num_classes
    ).numpy()
    return rows


def total_variation(
    soft: NDArray[np.float32], indices: NDArray[np.integer[Any]], probs: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Half the sum of absolute differences between dense rows and their top-k, in [0, 1]."""
    difference = expand(indices, probs, soft.shape[-1])
    difference -= soft
    np.abs(difference, out=difference)
    distance: NDArray[np.float32] = 0.5 * difference.sum(axis=-1)
    return np.clip(distance, 0.0, 1.0)


# --- Logits to soft labels: softmax at a temperature, and which temperature.


# At a time, so that their float32 copies never leave the processor's cache.
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
    """Sum over samples and views of the largest of the teachers' averaged probabilities."""
    return float(mean_softened(logits, temperature).max(axis=-1).sum(dtype=np.float64))


def mean_softened(
    logits: Sequence[NDArray[np.floating[Any]]], temperature: float
) -> NDArray[np.float32]:
    """The average of several teachers' probabilities, each softened as `soften` does."""
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
    """
    rounded = np.empty(logits[0].shape, np.float16)
    step = max(_CACHED_ELEMENTS * len(rounded) // max(rounded.size, 1), 1)
    for start in range(0, len(rounded), step):
        rows = slice(start, start + step)
        block = mean_softened([teacher[rows] for teacher in logits], temperature)
        to_float16(block, out=rounded[rows])
    return rounded


def solve_temperature(
    blocks: Callable[[], Iterable[Sequence[NDArray[np.floating[Any]]]]], target: float
) -> float:
    """The temperature at which the largest probability is so high, averaged over rows.

    Bisection in the logarithm, since useful temperatures span orders of magnitude; the mean
    top probability of softmax(z / τ) falls strictly in τ unless all logits are equal. The
    result is rounded to six digits, so that it can be typed from a report and give the same bytes.

    Parameters
    ----------
    blocks : callable
        Gives all logits anew, block by block, in each block those of each teacher.
    target : float
        In (1/K, 1). A ParamsError when no temperature gives it.
    """

    def mean_top(temperature: float) -> float:
        total, rows = 0.0, 0
        for logits in blocks():
            total += top_probability(logits, temperature)
            rows += logits[0].size // logits[0].shape[-1]
        return total / rows

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
