"""Tables of labels, .npz or Parquet, made into stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.combine.derive import NewRows, chunk_rows, derive_store, stepwise
from pipeline.combine.match import match_rows
from pipeline.combine.origin import Origin, foreign_attributes
from pipeline.errors import JoinError, ParamsError, StoreError
from pipeline.images.fingerprint import fingerprint
from pipeline.labels.half import to_float16
from pipeline.labels.incoming import round_logits, round_soft_labels, round_topk
from pipeline.labels.softmax import soften
from pipeline.provenance import sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.columns import Columns
    from pipeline.labels.format import StoreAttributes
    from pipeline.labels.join import ImagesLike

__all__ = ["store_of_table"]

_ARRAYS = (
    frozenset({"soft_labels"}),
    frozenset({"logits"}),
    frozenset({"soft_labels", "logits"}),
    frozenset({"topk_indices", "topk_probs"}),
)


def store_of_table(
    columns: Columns,
    target: Path,
    *,
    origin: Origin | None = None,
    images: ImagesLike | None = None,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Make a store of a table, in the memory of one chunk.

    Parameters
    ----------
    columns : Columns
        An opened file. One that was made of a store carries that store's attributes, and gives
        that store again, to the byte.
    target : Path
    origin : Origin, optional
        What is known of the labels, where the file does not carry it.
    images : Beton, optional
        The images of the rows, where the file does not carry their classes: its rows must have
        a `sample_hash`, and are of these images.
    replace : bool
        Replace a store that is there.
    progress : callable, optional
        Called with the number of samples just written, N in all.

    Returns
    -------
    str
        The store's identity.

    Raises
    ------
    StoreError
        When the file is damaged, or a row is no distribution.
    JoinError
        When the rows are of other images.
    ParamsError
        When the file carries no attributes, and no images are given.
    """
    found = frozenset(columns.row_shapes)
    if found not in _ARRAYS:
        raise StoreError(
            columns.path,
            "has arrays that make no store",
            expected="soft_labels, logits, both, or topk_indices and topk_probs",
            found=", ".join(sorted(found)),
        )
    attributes, labels, hashes, rows = (
        _carried(columns) if columns.carried else _joined(columns, origin or Origin(), images)
    )
    _require_shapes(columns, attributes)
    taking = _Taking(columns, attributes)
    block = stepwise(taking.block, attributes)
    new = NewRows(labels, hashes, taking.names, block)
    return derive_store(
        target, attributes, new, rows=rows, replace=replace, progress=progress, verify=True
    )


def _narrow(columns: Columns, name: str, dtype: type[np.integer[Any]]) -> NDArray[Any] | None:
    values = columns.column(name)
    if values is None:
        return None
    limits = np.iinfo(dtype)
    if int(values.min()) < limits.min or int(values.max()) > limits.max:
        raise StoreError(
            columns.path, name, expected=np.dtype(dtype).name, found=f"up to {values.max()}"
        )
    return values.astype(dtype)


def _carried(
    columns: Columns,
) -> tuple[StoreAttributes, NDArray[np.int32], NDArray[np.uint64], int]:
    assert columns.carried is not None  # noqa: S101
    attributes = columns.carried.attributes
    labels = _narrow(columns, "labels", np.int32)
    hashes = _narrow(columns, "sample_hash", np.uint64)
    if labels is None or hashes is None:
        raise StoreError(columns.path, "lacks the labels or the sample_hash of the store")
    if fingerprint(attributes.class_names, labels, hashes) != attributes.dataset.fingerprint:
        raise StoreError(
            columns.path,
            "its rows are not those of the store that it says it was made of: the fingerprint of "
            "labels and sample_hash differs",
            remedy="Remove the ltd_pipe metadata, and name the images with --data.",
        )
    return attributes, labels, hashes, columns.carried.rows


def _joined(
    columns: Columns, origin: Origin, images: ImagesLike | None
) -> tuple[StoreAttributes, NDArray[np.int32], NDArray[np.uint64], int]:
    hashes = _narrow(columns, "sample_hash", np.uint64)
    if hashes is None:
        raise JoinError(
            columns.path,
            "has no sample_hash, so that nothing says which image a row belongs to",
            remedy="Add it: BLAKE2b of 8 bytes over each image's file, read as a little-endian "
            "integer.",
        )
    if images is None:
        raise ParamsError(
            columns.path,
            "was not made of a store, and knows neither its classes nor its images",
            remedy="Name the images with --data.",
        )
    known = _narrow(columns, "labels", np.int32)
    # Where the file knows no classes, by hash alone: they are the data's to say.
    nothing = (np.zeros(len(hashes), np.int32), np.zeros_like(images.labels))
    ours, theirs = nothing if known is None else (known, images.labels)
    pairs = match_rows((hashes, ours), (images.sample_hash, theirs))
    if len(pairs.only_first):
        row = pairs.only_first[0]
        raise JoinError(
            columns.path,
            f"row {row} is no image of the data, or one that another row has "
            f"({len(pairs.only_first)} such)",
            found=f"sample_hash {hashes[row]:016x}",
        )
    labels = images.labels[pairs.second]
    if known is not None and (known != labels).any():
        row = int(np.argmax(known != labels))
        raise JoinError(
            columns.path,
            f"row {row}: label",
            expected=f"{labels[row]} of the data",
            found=known[row],
        )
    shape = columns.row_shapes.get("topk_probs")
    source = f"{columns.path.suffix.removeprefix('.') or 'table'}, SHA-256 "
    sources = (source + sha256_file(columns.path),)
    top_k = shape[-1] if shape else None
    attributes = foreign_attributes(origin, images.manifest, labels, hashes, sources, top_k)
    return attributes, labels, hashes, chunk_rows([], attributes)


def _require_shapes(columns: Columns, attributes: StoreAttributes) -> None:
    top_k = attributes.top_k.k if attributes.top_k else None
    if (top_k is not None) != ("topk_probs" in columns.row_shapes):
        raise StoreError(columns.path, "is dense where its attributes say top-k, or the reverse")
    if columns.num_samples != attributes.num_samples:
        raise StoreError(
            columns.path, "rows", expected=attributes.num_samples, found=columns.num_samples
        )
    for name, shape in columns.row_shapes.items():
        expected = attributes.layout(name, 1, top_k).row_shape
        if shape != expected:
            raise StoreError(
                columns.path,
                f"{name}: numbers per row",
                expected=" × ".join(map(str, expected)),
                found=" × ".join(map(str, shape)),
            )


class _Taking:
    # The rows of a table as a store has them: checked as a teacher's answers are.
    def __init__(self, columns: Columns, attributes: StoreAttributes) -> None:
        self._columns, self._attributes = columns, attributes
        self._given = frozenset(columns.row_shapes)
        dense = ("soft_labels", "logits") if "logits" in self._given else ("soft_labels",)
        self.names = ("topk_indices", "topk_probs") if "topk_probs" in self._given else dense

    def block(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        rows, where = self._columns.take(last - first), self._columns.path
        if "topk_probs" in rows:
            indices, probs = round_topk(
                rows["topk_indices"].astype(np.int64),
                rows["topk_probs"],
                self._attributes.num_classes,
                first,
                where,
            )
            return {"topk_indices": indices, "topk_probs": probs}
        taken = {}
        if "logits" in rows:
            taken["logits"] = round_logits(rows["logits"], first, where)
        if "soft_labels" in rows:
            taken["soft_labels"] = round_soft_labels(rows["soft_labels"], first, where)
        else:
            soft = soften(taken["logits"], self._attributes.temperature)
            taken["soft_labels"] = to_float16(soft)
        return taken
