"""Publishing a store whose rows are computed chunk by chunk from other stores' rows."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ltd_pipe import provenance
from ltd_pipe.errors import ParamsError, StoreError
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.format import (
    DatasetFacts,
    DerivationFacts,
    DistanceFacts,
    StoreAttributes,
    TeacherFacts,
    TopKFacts,
    row_bytes,
    rows_per_chunk,
    to_float16,
    to_float32,
)
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.labels.softmax import (
    bisect_temperature,
    largest,
    mean_softened,
    require_temperature,
    top_probability,
    total_variation,
)
from ltd_pipe.labels.softness import uniform_below
from ltd_pipe.labels.verify import verify_store
from ltd_pipe.labels.writer import build_store, require_replaceable
from ltd_pipe.publish import exclusive, replace_tree, require_free
from ltd_pipe.text import nfc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ltd_pipe.labels.foreign import ProvenStore
    from ltd_pipe.labels.format import ArrayLayout
    from ltd_pipe.labels.join import ImagesLike, ManifestLike


# --- What is known of labels that another program made: only what can be proved or is told.


@dataclass(frozen=True)
class Origin:
    """What the person who converts labels knows of them.

    Attributes
    ----------
    teachers : tuple of TeacherFacts
        Empty: unknown. A store names a teacher by the hash of its weights, so a name alone
        is not enough.
    temperature : float
        That the logits were divided by.
    licence, citation : str or None
    """

    teachers: tuple[TeacherFacts, ...] = ()
    temperature: float = 1.0
    licence: str | None = None
    citation: str | None = None

    @classmethod
    def told(
        cls,
        sha256: str | None,
        architecture: str | None,
        temperature: float | None,
        licence: str | None = None,
        citation: str | None = None,
    ) -> Origin:
        """From a teacher's hash and architecture: both or neither.

        Raises
        ------
        ParamsError
            When one is missing, or the hash is none.
        """
        if (sha256 is None) != (architecture is None):
            raise ParamsError(
                "teacher",
                "is named by the SHA-256 of its weights and by its architecture",
                expected="both, or neither",
                found="one of them",
            )
        teachers: tuple[TeacherFacts, ...] = ()
        if sha256 is not None and architecture is not None:
            if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
                raise ParamsError(
                    "teacher",
                    "SHA-256",
                    expected="64 lower-case hexadecimal digits, as sha256sum prints them",
                    found=repr(sha256)[:80],
                )
            teachers = (TeacherFacts(sha256=sha256, architecture=architecture),)
        return cls(teachers, 1.0 if temperature is None else temperature, licence, citation)


def foreign_attributes(
    origin: Origin,
    images: ManifestLike,
    labels: NDArray[np.int32],
    sample_hash: NDArray[np.uint64],
    sources: tuple[str, ...],
    top_k: int | None,
) -> StoreAttributes:
    """Attributes of a store whose rows another program made.

    Parameters
    ----------
    origin : Origin
    images : ManifestLike
        The images that the rows belong to.
    labels, sample_hash : ndarray of shape (N,)
        Of the rows, in their order.
    sources : tuple of str
        What the labels were converted from.
    top_k : int, optional
        Of sparse labels; how far they are from dense ones is unknown.
    """
    return StoreAttributes(
        temperature=origin.temperature,
        num_samples=len(labels),
        num_classes=len(images.class_names),
        class_names=images.class_names,
        dataset=DatasetFacts(
            name=images.dataset,
            split=images.split,
            fingerprint=fingerprint(images.class_names, labels, sample_hash),
        ),
        teachers=origin.teachers,
        software=provenance.software(),
        licence=origin.licence,
        citation=origin.citation,
        derived_from=DerivationFacts(operation="convert", sources=sources),
        top_k=TopKFacts(k=top_k) if top_k else None,
    )


# --- Publishing a store whose rows are computed chunk by chunk from other stores' rows.


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
    from ltd_pipe.evaluation.input_scale import require_order

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


# --- Some rows of a store, or some of its arrays, as a store of its own.


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
    attributes = with_rows(store.attributes, labels, hashes, **_subset_changes(store, images, view))
    new = NewRows(
        labels,
        hashes,
        names,
        lambda first, last: {name: source.gather(name, rows[first:last], view) for name in names},
    )
    size = chunk_rows([source], attributes)
    return derive_store(target, attributes, new, rows=size, replace=replace, progress=progress)


def _subset_changes(
    store: SoftLabels, images: ImagesLike | None, view: int | None
) -> dict[str, Any]:
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


# --- The largest probabilities of computed rows, and what is lost by keeping only these.


class Distances:
    """Total variation between dense rows and the sparse ones that stand for them."""

    def __init__(self) -> None:
        self._total, self._worst, self._rows, self._samples = 0.0, 0.0, 0, 0

    def add(self, distance: NDArray[np.float32]) -> None:
        """Take the distances of the next samples, of shape (n,) or (n, V)."""
        self._total += float(distance.sum(dtype=np.float64))
        self._worst = max(self._worst, float(distance.max()))
        self._rows += distance.size
        self._samples += len(distance)

    def noted(self, attributes: StoreAttributes) -> StoreAttributes:
        """The attributes with the distances of all rows."""
        assert attributes.top_k is not None  # noqa: S101
        mean = self._total / self._rows
        known = DistanceFacts.measured(mean, self._worst, self._samples)
        facts = TopKFacts(k=attributes.top_k.k, total_variation=known)
        return attributes.model_copy(update={"top_k": facts})


def sparse_rows(
    soft: NDArray[np.float32], top_k: int, distances: Distances
) -> dict[str, NDArray[Any]]:
    """The arrays of a top-k store for dense rows of shape (n, K) or (n, V, K)."""
    indices, probs = largest(soft, top_k)
    distances.add(total_variation(soft, indices, probs))
    return {"topk_indices": indices, "topk_probs": probs}


# --- A store at another temperature, or with each row's largest probabilities only.


# A few MiB of logits say how soft the labels are.
_SAMPLE_ELEMENTS = 2**22


def retemper_store(
    source: ProvenStore,
    target: Path,
    temperature: float | None = None,
    *,
    top_k: int | None = None,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Write the labels of a store anew, from its logits.

    Parameters
    ----------
    source : ProvenStore
        With logits, unless the temperature stays.
    target : Path
    temperature : float, optional
        By default the source's own.
    top_k : int, optional
        Keep so many probabilities per row, and no logits.
    replace : bool
        Replace a store that is there.
    progress : callable, optional
        Called with the number of samples just written, N in all.

    Returns
    -------
    str
        The new store's identity. But for `derived_from`, a dense store is the one that the
        teacher's logits would have given at that temperature.

    Raises
    ------
    StoreError
        When the store has no logits, or is sparse already.
    ParamsError
        When temperature or top-k are out of range.
    """
    store, known = source.store, source.store.attributes
    warmer = temperature is not None and temperature != known.temperature
    if temperature is not None:
        require_temperature(temperature)
    if warmer:
        store.require_logits()
    _require_dense(source, top_k)
    changes = _retemper_changes(source, temperature if warmer else None, top_k)
    attributes = with_rows(known, store.labels, store.sample_hash, **changes)
    distances = Distances()
    names: tuple[str, ...] = ("topk_indices", "topk_probs") if top_k else source.names
    block = (
        partial(_sparse, source, attributes.temperature, top_k, distances)
        if top_k
        else partial(_dense, source, attributes.temperature)
    )
    return derive_store(
        target,
        attributes,
        NewRows(store.labels, store.sample_hash, names, stepwise(block, attributes)),
        rows=chunk_rows([] if top_k else [source], attributes),
        replace=replace,
        progress=progress,
        finish=(lambda: distances.noted(attributes)) if top_k else None,
    )


