"""That soft labels are distributions, and the softmax of the logits beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.labels.format import row_sum_tolerance
from pipeline.labels.half import to_float32
from pipeline.labels.softmax import soften

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.labels.format import StoreAttributes

__all__ = ["require_distributions", "require_padding"]

# At a time: float32 copies stay in the cache, and a chunk of any size costs no more memory.
_BLOCK_ELEMENTS = 2**19


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

    Raises
    ------
    StoreError
        Naming the first sample that is wrong.
    """
    widest = rows["soft_labels" if attributes.top_k is None else "topk_probs"]
    step = max(_BLOCK_ELEMENTS // int(np.prod(widest.shape[1:])), 1)
    for at in range(0, len(widest), step):
        block = {name: column[at : at + step] for name, column in rows.items()}
        if attributes.top_k is not None:
            _require_ranks(where, attributes, block, first + at)
            continue
        soft = to_float32(block["soft_labels"])
        _require_sums(where, attributes, soft, first + at)
        if "logits" in block:
            _require_softmax(where, attributes, soft, block["logits"], first + at)


def require_padding(where: object, name: str, padding: NDArray[Any], fill: NDArray[Any]) -> None:
    """Refuse a last chunk that hides something behind its rows.

    Parameters
    ----------
    where : object
        The store, for the error.
    name : str
        Of the chunk file.
    padding : ndarray of shape (n, ...)
        What follows the last sample.
    fill : ndarray of shape (1,)
        The fill value, in the padding's type.
    """
    same = np.isnan(padding) if fill.dtype.kind == "f" else padding == fill
    if not same.all():
        raise StoreError(
            where, f"{name}: padding", expected=f"the fill value {fill[0]}", found="others"
        )


def _sample(wrong: NDArray[np.bool_], first: int) -> tuple[str, tuple[int, ...]]:
    # The first wrong row: how the user knows it, and its place in the block.
    place = tuple(int(axis[0]) for axis in np.nonzero(wrong))
    view = f", view {place[1]}" if len(place) > 1 else ""
    return f"sample {first + place[0]}{view}", place


def _require_sums(
    where: object, attributes: StoreAttributes, soft: NDArray[np.float32], first: int
) -> None:
    sums = soft.sum(axis=-1, dtype=np.float64)
    tolerance = row_sum_tolerance(attributes.num_classes)
    wrong = np.asarray(abs(sums - 1.0) > tolerance)
    if wrong.any():
        sample, place = _sample(wrong, first)
        raise StoreError(
            where,
            f"{sample}: the soft label is no distribution",
            expected=f"sum 1 ± {tolerance:.2g}",
            found=f"{sums[place]:.6f}",
        )


def _require_ranks(
    where: object, attributes: StoreAttributes, block: Mapping[str, NDArray[Any]], first: int
) -> None:
    indices, probs = block["topk_indices"], to_float32(block["topk_probs"])
    sums = probs.sum(axis=-1, dtype=np.float64)
    tolerance = row_sum_tolerance(attributes.num_classes)
    # With all K classes stored there is no rest.
    least = 1.0 - tolerance if probs.shape[-1] == attributes.num_classes else 0.0
    wrong: NDArray[np.bool_] = np.asarray((sums > 1.0 + tolerance) | (sums < least))
    if wrong.any():
        sample, place = _sample(wrong, first)
        raise StoreError(
            where,
            f"{sample}: the soft label is no distribution",
            expected=f"sum at most 1 + {tolerance:.2g}",
            found=f"{sums[place]:.6f}",
        )
    ordered = np.sort(indices, axis=-1)
    faults = {
        "probabilities rise with rank": np.diff(probs, axis=-1) > 0,
        "a class twice": ordered[..., 1:] == ordered[..., :-1],
    }
    for what, fault in faults.items():
        if fault.any():
            sample, _ = _sample(np.asarray(fault.any(axis=-1)), first)
            raise StoreError(where, f"{sample}: {what}")


def _require_softmax(
    where: object,
    attributes: StoreAttributes,
    soft: NDArray[np.float32],
    logits: NDArray[np.float16],
    first: int,
) -> None:
    expected = soften(logits, attributes.temperature)
    # One step of float16: half of one is its rounding, the rest is for another machine's exp.
    outside = abs(soft - expected) > expected * 2.0**-10 + 2.0**-24
    wrong = np.asarray(outside.any(axis=-1))
    if wrong.any():
        sample, place = _sample(wrong, first)
        worst = int(np.argmax(abs(soft[place] - expected[place])))
        raise StoreError(
            where,
            f"{sample}: soft_labels are not softmax(logits / temperature)",
            expected=f"{expected[place][worst]:.6f} for class {worst}",
            found=f"{soft[place][worst]:.6f}",
        )
