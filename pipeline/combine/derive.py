"""Publishing a store whose rows are computed chunk by chunk from other stores' rows."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StoreError
from pipeline.evaluation.input_scale import require_order
from pipeline.images.fingerprint import fingerprint
from pipeline.labels.build import build_store
from pipeline.labels.format import StoreAttributes, row_bytes, rows_per_chunk
from pipeline.labels.read import SoftLabels
from pipeline.labels.verify import verify_store
from pipeline.labels.write import require_replaceable
from pipeline.publish import exclusive, replace_tree, require_free

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.source import ProvenStore
    from pipeline.labels.arrays import ArrayLayout

__all__ = ["NewRows", "chunk_rows", "derive_store", "stepwise", "with_rows"]

# Float32 copies of 4 MiB, however many classes the rows of a sparse chunk expand to.
_STEP_ELEMENTS = 2**20


@dataclass(frozen=True)
class NewRows:
    """What the rows of a new store will be.

    Attributes
    ----------
    labels : ndarray of shape (N,), dtype int32
    sample_hash : ndarray of shape (N,), dtype uint64
    arrays : tuple of str
        The other arrays.
    block : callable
        Called with the first row and the one after the last; gives the rows of each of
        `arrays` by name. The calls come chunk by chunk, each once.
    """

    labels: NDArray[np.int32]
    sample_hash: NDArray[np.uint64]
    arrays: tuple[str, ...]
    block: Callable[[int, int], dict[str, NDArray[Any]]]


def derive_store(
    target: Path,
    attributes: StoreAttributes,
    new: NewRows,
    *,
    rows: int,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
    finish: Callable[[], StoreAttributes] | None = None,
    verify: bool = False,
) -> str:
    """Write a store in the memory of one chunk, and give it its name by one rename.

    Parameters
    ----------
    target : Path
    attributes : StoreAttributes
    new : NewRows
    rows : int
        Rows per chunk.
    replace : bool
        Replace a store that is there.
    progress : callable, optional
        Called with the number of samples just written, N in all.
    finish : callable, optional
        Gives the attributes when all rows were written, where they are known only then.
    verify : bool
        Verify the store before it is published: for rows that come from no store.

    Returns
    -------
    str
        The store's identity.

    Raises
    ------
    WriteError
        When the target exists, or the disk refuses. Nothing is left behind.
    BusyError
        When another process writes to the same target.
    """
    require_replaceable(target, replace=replace)
    chunks = _Chunks(new, rows)
    top_k = attributes.top_k.k if attributes.top_k else None
    layouts = [
        attributes.layout(name, rows, top_k) for name in ("labels", "sample_hash", *new.arrays)
    ]
    require_free(target.parent, sum(each.num_chunks * each.file_bytes for each in layouts))
    beside = target.with_name(f".{target.name}.part")
    with exclusive(target):
        shutil.rmtree(beside, ignore_errors=True)
        try:
            identity = build_store(
                beside,
                finish or (lambda: attributes),
                {layout: chunks.source(layout) for layout in layouts},
                progress,
                # In order, as files of other formats are read; the disk is what takes the time.
                threads=1,
            )
            if verify:
                _verify(beside, target)
            replace_tree(beside, target)
        finally:
            # Gone already when all went well; made again in minutes when not.
            shutil.rmtree(beside, ignore_errors=True)
    return identity


def _verify(beside: Path, target: Path) -> None:
    try:
        verify_store(beside)
        _require_order(SoftLabels.open(beside))
    except StoreError as error:
        raise StoreError(
            target,
            f"was not published: {error.what}",
            expected=error.expected,
            found=error.found,
            remedy=error.remedy,
        ) from error


def _require_order(store: SoftLabels) -> None:
    """Refuse labels that are right but for the order of their classes."""
    sparse, parts = store.top_k is not None, []
    rows = np.arange(store.num_samples)
    step = max(_STEP_ELEMENTS // (store.num_views * store.num_classes), 1)
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        # Of several views the first; the largest of a sparse row stands first.
        found = store.gather_topk(part)[0] if sparse else store.gather(part)
        found = found.reshape(len(part), -1, found.shape[-1])[:, 0]
        parts.append(found[:, 0].astype(np.int64) if sparse else found.argmax(axis=1))
    names = store.attributes.class_names
    require_order(store.labels, np.concatenate(parts), names, store.path, "", StoreError)


class _Chunks:
    # The arrays of a chunk are asked for one by one, and computed together.
    def __init__(self, new: NewRows, rows: int) -> None:
        self._new, self._rows = new, rows
        self._waiting: dict[str, NDArray[Any]] = {}

    def source(self, layout: ArrayLayout) -> Callable[[int], NDArray[Any]]:
        if layout.name in ("labels", "sample_hash"):
            whole: NDArray[Any] = getattr(self._new, layout.name)
            return lambda chunk: whole[chunk * self._rows : (chunk + 1) * self._rows]
        return lambda chunk: self._take(layout, chunk)

    def _take(self, layout: ArrayLayout, chunk: int) -> NDArray[Any]:
        if not self._waiting:
            first = chunk * self._rows
            self._waiting = self._new.block(first, first + layout.rows_in(chunk))
        return self._waiting.pop(layout.name)


def with_rows(
    attributes: StoreAttributes,
    labels: NDArray[np.int32],
    sample_hash: NDArray[np.uint64],
    **changed: Any,
) -> StoreAttributes:
    """The same attributes for other rows: their number, and their fingerprint."""
    found = fingerprint(attributes.class_names, labels, sample_hash)
    values = {name: getattr(attributes, name) for name in StoreAttributes.model_fields}
    values |= {"num_samples": len(labels)} | changed
    values["dataset"] = values["dataset"].model_copy(update={"fingerprint": found})
    if values["labelling"] and found != attributes.dataset.fingerprint:
        values["labelling"] = values["labelling"].model_copy(update={"pixels_sha256": None})
    return StoreAttributes(**values)


def chunk_rows(sources: Sequence[ProvenStore], attributes: StoreAttributes) -> int:
    """Rows per chunk of a new store: as its sources have them, so that equal rows are equal files.

    A source of a single chunk is as long as its samples are many, which says nothing.
    """
    several = [each.rows for each in sources if each.rows < each.store.num_samples]
    top_k = attributes.top_k.k if attributes.top_k else None
    rows = max(several, default=rows_per_chunk(row_bytes(attributes, top_k)))
    return min(rows, attributes.num_samples)


def stepwise(
    block: Callable[[int, int], dict[str, NDArray[Any]]], attributes: StoreAttributes
) -> Callable[[int, int], dict[str, NDArray[Any]]]:
    """The same block of `NewRows`, computed from few dense rows at a time."""
    step = max(_STEP_ELEMENTS // (attributes.views.count * attributes.num_classes), 1)

    def in_steps(first: int, last: int) -> dict[str, NDArray[Any]]:
        parts = [block(at, min(at + step, last)) for at in range(first, last, step)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return in_steps