def _retemper_changes(
    source: ProvenStore, temperature: float | None, top_k: int | None
) -> dict[str, Any]:
    done = [name for name, given in (("retemper", temperature), ("top-k", top_k)) if given]
    if not done:
        raise ParamsError(
            source.store.path,
            "nothing would change",
            remedy="Name another temperature, or how many probabilities to keep.",
        )
    derived = DerivationFacts(operation=", ".join(done), sources=(source.store.identity,))
    changes: dict[str, Any] = {"derived_from": derived}
    if temperature is not None:
        changes["temperature"] = temperature
    if top_k is not None:
        changes["top_k"] = TopKFacts(k=top_k)
    return changes


def _require_dense(source: ProvenStore, top_k: int | None) -> None:
    store = source.store
    if store.top_k is not None:
        raise StoreError(
            store.path,
            f"has only the {store.top_k} largest probabilities of each row",
            expected="all of them, or logits",
            remedy="Label again, or take the dense store that it was made of.",
        )
    if top_k is not None:
        require_top_k(source, top_k)


def require_top_k(source: ProvenStore, top_k: int) -> None:
    """Refuse to keep more probabilities per row than there are classes, or none."""
    classes = source.store.num_classes
    if not 1 <= top_k <= classes:
        raise ParamsError(
            "top_k",
            "is out of range",
            expected=f"1 to {classes}, the number of classes",
            found=top_k,
        )


def _dense(
    source: ProvenStore, temperature: float, first: int, last: int
) -> dict[str, NDArray[Any]]:
    # As the writer softens them, from the logits as they are stored.
    logits = source.gather("logits", np.arange(first, last))
    return {"logits": logits, "soft_labels": to_float16(mean_softened([logits], temperature))}


def _sparse(
    source: ProvenStore,
    temperature: float,
    top_k: int,
    distances: Distances,
    first: int,
    last: int,
) -> dict[str, NDArray[Any]]:
    index = np.arange(first, last)
    if source.store.has_logits:
        soft = mean_softened([source.gather("logits", index)], temperature)
    else:
        soft = to_float32(source.soft(index))
        soft /= soft.sum(axis=-1, keepdims=True)
    return sparse_rows(soft, top_k, distances)


def require_informative(source: ProvenStore, temperature: float) -> None:
    """Refuse a temperature at which the labels would be as good as uniform, before the work.

    Raises
    ------
    StoreError
        Also when the store has no logits.
    """
    store = source.store
    store.require_logits()
    width = store.num_views * store.num_classes
    count = min(max(_SAMPLE_ELEMENTS // width, 1), store.num_samples)
    rows = np.arange(count) * store.num_samples // count
    top = top_probability([source.gather("logits", rows)], temperature) / (count * store.num_views)
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


def temperature_for(source: ProvenStore, target_top_probability: float) -> float:
    """The temperature at which the labels' mean top probability is so high.

    Parameters
    ----------
    source : ProvenStore
        With logits, of which some 26 passes are made.
    target_top_probability : float
        In (1/K, 1).

    Raises
    ------
    StoreError
        When the store has no logits.
    ParamsError
        When no temperature gives it.
    """
    store = source.store
    store.require_logits()
    count = store.num_samples * store.num_views
    step = max(2**20 // (store.num_views * store.num_classes), 1)

    def mean_top(temperature: float) -> float:
        blocks = (
            source.gather("logits", np.arange(at, min(at + step, store.num_samples)))
            for at in range(0, store.num_samples, step)
        )
        return sum(top_probability([block], temperature) for block in blocks) / count

    return bisect_temperature(mean_top, target_top_probability)
