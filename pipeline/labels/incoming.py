"""What a teacher gives, checked and rounded before it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.labels.format import row_sum_tolerance
from pipeline.labels.half import to_float16, to_float32

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["round_logits", "round_soft_labels", "round_topk"]

# float16's, as bits.
_INFINITY = 0x7C00
# Rows that are looked at, and how far the sum of probabilities in float16 is from one.
_LOOKED_AT, _SUM = 64, 0.01


def round_logits(
    logits: NDArray[np.floating[Any]], first_sample: int, where: Path
) -> NDArray[np.float16]:
    """Logits as float16.

    Parameters
    ----------
    logits : ndarray of shape (n, K) or (n, V, K)
    first_sample : int
        Index of the first row, for the error.
    where : Path
        The draft, for the error.

    Raises
    ------
    StoreError
        When one is NaN, infinite, or beyond float16's 65504, naming the sample.
    """
    rounded = to_float16(logits)
    # Of logits not one row is a distribution but by chance.
    some = np.asarray(logits[:_LOOKED_AT], np.float32)
    if some.size and (some >= 0).all() and (abs(some.sum(axis=-1) - 1) < _SUM).all():
        raise StoreError(
            where,
            f"sample {first_sample}: the logits are probabilities",
            found="rows of sum 1 without a negative number",
            remedy="Give what is before the softmax; of a table, call the array soft_labels.",
        )
    # As integers without the sign bit, infinity and NaN are the largest: ten times as fast.
    if rounded.size and (rounded.view(np.uint16) & 0x7FFF).max() >= _INFINITY:
        finite = np.isfinite(rounded)
        row = int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
        raise StoreError(
            where,
            f"sample {first_sample + row}: the teacher's logits",
            expected="finite numbers below 65504, float16's largest",
            found=logits[row][~finite[row]][0],
            remedy="Look at that image, and at the teacher's normalisation.",
        )
    return rounded


def round_soft_labels(
    soft_labels: NDArray[np.floating[Any]], first_sample: int, where: Path
) -> NDArray[np.float16]:
    """Probabilities as float16, with arguments as in `round_logits`.

    Raises
    ------
    StoreError
        When a row is not a distribution, naming the sample.
    """
    rounded = to_float16(soft_labels)
    stored = to_float32(rounded)
    totals = stored.sum(axis=-1, dtype=np.float64)
    tolerance = row_sum_tolerance(soft_labels.shape[-1])
    # Written so that NaN fails.
    right = (stored >= 0).all(axis=-1) & (abs(totals - 1.0) <= tolerance)
    if not right.all():
        row = _first_wrong(right)
        raise StoreError(
            where,
            f"sample {first_sample + row[0]}: the soft label is no distribution",
            expected=f"probabilities whose sum is 1 ± {tolerance:.1g}",
            found=f"lowest {stored[row].min()}, sum {totals[row]:.6f}",
            # Also by a rounding: what is too far for that may be logits.
            remedy="" if abs(totals[row] - 1) < _SUM else "If these are logits, call them so.",
        )
    # Without the sign of -0.0, which readers take for a negative number.
    return np.abs(rounded)


def round_topk(
    indices: NDArray[np.integer[Any]],
    probs: NDArray[np.floating[Any]],
    num_classes: int,
    first_sample: int,
    where: Path,
) -> tuple[NDArray[np.integer[Any]], NDArray[np.float16]]:
    """Classes and probabilities of shape (n, k) or (n, V, k), by falling probability.

    Raises
    ------
    StoreError
        When a class does not exist or comes twice in a row, a probability is negative or not
        finite, or their sum is above one, naming the sample.
    """
    rounded = to_float16(probs)
    order = np.argsort(-to_float32(rounded), axis=-1, kind="stable")
    indices = np.take_along_axis(indices, order, axis=-1)
    rounded = np.abs(np.take_along_axis(rounded, order, axis=-1))
    classes = np.sort(indices, axis=-1)
    totals = to_float32(rounded).sum(axis=-1, dtype=np.float64)
    right = (classes[..., 0] >= 0) & (classes[..., -1] < num_classes)
    right &= (np.diff(classes.astype(np.int64), axis=-1) > 0).all(axis=-1)
    right &= (probs >= 0).all(axis=-1) & (totals <= 1.0 + row_sum_tolerance(num_classes))
    if not right.all():
        row = _first_wrong(right)
        raise StoreError(
            where,
            f"sample {first_sample + row[0]}: the soft label is no distribution",
            expected=f"different classes below {num_classes}, probabilities of sum at most 1",
            found=f"classes {classes[row][0]} to {classes[row][-1]}, sum {totals[row]:.6f}",
        )
    return indices, rounded


def _first_wrong(right: NDArray[np.bool_]) -> tuple[int, ...]:
    # Sample, and view where there are several.
    return tuple(int(axis[0]) for axis in np.nonzero(~right))
