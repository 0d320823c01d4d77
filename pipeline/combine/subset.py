"""Some rows of a store, or some of its arrays, as a store of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.combine.derive import NewRows, chunk_rows, derive_store, with_rows
from pipeline.errors import ParamsError, StoreError
from pipeline.labels.format import DerivationFacts
from pipeline.printable import nfc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.source import ProvenStore
    from pipeline.labels.join import ImagesLike
    from pipeline.labels.read import SoftLabels

__all__ = [
    "kept_arrays",
    "require_same_places",
    "rows_of_classes",
    "rows_of_images",
    "rows_of_range",
    "subset_store",
]

_ALWAYS = ("labels", "sample_hash")


def subset_store(
    source: ProvenStore,
    target: Path,
    rows: NDArray[np.int64],
    *,
    images: ImagesLike | None = None,
    arrays: Sequence[str] | None = None,
    view: int | None = None,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Write some rows of a store, in the order that they are named.

    Parameters
    ----------
    source : ProvenStore
    target : Path
    rows : ndarray of shape (n,), dtype int64
        Rows of the source, at least one.
    images : Beton, optional
        Whose rows these are: the new store takes the data set's name and split from it.
    arrays : sequence of str, optional
        Which arrays to keep; by default all.
    view : int, optional
        Keep only this view.
    replace : bool
        Replace a store that is there.
    progress : callable, optional
        Called with the number of samples just written, n in all.

    Returns
    -------
    str
        The new store's identity.

    Raises
    ------
    StoreError
        When the source is damaged, or what is asked for cannot be cut out of it.
    """
    store = source.store
    names = kept_arrays(source, arrays)
    require_same_places(store, rows)
    _require_view(store, view)
    labels, hashes = store.labels[rows], store.sample_hash[rows]
    attributes = with_rows(store.attributes, labels, hashes, **_changes(store, images, view))
    new = NewRows(
        labels,
        hashes,
        names,
        lambda first, last: {name: source.gather(name, rows[first:last], view) for name in names},
    )
    size = chunk_rows([source], attributes)
    return derive_store(target, attributes, new, rows=size, replace=replace, progress=progress)


def _changes(store: SoftLabels, images: ImagesLike | None, view: int | None) -> dict[str, Any]:
    known = store.attributes
    changes: dict[str, Any] = {
        "derived_from": DerivationFacts(operation="subset", sources=(store.identity,))
    }
    if images is not None:
        named = {"name": images.manifest.dataset, "split": images.manifest.split}
        changes["dataset"] = known.dataset.model_copy(update=named)
    if view is not None:
        changes["views"] = known.views.model_copy(update={"count": 1})
    return changes


def kept_arrays(source: ProvenStore, arrays: Sequence[str] | None) -> tuple[str, ...]:
    """The arrays to keep beside `labels` and `sample_hash`; by default all.

    Raises
    ------
    StoreError
        When the source has no such array.
    ParamsError
        When nothing would be left that is a label.
    """
    if arrays is None:
        return source.names
    store = source.store
    for name in arrays:
        if name not in store.arrays:
            raise StoreError(
                store.path,
                f"has no array '{name}'",
                expected=f"of {', '.join(store.arrays)}",
            )
    kept = tuple(name for name in source.names if name in arrays)
    needed = [name for name in source.names if name != "logits"]
    missing = [name for name in needed if name not in kept]
    if missing:
        raise ParamsError(
            "arrays",
            "a store is nothing without its soft labels",
            expected=f"{', '.join(needed)} among them",
            found=", ".join(arrays),
        )
    return kept


def require_same_places(
    store: SoftLabels, rows: NDArray[np.int64], places: NDArray[np.int64] | None = None
) -> None:
    """Refuse to move the rows of augmented views, which could then not be drawn again.

    What view v of sample i shows follows from i: at another place it would be another crop.

    Parameters
    ----------
    store : SoftLabels
    rows : ndarray of shape (n,), dtype int64
        Rows of the store.
    places : ndarray of shape (n,), dtype int64, optional
        Where they will be; by default 0, 1, 2, …

    Raises
    ------
    StoreError
        When the store's views are augmented and a row would get another number.
    """
    if store.attributes.views.augmentation is None:
        return
    places = np.arange(len(rows)) if places is None else places
    moved = rows != places
    if moved.any():
        first = int(np.argmax(moved))
        raise StoreError(
            store.path,
            f"row {rows[first]} would become row {places[first]}, and what its views show "
            "follows from the row's number",
            remedy="Label those images with the same views instead.",
        )


def _require_view(store: SoftLabels, view: int | None) -> None:
    if view is None:
        return
    store.require_view(view)
    if view and store.attributes.views.augmentation is not None:
        raise StoreError(
            store.path,
            f"view {view} alone would be taken for view 0, which shows other crops",
            expected="view 0",
            remedy="Keep all views.",
        )


def rows_of_range(store: SoftLabels, first: int | None, last: int | None) -> NDArray[np.int64]:
    """Rows `first` to `last` - 1, as Python slices count; never none.

    Raises
    ------
    ParamsError
        When the range is empty or reaches beyond the store.
    """
    stop = store.num_samples if last is None else last
    start = 0 if first is None else first
    if not 0 <= start < stop <= store.num_samples:
        raise ParamsError(
            "rows",
            "is out of range",
            expected=f"A:B with 0 <= A < B <= {store.num_samples}",
            found=f"{start}:{stop}",
        )
    return np.arange(start, stop)


def rows_of_images(store: SoftLabels, images: ImagesLike, data: str) -> NDArray[np.int64]:
    """The rows of a data set that has the same classes, found by hash, in its order.

    Raises
    ------
    JoinError
        When classes differ, or an image has no row, or one of another class.
    """
    store.require_classes(images.manifest.class_names, data)
    return store.rows_of(images.sample_hash, images.labels, data)


def rows_of_classes(store: SoftLabels, classes: Sequence[str]) -> NDArray[np.int64]:
    """The rows whose ground truth is one of these classes, in the store's order.

    Raises
    ------
    StoreError
        When the store knows no such class, or has no row of any of them.
    """
    names = [nfc(name) for name in store.attributes.class_names]
    classes = [nfc(name) for name in classes]
    for name in classes:
        if name not in names:
            raise StoreError(
                store.path,
                f"has no class '{name}'",
                expected=", ".join(names[:5]) + (", …" if len(names) > 5 else ""),
            )
    rows = np.flatnonzero(np.isin(store.labels, [names.index(name) for name in classes]))
    if not len(rows):
        raise StoreError(store.path, f"has no sample of class {', '.join(classes)}")
    return rows.astype(np.int64)
