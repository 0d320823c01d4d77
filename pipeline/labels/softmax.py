"""Logits to soft labels: softmax at a temperature, and which temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ParamsError
from pipeline.labels.format import MAX_TEMPERATURE, MIN_TEMPERATURE
from pipeline.labels.half import to_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "LabelSummary",
    "bisect_temperature",
    "mean_softened",
    "require_temperature",
    "soften",
    "solve_temperature",
    "summarise",
    "summarise_blocks",
    "top_probability",
]

# Rows at a time: float32 copies of a few MiB stay in the cache and never fill the memory.
_BLOCK_ELEMENTS = 2**20


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
    """Sum over samples of the largest probability.

    Parameters
    ----------
    logits : sequence of ndarray of shape (n, K)
        Of each teacher.
    temperature : float
    """
    return float(mean_softened(logits, temperature).max(axis=1).sum(dtype=np.float64))


def mean_softened(
    logits: Sequence[NDArray[np.floating[Any]]], temperature: float
) -> NDArray[np.float32]:
    """The average of several teachers' probabilities, each softened as `soften` does.

    Parameters
    ----------
    logits : sequence of ndarray of shape (n, K)
        Of each teacher.
    temperature : float

    Returns
    -------
    ndarray of shape (n, K), dtype float32
    """
    total = soften(logits[0], temperature)
    if len(logits) > 1:
        for teacher in logits[1:]:
            total += soften(teacher, temperature)
        total /= np.float32(len(logits))
    return total


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


@dataclass(frozen=True)
class LabelSummary:
    """What soft labels are like.

    Attributes
    ----------
    mean_entropy : float
        In nats; between 0 and ln K.
    mean_top_probability : float
        Between 1/K and 1.
    disagreement : float or None
        Share of samples of known class whose largest probability is on another class; None
        when no class is known.
    warnings : tuple of str
        Whether the labels are as good as one-hot or as uniform ones.
    """

    mean_entropy: float
    mean_top_probability: float
    disagreement: float | None
    warnings: tuple[str, ...]


def summarise(soft: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> LabelSummary:
    """Summarise soft labels.

    Parameters
    ----------
    soft : ndarray of shape (N, K)
        Rows are distributions.
    labels : ndarray of shape (N,)
        Classes; -1 where unknown.
    """
    return summarise_blocks(_blocks(soft, labels))


Block = tuple["NDArray[np.floating[Any]]", "NDArray[np.integer[Any]]"]


def _blocks(soft: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> Iterator[Block]:
    step = max(_BLOCK_ELEMENTS // soft.shape[1], 1)
    for at in range(0, len(soft), step):
        yield soft[at : at + step], labels[at : at + step]


def summarise_blocks(blocks: Iterable[Block]) -> LabelSummary:
    """Summarise soft labels that come in blocks of rows, each as in `summarise`."""
    entropy = top = 0.0
    samples = known = wrong = num_classes = 0
    for soft, labels in blocks:
        rows = to_float32(soft)
        rows /= rows.sum(axis=1, keepdims=True)
        # p log p tends to 0 with p; the clip keeps log(0) out of the product.
        entropy -= float((rows * np.log(np.maximum(rows, 1e-30))).sum(dtype=np.float64))
        top += float(rows.max(axis=1).sum(dtype=np.float64))
        wrong += int(((rows.argmax(axis=1) != labels) & (labels >= 0)).sum())
        known += int((labels >= 0).sum())
        samples, num_classes = samples + len(rows), rows.shape[1]
    if not samples:
        raise ValueError("no soft labels to summarise")
    return LabelSummary(
        mean_entropy=entropy / samples,
        mean_top_probability=top / samples,
        disagreement=wrong / known if known else None,
        warnings=_warnings(top / samples, num_classes),
    )


def _warnings(mean_top: float, num_classes: int) -> tuple[str, ...]:
    # Either way the student learns nothing from the teacher that it could not have without.
    cure = "label.temperature, or set it to auto:0.95."
    found = f"mean top probability {mean_top:.5f} of {num_classes} classes"
    if mean_top > 0.999:
        return (f"The soft labels are as good as one-hot ({found}): raise {cure}",)
    if mean_top < 1.5 / num_classes:
        return (f"The soft labels are as good as uniform ({found}): lower {cure}",)
    return ()
