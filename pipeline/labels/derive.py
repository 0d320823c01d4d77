"""New stores whose rows are computed from other stores' rows, or from other files.

Each operation (`subset` and `retemper` here, `merge` and `average` in merge.py, `convert` in
convert.py) gives a `DerivedStore`: its attributes, and how a few of its rows are computed. Writing
it takes the memory of one chunk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import ParamsError, StoreError
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.format import (
    DatasetFacts,
    DerivationFacts,
    DistanceFacts,
    StoreAttributes,
    TopKFacts,
    row_bytes,
    rows_per_chunk,
    to_float16,
    to_float32,
)
from ltd_pipe.labels.layout import SPARSE
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.labels.softmax import (
    largest,
    mean_softened,
    require_temperature,
    solve_temperature,
    top_probability,
    total_variation,
)
from ltd_pipe.labels.softness import evenly_spaced, uniform_below
from ltd_pipe.labels.writer import build_store, require_replaceable
from ltd_pipe.publish import exclusive, replace_tree, require_free
from ltd_pipe.text import nfc

if TYPE_CHECKING:
    from ltd_pipe.labels.join import ImagesLike, ManifestLike
    from ltd_pipe.labels.layout import ArrayLayout

    # What a few rows of a new store hold, by array.
    Block = dict[str, NDArray[Any]]

_ALWAYS = ("labels", "sample_hash")
# Float32 copies of 4 MiB, however many classes the rows of a sparse chunk expand to.
_BLOCK_ELEMENTS = 2**20
# A few MiB of logits say how soft the labels are.
_SAMPLE_ELEMENTS = 2**22


# --- What all operations share: blocks of rows, attributes, writing.


@dataclass(frozen=True)
class DerivedStore:
    """A store that is still to be written.

    Attributes
    ----------
    attributes : StoreAttributes
    labels : ndarray of shape (N,), dtype int32
    sample_hash : ndarray of shape (N,), dtype uint64
    arrays : tuple of str
        The other arrays.
    block : callable
        Called with consecutive row numbers; gives these rows of each of `arrays`. The blocks come
        in order, each row once.
    rows : int
        Rows per chunk.
    finish : callable, optional
        Gives the attributes when all rows were written, where they are known only then.
    verify : bool
        Verify the store before it is published: for rows that come from no store.
    """

    attributes: StoreAttributes
    labels: NDArray[np.int32]
    sample_hash: NDArray[np.uint64]
    arrays: tuple[str, ...]
    block: Callable[[NDArray[np.int64]], Block]
    rows: int
    finish: Callable[[], StoreAttributes] | None = None
    verify: bool = False

    def write(
        self,
        target: Path,
        *,
        replace: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> str:
        """Write the store, and give it its name by one rename.

        Parameters
        ----------
        target : Path
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
            When a source is damaged, or the store would not be sound. Nothing is left behind.
        WriteError
            When the target exists, or the disk refuses.
        BusyError
            When another process writes to the same target.
        """
        require_replaceable(target, replace=replace)
        known, computed = self.attributes, dict[str, "NDArray[Any]"]()
        top_k = known.top_k.k if known.top_k else None
        layouts = [known.layout(name, self.rows, top_k) for name in (*_ALWAYS, *self.arrays)]
        require_free(target.parent, sum(each.num_chunks * each.file_bytes for each in layouts))

        def rows_of(layout: ArrayLayout, chunk: int) -> NDArray[Any]:
            # The arrays of a chunk are asked for one by one, and computed together.
            if not computed:
                first = chunk * self.rows
                computed.update(self._rows(first, first + layout.rows_in(chunk)))
            return computed.pop(layout.name)

        beside = target.with_name(f".{target.name}.part")
        with exclusive(target):
            shutil.rmtree(beside, ignore_errors=True)
            try:
                identity = build_store(
                    beside,
                    self.finish or (lambda: known),
                    {layout: partial(rows_of, layout) for layout in layouts},
                    progress,
                    # In order, as files of other formats are read; the disk takes the time.
                    threads=1,
                )
                if self.verify:
                    _verify(beside, target)
                replace_tree(beside, target)
            finally:
                # Gone already when all went well; made again in minutes when not.
                shutil.rmtree(beside, ignore_errors=True)
        return identity

    def _rows(self, first: int, last: int) -> Block:
        width = self.attributes.views.count * self.attributes.num_classes
        blocks = [self.block(index) for index in row_blocks(first, last, width)]
        rows = {name: np.concatenate([each[name] for each in blocks]) for name in self.arrays}
        return rows | {name: getattr(self, name)[first:last] for name in _ALWAYS}


def _verify(beside: Path, target: Path) -> None:
    # They import torch, which the rows of another store do not need.
    from ltd_pipe.evaluation.class_order import require_order
    from ltd_pipe.labels.verify import verify_store

    try:
        verify_store(beside)
        store = SoftLabels.open(beside)
        names = store.attributes.class_names
        require_order(store.labels, _top_classes(store), names, store.path, "", StoreError)
    except StoreError as error:
        raise StoreError(
            target,
            f"was not published: {error.what}",
            expected=error.expected,
            found=error.found,
            remedy=error.remedy,
        ) from error


def _top_classes(store: SoftLabels) -> NDArray[np.int64]:
    # The most probable class of each sample's first view.
    parts = []
    for index in row_blocks(0, store.num_samples, store.num_views * store.num_classes):
        # The largest of a sparse row stands first.
        rows = store.gather(index) if store.top_k is None else store.gather_topk(index)[0]
        rows = rows.reshape(len(index), -1, rows.shape[-1])[:, 0]
        parts.append(rows.argmax(axis=1) if store.top_k is None else rows[:, 0].astype(np.int64))
    return np.concatenate(parts)


def row_blocks(first: int, last: int, width: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of rows of so many elements, as many at a time as float32 copies stay small."""
    step = max(_BLOCK_ELEMENTS // width, 1)
    for at in range(first, last, step):
        yield np.arange(at, min(at + step, last))


def answer_arrays(store: SoftLabels) -> tuple[str, ...]:
    """The arrays with an answer for each row: all but `labels` and `sample_hash`."""
    return tuple(name for name in store.arrays if name not in _ALWAYS)


def attributes_of_rows(
    known: StoreAttributes,
    labels: NDArray[np.int32],
    sample_hash: NDArray[np.uint64],
    **changed: Any,
) -> StoreAttributes:
    """The same attributes for other rows: their number, and their fingerprint."""
    found = fingerprint(known.class_names, labels, sample_hash)
    values = {name: getattr(known, name) for name in StoreAttributes.model_fields}
    values |= {"num_samples": len(labels)} | changed
    values["dataset"] = values["dataset"].model_copy(update={"fingerprint": found})
    if values["labelling"] and found != known.dataset.fingerprint:
        values["labelling"] = values["labelling"].model_copy(update={"pixels_sha256": None})
    return StoreAttributes(**values)


def dataset_of(manifest: ManifestLike) -> DatasetFacts:
    """The images, as a store names them."""
    return DatasetFacts(
        name=manifest.dataset, split=manifest.split, fingerprint=manifest.fingerprint
    )


def chunk_rows(sources: Sequence[SoftLabels], attributes: StoreAttributes) -> int:
    """Rows per chunk of a new store: as its sources have them, so that equal rows are equal files.

    A source of a single chunk is as long as its samples are many, which says nothing.
    """
    lengths = [(each.arrays["labels"].layout.rows, each.num_samples) for each in sources]
    top_k = attributes.top_k.k if attributes.top_k else None
    default = rows_per_chunk(row_bytes(attributes, top_k))
    rows = max((rows for rows, samples in lengths if rows < samples), default=default)
    return min(rows, attributes.num_samples)


class Distances:
    """Total variation between dense rows and the sparse ones that stand for them."""

    def __init__(self) -> None:
        self._total, self._worst, self._rows, self._samples = 0.0, 0.0, 0, 0

    def largest(self, soft: NDArray[np.float32], top_k: int) -> Block:
        """The arrays of a top-k store for the next dense rows, of shape (n, K) or (n, V, K)."""
        indices, probs = largest(soft, top_k)
        distance = total_variation(soft, indices, probs)
        self._total += float(distance.sum(dtype=np.float64))
        self._worst = max(self._worst, float(distance.max()))
        self._rows += distance.size
        self._samples += len(distance)
        return {"topk_indices": indices, "topk_probs": probs}

    def noted(self, attributes: StoreAttributes) -> StoreAttributes:
        """The attributes with the distances of all rows."""
        assert attributes.top_k is not None  # noqa: S101
        mean = self._total / self._rows
        known = DistanceFacts.measured(mean, self._worst, self._samples)
        facts = TopKFacts(k=attributes.top_k.k, total_variation=known)
        return attributes.model_copy(update={"top_k": facts})


def require_same_places(
    store: SoftLabels, rows: NDArray[np.int64], places: NDArray[np.int64] | None = None
) -> None:
    """Refuse to move the rows of augmented views to other places; by default they are 0, 1, 2, ….

    What view v of sample i shows follows from i: at another place it would be another crop.
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


# --- Some rows of a store, or some of its arrays, as a store of its own.


def subset(
    store: SoftLabels,
    rows: NDArray[np.int64],
    *,
    images: ImagesLike | None = None,
    arrays: Sequence[str] | None = None,
    view: int | None = None,
) -> DerivedStore:
    """Some rows of a store, in the order in which they are named.

    Parameters
    ----------
    store : SoftLabels
    rows : ndarray of shape (n,), dtype int64
        Rows of the store, at least one.
    images : Beton, optional
        Whose rows these are: the new store takes the data set's name and split from it.
    arrays : sequence of str, optional
        Which arrays to keep; by default all.
    view : int, optional
        Keep only this view.

    Raises
    ------
    StoreError, ParamsError
        When what is asked for cannot be cut out of it.
    """
    names = kept_arrays(store, arrays)
    require_same_places(store, rows)
    changes: dict[str, Any] = {
        "derived_from": DerivationFacts(operation="subset", sources=(store.identity,))
    }
    if images is not None:
        changes["dataset"] = dataset_of(images.manifest)
    if view is not None:
        store.require_view(view)
        if view and store.attributes.views.augmentation is not None:
            raise StoreError(
                store.path,
                f"view {view} alone would be taken for view 0, which shows other crops",
                expected="view 0",
                remedy="Keep all views.",
            )
        changes["views"] = store.attributes.views.model_copy(update={"count": 1})
    labels, hashes = store.labels[rows], store.sample_hash[rows]
    attributes = attributes_of_rows(store.attributes, labels, hashes, **changes)
    return DerivedStore(
        attributes,
        labels,
        hashes,
        names,
        lambda at: {name: store.arrays[name].gather(rows[at], None, view) for name in names},
        chunk_rows([store], attributes),
    )


def kept_arrays(store: SoftLabels, arrays: Sequence[str] | None) -> tuple[str, ...]:
    """The arrays to keep beside `labels` and `sample_hash`, soft labels among them; all of None."""
    known = answer_arrays(store)
    if arrays is None:
        return known
    for name in arrays:
        if name not in store.arrays:
            expected = f"of {', '.join(store.arrays)}"
            raise StoreError(store.path, f"has no array '{name}'", expected=expected)
    needed = [name for name in known if name != "logits"]
    if not set(needed) <= set(arrays):
        raise ParamsError(
            "arrays",
            "a store is nothing without its soft labels",
            expected=f"{', '.join(needed)} among them",
            found=", ".join(arrays),
        )
    return tuple(name for name in known if name in arrays)


def rows_of_range(store: SoftLabels, first: int | None, last: int | None) -> NDArray[np.int64]:
    """Rows `first` to `last` - 1, as Python slices count; never none."""
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
    """The rows of a data set that has the same classes, found by hash, in its order."""
    store.require_classes(images.manifest.class_names, data)
    return store.rows_of(images.sample_hash, images.labels, data)


def rows_of_classes(store: SoftLabels, classes: Sequence[str]) -> NDArray[np.int64]:
    """The rows whose ground truth is one of these classes, in the store's order."""
    names = [nfc(name) for name in store.attributes.class_names]
    classes = [nfc(name) for name in classes]
    for name in classes:
        if name not in names:
            expected = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise StoreError(store.path, f"has no class '{name}'", expected=expected)
    rows = np.flatnonzero(np.isin(store.labels, [names.index(name) for name in classes]))
    if not len(rows):
        raise StoreError(store.path, f"has no sample of class {', '.join(classes)}")
    return rows.astype(np.int64)


# --- A store at another temperature, or with each row's largest probabilities only.


def retemper(
    store: SoftLabels, temperature: float | None = None, *, top_k: int | None = None
) -> DerivedStore:
    """The labels of a store anew, from its logits.

    But for `derived_from`, a dense store is the one that the teacher's logits would have given at
    that temperature.

    Parameters
    ----------
    store : SoftLabels
        With logits, unless the temperature stays.
    temperature : float, optional
        By default the store's own.
    top_k : int, optional
        Keep so many probabilities per row, and no logits.

    Raises
    ------
    StoreError
        When the store has no logits, or is sparse already.
    ParamsError
        When temperature or top-k are out of range, or nothing would change.
    """
    known, operations = store.attributes, []
    changes: dict[str, Any] = {}
    if temperature is not None and require_temperature(temperature) != known.temperature:
        store.require_logits()
        changes["temperature"] = temperature
        operations.append("retemper")
    if store.top_k is not None:
        raise StoreError(
            store.path,
            f"has only the {store.top_k} largest probabilities of each row",
            expected="all of them, or logits",
            remedy="Label again, or take the dense store that it was made of.",
        )
    if top_k is not None:
        if not 1 <= top_k <= store.num_classes:
            raise ParamsError(
                "top_k",
                "is out of range",
                expected=f"1 to {store.num_classes}, the number of classes",
                found=top_k,
            )
        changes["top_k"] = TopKFacts(k=top_k)
        operations.append("top-k")
    if not operations:
        raise ParamsError(
            store.path,
            "nothing would change",
            remedy="Name another temperature, or how many probabilities to keep.",
        )
    derived = DerivationFacts(operation=", ".join(operations), sources=(store.identity,))
    attributes = attributes_of_rows(
        known, store.labels, store.sample_hash, derived_from=derived, **changes
    )
    distances = Distances()

    def block(index: NDArray[np.int64]) -> Block:
        if not store.has_logits:
            assert top_k is not None  # noqa: S101
            soft = to_float32(store.gather(index))
            soft /= soft.sum(axis=-1, keepdims=True)
            return distances.largest(soft, top_k)
        logits = store.gather_logits(index)
        soft = mean_softened([logits], attributes.temperature)
        if top_k is not None:
            return distances.largest(soft, top_k)
        return {"logits": logits, "soft_labels": to_float16(soft)}

    return DerivedStore(
        attributes,
        store.labels,
        store.sample_hash,
        SPARSE if top_k else answer_arrays(store),
        block,
        chunk_rows([] if top_k else [store], attributes),
        finish=(lambda: distances.noted(attributes)) if top_k else None,
    )


def require_informative(store: SoftLabels, temperature: float) -> None:
    """Refuse a temperature at which the labels would be as good as uniform, before the work."""
    store.require_logits()
    width = store.num_views * store.num_classes
    rows = evenly_spaced(store.num_samples, _SAMPLE_ELEMENTS // width)
    total = top_probability([store.gather_logits(rows)], temperature)
    top = total / (len(rows) * store.num_views)
    limit = uniform_below(store.num_classes)
    if top < limit:
        raise StoreError(
            store.path,
            f"its labels at temperature {temperature:g} are as good as uniform: mean top "
            "probability",
            expected=f"{limit:.3g} or more",
            found=f"{top:.3g}",
            remedy="Lower the temperature, or pass --allow-poor-labels.",
        )


def temperature_for(store: SoftLabels, target_top_probability: float) -> float:
    """The temperature at which the mean top probability is so high; some 26 passes over logits."""
    store.require_logits()
    rows, width = store.num_samples, store.num_views * store.num_classes
    return solve_temperature(
        lambda: ([store.gather_logits(index)] for index in row_blocks(0, rows, width)),
        target_top_probability,
    )
