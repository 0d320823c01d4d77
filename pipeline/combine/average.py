"""Several teachers' labels of the same images, averaged as probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.combine.agreement import joint_terms, require_alike
from pipeline.combine.derive import NewRows, chunk_rows, derive_store, stepwise, with_rows
from pipeline.combine.match import match_rows
from pipeline.combine.sparse import Distances, sparse_rows
from pipeline.combine.subset import require_same_places
from pipeline.errors import JoinError, ParamsError
from pipeline.labels.format import DerivationFacts, TopKFacts
from pipeline.labels.half import to_float32
from pipeline.labels.incoming import round_soft_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.source import ProvenStore

__all__ = ["average_stores", "normalised_weights"]


def average_stores(
    sources: Sequence[ProvenStore],
    target: Path,
    *,
    weights: Sequence[float] | None = None,
    by_hash: bool = False,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Write the average of several stores' soft labels, in the order of the first one.

    Parameters
    ----------
    sources : sequence of ProvenStore
        Two or more, of the same images. Where all are top-k stores the average is one too,
        with the largest k of them.
    target : Path
    weights : sequence of float, optional
        Of each store, in any unit; by default equal.
    by_hash : bool
        Find the images of the other stores by their hashes, whatever their order.
    replace : bool
        Replace a store that is there.
    progress : callable, optional
        Called with the number of samples just written.

    Returns
    -------
    str
        The new store's identity.

    Raises
    ------
    StoreError
        When classes, temperature or views differ.
    JoinError
        When the images do, naming the first sample.
    """
    shares = normalised_weights(weights, len(sources))
    # A view is one of images of one size; whole images may be any teacher's.
    views = sources[0].store.attributes.views
    require_alike(
        sources,
        ("temperature", "views", *(["image_shape"] if views.augmentation else [])),
        "Bring them to one temperature with 'ltd-pipe store retemper'.",
    )
    rows = [_rows_like(sources[0], other, by_hash=by_hash) for other in sources]
    first, ks = sources[0].store, [source.store.top_k or 0 for source in sources]
    top_k = max(ks) if all(ks) else None
    known = with_rows(
        first.attributes, first.labels, first.sample_hash, **_changes(sources, shares, top_k)
    )
    distances = Distances()

    def block(begin: int, end: int) -> dict[str, NDArray[Any]]:
        total = _mean(sources, [each[begin:end] for each in rows], shares)
        if top_k:
            return sparse_rows(total, top_k, distances)
        return {"soft_labels": round_soft_labels(total, begin, target)}

    names = ("topk_indices", "topk_probs") if top_k else ("soft_labels",)
    return derive_store(
        target,
        known,
        NewRows(first.labels, first.sample_hash, names, stepwise(block, known)),
        rows=chunk_rows(sources, known),
        replace=replace,
        progress=progress,
        finish=(lambda: distances.noted(known)) if top_k else None,
    )


def normalised_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Shares that sum to one.

    Raises
    ------
    ParamsError
        When there are not as many as stores, or one is not above zero.
    """
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count or not all(0 < each < float("inf") for each in given):
        raise ParamsError(
            "weights",
            "are one number above zero for each store",
            expected=f"{count} numbers",
            found=", ".join(f"{each:g}" for each in given),
        )
    return [each / sum(given) for each in given]


def _mean(
    sources: Sequence[ProvenStore], rows: Sequence[NDArray[np.int64]], shares: Sequence[float]
) -> NDArray[np.float32]:
    total: NDArray[np.float32] | None = None
    for source, index, share in zip(sources, rows, shares, strict=True):
        soft = to_float32(source.soft(index))
        soft /= soft.sum(axis=-1, keepdims=True) / np.float32(share)
        total = soft if total is None else np.add(total, soft, out=total)
    assert total is not None  # noqa: S101
    return total


def _changes(
    sources: Sequence[ProvenStore], shares: Sequence[float], top_k: int | None
) -> dict[str, Any]:
    identities = [source.store.identity for source in sources]
    if len(set(shares)) > 1:
        identities = [
            f"{name} weight {share:.6g}" for name, share in zip(identities, shares, strict=True)
        ]
    teachers = {
        (teacher.sha256, teacher.normalisation): teacher
        for source in reversed(sources)
        for teacher in reversed(source.store.attributes.teachers)
    }
    return joint_terms(sources) | {
        "derived_from": DerivationFacts(operation="average", sources=tuple(identities)),
        "teachers": tuple(reversed(teachers.values())),
        "top_k": TopKFacts(k=top_k) if top_k else None,
    }


def _rows_like(first: ProvenStore, other: ProvenStore, *, by_hash: bool) -> NDArray[np.int64]:
    # The other store's rows in the order of the first one's.
    ours, theirs = first.store, other.store
    everything = np.arange(ours.num_samples)
    if ours.attributes.dataset.fingerprint == theirs.attributes.dataset.fingerprint:
        return everything
    if not by_hash:
        _refuse_other_images(first, other)
    found = match_rows((ours.sample_hash, ours.labels), (theirs.sample_hash, theirs.labels))
    if len(found.only_first) or len(found.only_second):
        here, there = (ours, theirs) if len(found.only_first) else (theirs, ours)
        missing = found.only_first if len(found.only_first) else found.only_second
        raise JoinError(
            there.path,
            f"has no label for row {missing[0]} of {here.path} ({len(missing)} such)",
            found=f"sample_hash {here.sample_hash[missing[0]]:016x}",
            remedy="Cut both to the same images with 'ltd-pipe store subset --data'.",
        )
    wrong = ours.labels != theirs.labels[found.second]
    if wrong.any():
        row = int(np.argmax(wrong))
        raise JoinError(
            theirs.path,
            f"row {found.second[row]}",
            expected=f"class {ours.labels[row]} as row {row} of {ours.path}",
            found=theirs.labels[found.second[row]],
        )
    require_same_places(theirs, found.second)
    return found.second


def _refuse_other_images(first: ProvenStore, other: ProvenStore) -> None:
    ours, theirs = first.store, other.store
    remedy = "Pass --by-hash when they are the same images in another order."
    count = min(ours.num_samples, theirs.num_samples)
    different = (ours.sample_hash[:count] != theirs.sample_hash[:count]) | (
        ours.labels[:count] != theirs.labels[:count]
    )
    if not different.any():
        raise JoinError(
            theirs.path,
            "number of samples",
            expected=f"{ours.num_samples} as {ours.path} has",
            found=theirs.num_samples,
            remedy="Cut both to the same images with 'ltd-pipe store subset --data'.",
        )
    row = int(np.argmax(different))
    raise JoinError(
        theirs.path,
        f"sample {row}",
        expected=f"sample_hash {ours.sample_hash[row]:016x}, class {ours.labels[row]} as "
        f"{ours.path} has",
        found=f"{theirs.sample_hash[row]:016x}, class {theirs.labels[row]}",
        remedy=remedy,
    )
