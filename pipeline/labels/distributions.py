"""That stored rows are distributions: the one check, for who writes them and for who reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.format import to_float16, to_float32
from ltd_pipe.labels.softmax import soften

if TYPE_CHECKING:
    from ltd_pipe.labels.format import StoreAttributes

# At a time: float32 copies stay in the cache, and a chunk of any size costs no more memory.
_BLOCK_ELEMENTS = 2**19
# float16's, as bits.
_INFINITY, _MAGNITUDE, _NEGATIVE_ZERO = np.uint16(0x7C00), np.uint16(0x7FFF), np.uint16(0x8000)
# Rows of logits that are looked at, and how far the sum of probabilities in float16 is from one.
_LOOKED_AT, _SUM = 64, 0.01
_MADE_WRONGLY = "The store was made wrongly: run 'ltd-pipe label' again."


def row_sum_tolerance(num_classes: int) -> float:
    """How far from one the sum of a stored row may be.

    Rounding p to float16 moves it by at most 2^-11 p, or 2^-25 where p is below float16's
    normal numbers; summed over a row, 2^-11 + 2^-25 K. 2^-18 is left for the float32
    arithmetic of whoever computed the row.
    """
    return float(2.0**-11 + num_classes * 2.0**-25 + 2.0**-18)


# --- Each number by itself.


def require_numbers(
    where: object,
    name: str,
    rows: NDArray[np.float16],
    first: int,
    *,
    unrounded: NDArray[np.floating[Any]] | None = None,
    remedy: str = _MADE_WRONGLY,
) -> None:
    """Refuse logits that are not finite, and probabilities that are negative, -0.0 or not finite.

    The error shows the number as it was before it was rounded, where that is known.
    """
    # As integers: float16 numbers below infinity compare like their bits, and the sign bit
    # makes negative ones large, so that one maximum finds NaN, infinity and sign.
    bits = rows.view(np.uint16)
    magnitude = bits & _MAGNITUDE if name == "logits" else bits
    if not magnitude.size or magnitude.max() < _INFINITY:
        return
    outside = magnitude >= _INFINITY
    row = int(np.argmax(outside.reshape(len(rows), -1).any(axis=1)))
    raise StoreError(
        where,
        f"sample {first + row}: {name}",
        expected="finite numbers of float16, whose largest is 65504"
        if name == "logits"
        else "probabilities",
        found=(rows if unrounded is None else unrounded)[row][outside[row]][0],
        remedy=remedy,
    )


def require_class_numbers(
    where: object,
    rows: NDArray[np.integer[Any]],
    num_classes: int,
    first: int,
    remedy: str = _MADE_WRONGLY,
) -> None:
    """Refuse what is no class: it would be written outside the row that it is spread into."""
    if not rows.size or (rows.min() >= 0 and rows.max() < num_classes):
        return
    outside = (rows < 0) | (rows >= num_classes)
    row = int(np.argmax(outside.reshape(len(rows), -1).any(axis=1)))
    raise StoreError(
        where,
        f"sample {first + row}: topk_indices",
        expected=f"classes below {num_classes}",
        found=rows[row][outside[row]][0],
        remedy=remedy,
    )


# --- Whole rows.


def require_distributions(
    where: object, attributes: StoreAttributes, rows: Mapping[str, NDArray[Any]], first: int
) -> None:
    """Refuse rows that the format excludes, of which each number by itself was found good.

    Parameters
    ----------
    where : object
        The store, for the error.
    attributes : StoreAttributes
    rows : dict of str to ndarray of shape (n, ...)
        The same samples of each array of the store.
    first : int
        Number of the first sample, for the error.
    """
    widest = rows["soft_labels" if attributes.top_k is None else "topk_probs"]
    step = max(_BLOCK_ELEMENTS // int(np.prod(widest.shape[1:])), 1)
    for at in range(0, len(widest), step):
        block = {name: column[at : at + step] for name, column in rows.items()}
        if attributes.top_k is not None:
            indices, probs = block["topk_indices"], to_float32(block["topk_probs"])
            _require_ranks(where, indices, probs, attributes.num_classes, first + at)
            continue
        soft = to_float32(block["soft_labels"])
        _require_sums(where, soft, attributes.num_classes, first + at)
        if "logits" in block:
            _require_softmax(where, attributes.temperature, soft, block["logits"], first + at)


def _name_sample(wrong: NDArray[np.bool_], first: int) -> tuple[str, tuple[int, ...]]:
    # The first wrong row: how the user knows it, and its place in the block.
    place = tuple(int(axis[0]) for axis in np.nonzero(wrong))
    view = f", view {place[1]}" if len(place) > 1 else ""
    return f"sample {first + place[0]}{view}", place


def _require_sums(where: object, probs: NDArray[np.float32], num_classes: int, first: int) -> None:
    sums = probs.sum(axis=-1, dtype=np.float64)
    tolerance, dense = row_sum_tolerance(num_classes), probs.shape[-1] == num_classes
    # Of a top-k row there may be any rest.
    wrong = np.asarray((sums > 1.0 + tolerance) | (sums < (1.0 - tolerance if dense else 0.0)))
    if wrong.any():
        sample, place = _name_sample(wrong, first)
        raise StoreError(
            where,
            f"{sample}: the soft label is no distribution",
            expected=f"sum {'1 ±' if dense else 'at most 1 +'} {tolerance:.2g}",
            found=f"{sums[place]:.6f}",
            # Also a rounding may be so far off; what is farther may be logits.
            remedy="" if abs(sums[place] - 1) < _SUM else "If these are logits, call them so.",
        )


def _require_ranks(
    where: object,
    indices: NDArray[np.integer[Any]],
    probs: NDArray[np.float32],
    num_classes: int,
    first: int,
) -> None:
    _require_sums(where, probs, num_classes, first)
    ordered = np.sort(indices, axis=-1)
    faults = {
        "probabilities rise with rank": np.diff(probs, axis=-1) > 0,
        "a class twice": ordered[..., 1:] == ordered[..., :-1],
    }
    for what, fault in faults.items():
        if fault.any():
            sample, _ = _name_sample(np.asarray(fault.any(axis=-1)), first)
            raise StoreError(where, f"{sample}: {what}")


def _require_softmax(
    where: object,
    temperature: float,
    soft: NDArray[np.float32],
    logits: NDArray[np.float16],
    first: int,
) -> None:
    expected = soften(logits, temperature)
    # One step of float16: half of one is its rounding, the rest is for another machine's exp.
    outside = abs(soft - expected) > expected * 2.0**-10 + 2.0**-24
    wrong = np.asarray(outside.any(axis=-1))
    if wrong.any():
        sample, place = _name_sample(wrong, first)
        worst = int(np.argmax(abs(soft[place] - expected[place])))
        raise StoreError(
            where,
            f"{sample}: soft_labels are not softmax(logits / temperature)",
            expected=f"{expected[place][worst]:.6f} for class {worst}",
            found=f"{soft[place][worst]:.6f}",
        )


# --- Rounded to float16 as they are stored, and checked.


def round_logits(
    logits: NDArray[np.floating[Any]], first: int, where: object
) -> NDArray[np.float16]:
    """Logits of shape (n, K) or (n, V, K) as float16.

    Refused are NaN, infinity, what is beyond float16's 65504, and probabilities; the error
    names the sample, counted from `first`.
    """
    # Of logits not one row is a distribution but by chance.
    some = np.asarray(logits[:_LOOKED_AT], np.float32)
    if some.size and (some >= 0).all() and (abs(some.sum(axis=-1) - 1) < _SUM).all():
        raise StoreError(
            where,
            f"sample {first}: the logits are probabilities",
            found="rows of sum 1 without a negative number",
            remedy="Give what is before the softmax; of a table, call the array soft_labels.",
        )
    rounded = to_float16(logits)
    remedy = "Look at that image, and at the teacher's normalisation."
    require_numbers(where, "logits", rounded, first, unrounded=logits, remedy=remedy)
    return rounded


def round_soft_labels(
    soft_labels: NDArray[np.floating[Any]], first: int, where: object
) -> NDArray[np.float16]:
    """Probabilities as float16, with arguments as in `round_logits`; no others are taken."""
    rounded = _without_negative_zeros(to_float16(soft_labels))
    remedy = "If these are logits, call them so."
    require_numbers(where, "soft_labels", rounded, first, unrounded=soft_labels, remedy=remedy)
    _require_sums(where, to_float32(rounded), rounded.shape[-1], first)
    return rounded


def round_topk(
    indices: NDArray[np.integer[Any]],
    probs: NDArray[np.floating[Any]],
    num_classes: int,
    first: int,
    where: object,
) -> tuple[NDArray[np.integer[Any]], NDArray[np.float16]]:
    """Classes and probabilities of shape (n, k) or (n, V, k), by falling probability.

    Refused are classes that do not exist or come twice in a row, and numbers that are no
    probabilities or whose sum is above one.
    """
    rounded = _without_negative_zeros(to_float16(probs))
    require_numbers(where, "topk_probs", rounded, first, unrounded=probs, remedy="")
    require_class_numbers(where, indices, num_classes, first, remedy="")
    order = np.argsort(-to_float32(rounded), axis=-1, kind="stable")
    indices = np.take_along_axis(indices, order, axis=-1)
    rounded = np.take_along_axis(rounded, order, axis=-1)
    _require_ranks(where, indices, to_float32(rounded), num_classes, first)
    return indices, rounded


def _without_negative_zeros(rounded: NDArray[np.float16]) -> NDArray[np.float16]:
    # Their sign is what readers know negative numbers by.
    bits = rounded.view(np.uint16)
    bits[bits == _NEGATIVE_ZERO] = 0
    return rounded
