"""New stores whose rows are computed from other stores' rows, or from other files.

Each operation (`subset`, `retemper`, `merge` and `average` here, `convert` in convert.py) gives a
`DerivedStore`: its attributes, and how a few of its rows are computed. Writing it takes the memory
of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import JoinError, ParamsError, StoreError
from ltd_pipe.evaluation.statistics import require_order
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.files import require_replaceable, write_store
from ltd_pipe.labels.format import (
    DatasetFacts,
    DerivationFacts,
    DistanceFacts,
    LabellingFacts,
    StoreAttributes,
    TopKFacts,
    to_float16,
    to_float32,
)
from ltd_pipe.labels.join import ImageRows, partners, same_rows
from ltd_pipe.labels.layout import SPARSE
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.labels.softmax import (
    largest,
    mean_softened,
    require_temperature,
    require_top_k,
    round_soft_labels,
    solve_temperature,
    top_probability,
    total_variation,
)
from ltd_pipe.labels.softness import evenly_spaced, refuse_uniform
from ltd_pipe.labels.verify import verify_store
from ltd_pipe.params.sections import MAX_TEXT
from ltd_pipe.publish import exclusive, require_free
from ltd_pipe.text import nfc

if TYPE_CHECKING:
    from ltd_pipe.labels.join import ImagesLike
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
        in order, each row once. For a top-k store it may give float32 `soft_labels`: the largest
        are kept, and the attributes note what is lost.
    rows : int
        Rows per chunk.
    origin : callable, optional
        Of rows from other files: names these, when all rows were written.
    verify : bool
        Verify the store before it is published: for rows that come from no store.
    """

    attributes: StoreAttributes
    labels: NDArray[np.int32]
    sample_hash: NDArray[np.uint64]
    arrays: tuple[str, ...]
    block: Callable[[NDArray[np.int64]], Block]
    rows: int
    origin: Callable[[], str] | None = None
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
        top_k = self.attributes.top_k.k if self.attributes.top_k else None
        names = (*_ALWAYS, *self.arrays)
        layouts = [self.attributes.layout(name, self.rows, top_k) for name in names]
        for layout in layouts:
            layout.require_fitting(target)
        require_free(target.parent, sum(each.num_chunks * each.file_bytes for each in layouts))
        computed, distances = dict[str, "NDArray[Any]"](), list["NDArray[np.float32]"]()

        def rows_of(layout: ArrayLayout, chunk: int) -> NDArray[Any]:
            # The arrays of a chunk are asked for one by one, and computed together.
            if not computed:
                first = chunk * self.rows
                computed.update(self._rows(first, first + layout.rows_in(chunk), top_k, distances))
            return computed.pop(layout.name)

        def attributes() -> StoreAttributes:
            changes: dict[str, Any] = {}
            if top_k and distances:
                changes["top_k"] = TopKFacts.measured(top_k, np.concatenate(distances))
            if self.origin:
                sources = (self.origin(),)
                changes["derived_from"] = DerivationFacts(operation="convert", sources=sources)
            return self.attributes.model_copy(update=changes)

        with exclusive(target):
            # In order, as files of other formats are read; the disk takes the time.
            return write_store(
                target,
                attributes,
                {layout: partial(rows_of, layout) for layout in layouts},
                replace=replace,
                progress=progress,
                check=partial(_verify, target) if self.verify else None,
            )

    def _rows(
        self, first: int, last: int, top_k: int | None, distances: list[NDArray[np.float32]]
    ) -> Block:
        blocks, width = [], self.attributes.views.count * self.attributes.num_classes
        for index in row_blocks(first, last, width):
            block = self.block(index)
            if top_k and "soft_labels" in block:
                soft = block["soft_labels"]
                sparse = largest(soft, top_k)
                distances.append(total_variation(soft, *sparse))
                block = dict(zip(SPARSE, sparse, strict=True))
            blocks.append(block)
        rows = {name: np.concatenate([each[name] for each in blocks]) for name in self.arrays}
        return rows | {name: getattr(self, name)[first:last] for name in _ALWAYS}


def _verify(target: Path, beside: Path) -> None:
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
    # The most probable class of each sample's first view; of a sparse row it stands first.
    parts: list[NDArray[Any]] = []
    for index in row_blocks(0, store.num_samples, store.num_classes):
        dense = store.top_k is None
        rows = store.gather(index, view=0) if dense else store.gather_topk(index, view=0)[0]
        parts.append(rows.argmax(axis=1) if dense else rows[:, 0])
    return np.concatenate(parts).astype(np.int64)


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
    found = fingerprint(changed.get("class_names", known.class_names), labels, sample_hash)
    values = {name: getattr(known, name) for name in StoreAttributes.model_fields}
    values |= {"num_samples": len(labels)} | changed
    values["dataset"] = values["dataset"].model_copy(update={"fingerprint": found})
    if values["labelling"] and found != known.dataset.fingerprint:
        values["labelling"] = values["labelling"].model_copy(update={"pixels_sha256": None})
    return StoreAttributes(**values)


def chunk_rows(sources: Sequence[SoftLabels], attributes: StoreAttributes) -> int:
    """Rows per chunk of a new store: as its sources have them, so that equal rows are equal files.

    A source of a single chunk is as long as its samples are many, which says nothing of other
    samples; nor does one of narrower rows, of which too many would be in a chunk.
    """
    top_k = attributes.top_k.k if attributes.top_k else None
    lengths = [
        rows
        for rows, samples in ((s.arrays["labels"].layout.rows, s.num_samples) for s in sources)
        if (rows < samples or samples == attributes.num_samples)
        and all(attributes.layout(name, rows, top_k).fits for name in attributes.widest(top_k))
    ]
    rows = max(lengths, default=attributes.rows_per_chunk(top_k))
    return min(rows, attributes.num_samples)


def _derive(
    operation: str,
    sources: Sequence[SoftLabels],
    rows: tuple[NDArray[np.int32], NDArray[np.uint64]],
    arrays: tuple[str, ...],
    block: Callable[[NDArray[np.int64]], Block],
    *,
    like: Sequence[SoftLabels],
    names: Sequence[str] = (),
    **changed: Any,
) -> DerivedStore:
    """Rows made of other stores' rows; the first store says what is not `changed`.

    `rows` are their labels and hashes, `like` the stores whose rows per chunk are taken, and
    `names` what the sources are called, by default their identities.
    """
    called = tuple(names or (store.identity for store in sources))
    facts = DerivationFacts(operation=operation, sources=called)
    attributes = attributes_of_rows(sources[0].attributes, *rows, derived_from=facts, **changed)
    return DerivedStore(attributes, *rows, arrays, block, chunk_rows(like, attributes))


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
    changes: dict[str, Any] = {}
    if images is not None:
        changes |= _of_images(images)
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
        if store.num_views > 1:
            changes["calibration"] = None  # it was of the mean of all views
    if top_k := store.attributes.top_k:
        all_views = view is None or store.num_views == 1
        if not (all_views and np.array_equal(np.sort(rows), np.arange(store.num_samples))):
            # What was left out of these is not known: it was measured over each row and view once.
            changes["top_k"] = TopKFacts(k=top_k.k)

    def block(index: NDArray[np.int64]) -> Block:
        return {name: store.arrays[name].gather(rows[index], None, view) for name in names}

    of_rows = store.labels[rows], store.sample_hash[rows]
    return _derive("subset", [store], of_rows, names, block, like=[store], **changes)


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


def _of_images(images: ImagesLike) -> dict[str, Any]:
    """What a store has of the images that it is cut to; the names of classes as these have them."""
    manifest = images.manifest
    return {"dataset": DatasetFacts.of(manifest), "class_names": tuple(manifest.class_names)}


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
    known, operations, changes = store.attributes.temperature, list[str](), dict[str, Any]()
    wanted = known if temperature is None else require_temperature(temperature)
    if wanted != known:
        store.require_logits()
        changes |= {"temperature": wanted, "calibration": None}
        operations.append("retemper")
    if store.top_k is not None:
        raise StoreError(
            store.path,
            f"has only the {store.top_k} largest probabilities of each row",
            expected="all of them, or logits",
            remedy="Label again, or take the dense store that it was made of.",
        )
    if top_k is not None:
        require_top_k("top_k", top_k, store.num_classes)
        changes["top_k"] = TopKFacts(k=top_k)
        operations.append("top-k")
    if not operations:
        raise ParamsError(
            store.path,
            "nothing would change",
            remedy="Name another temperature, or how many probabilities to keep.",
        )

    def block(index: NDArray[np.int64]) -> Block:
        if not store.has_logits:
            soft = to_float32(store.gather(index))
            return {"soft_labels": soft / soft.sum(axis=-1, keepdims=True)}
        logits = store.gather_logits(index)
        soft = mean_softened([logits], wanted)
        return {"logits": logits, "soft_labels": soft if top_k else to_float16(soft)}

    return _derive(
        ", ".join(operations),
        [store],
        (store.labels, store.sample_hash),
        SPARSE if top_k else answer_arrays(store),
        block,
        like=[] if top_k else [store],
        **changes,
    )


def require_informative(store: SoftLabels, temperature: float) -> None:
    """Refuse a temperature at which the labels would be as good as uniform, before the work."""
    store.require_logits()
    width = store.num_views * store.num_classes
    rows = evenly_spaced(store.num_samples, _SAMPLE_ELEMENTS // width)
    total = top_probability([store.gather_logits(rows)], temperature)
    refuse_uniform(
        store.path,
        f"its labels at temperature {temperature:g} are",
        total / (len(rows) * store.num_views),
        store.num_classes,
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


# --- Several stores put together: what they must say alike, and what they say together.


_ALIKE = (
    *("temperature", "top-k", "arrays", "views", "teachers", "columns", "normalisation"),
    *("image_shape", "resize", "channels", "precision"),
)


def _require_alike(stores: Sequence[SoftLabels], keys: Sequence[str], remedy: str) -> None:
    """Refuse stores that differ in their classes or in `keys`; the unknown agrees with anything."""
    first = stores[0]
    for other in stores[1:]:
        first.require_classes(other.attributes.class_names, str(other.path))
    for key in keys:
        known = [(each, value) for each in stores if (value := _value(each, key)) is not None]
        for other, found in known[1:]:
            said_by, expected = known[0]
            if expected != found:
                raise StoreError(
                    other.path,
                    key,
                    expected=f"{expected:.200} as {said_by.path} has",
                    found=f"{found:.200}",
                    remedy=remedy,
                )


def _value(store: SoftLabels, key: str) -> str | None:
    known = store.attributes
    if key in LabellingFacts.model_fields:
        said = getattr(known.labelling, key, None)
        return None if said is None else str(said)
    views, teachers = known.views, known.teachers
    constants = [each.normalisation for each in teachers]
    unknown = "unknown" in constants
    values = {
        "temperature": repr(known.temperature),
        "views": f"{views.count} × {views.augmentation or 'the image as it is'}, seed {views.seed}",
        "teachers": ", ".join(f"{each.architecture} {each.sha256[:12]}…" for each in teachers),
        "normalisation": None if unknown else "; ".join(constants),
        "columns": None if unknown else "; ".join(str(each.columns) for each in teachers),
        "images": f"{known.dataset.name}, {known.dataset.split}",
        "top-k": f"{store.top_k} probabilities per row" if store.top_k else "all",
        "arrays": ", ".join(sorted(answer_arrays(store))),
    }
    return values[key]


def _joint_terms(stores: Sequence[SoftLabels]) -> dict[str, Any]:
    """Licence, citation, software and labelling of rows that come from several stores.

    Of each text all different ones, so that nobody's terms are lost; where only some stores name
    a licence, that the others' is unknown. Of labelling and calibration what all say alike.
    """
    known = [store.attributes for store in stores]
    software: dict[str, str] = {}
    for name in sorted({name for each in known for name in each.software}):
        versions = [each.software[name] for each in known if name in each.software]
        software[name] = ", ".join(dict.fromkeys(versions))
    licences = dict.fromkeys(each.licence or "unknown" for each in known)
    citations = dict.fromkeys(each.citation for each in known if each.citation)
    calibrations = {each.calibration for each in known}
    facts = [each.labelling for each in known if each.labelling]
    alike = dict(set.intersection(*map(set, facts))) if len(facts) == len(known) else None
    terms = {
        "licence": " AND ".join(licences) if any(each.licence for each in known) else None,
        "citation": "\n\n".join(citations) or None,
    }
    for name, text in terms.items():
        if text is not None and len(text) > MAX_TEXT:
            raise StoreError(
                stores[0].path,
                f"{name} of all stores together",
                expected=f"at most {MAX_TEXT:,} characters",
                found=f"{len(text):,}",
                remedy="Merge fewer, or have their publishers say it in fewer words.",
            )
    return {
        **terms,
        "software": software,
        "labelling": None if alike is None else LabellingFacts(**alike),
        "calibration": calibrations.pop() if len(calibrations) == 1 else None,
    }


# --- Parts of one data set's labels, put together.


def merge(
    stores: Sequence[SoftLabels], *, images: ImagesLike | None = None, data: str = "the data"
) -> DerivedStore:
    """The rows of stores that one teacher made of different samples.

    Parameters
    ----------
    stores : sequence of SoftLabels
        Two or more.
    images : Beton, optional
        The whole data set, whose order the rows are then put into; by default one store's
        rows follow the other's.
    data : str
        How the user knows the data.

    Raises
    ------
    StoreError
        When the stores differ in more than their samples, or share one.
    JoinError
        When they are not the data set's samples, each once.
    """
    alike = _ALIKE if images is not None else (*_ALIKE, "images")
    _require_alike(stores, alike, "Merge stores that the same teachers labelled alike.")
    owner = np.repeat(np.arange(len(stores)), [store.num_samples for store in stores])
    row = np.concatenate([np.arange(store.num_samples) for store in stores])
    labels = np.concatenate([store.labels for store in stores])
    hashes = np.concatenate([store.sample_hash for store in stores])
    changes = _joint_terms(stores) | {"top_k": _joint_topk(stores)}
    if any(one.mean is None for store in stores for one in store.attributes.teachers):
        unknown = {"mean": None, "std": None, "columns": ()}
        teachers = stores[0].attributes.teachers
        changes["teachers"] = tuple(one.model_copy(update=unknown) for one in teachers)
    if images is None:
        _require_different(stores, owner, row, hashes)
    else:
        stores[0].require_classes(images.manifest.class_names, data)
        changes |= _of_images(images)
        order = partners(
            ImageRows(images.sample_hash, images.labels, data, "sample"),
            ImageRows(
                hashes,
                labels,
                "the stores",
                place=lambda at: (stores[owner[at]].path, f"row {row[at]}"),
            ),
            remedy="Name all parts, each sample once, and the data that they are parts of.",
        )
        owner, row, labels, hashes = owner[order], row[order], labels[order], hashes[order]
    for number, store in enumerate(stores):
        places = np.flatnonzero(owner == number)
        require_same_places(store, row[places], places)
    names = answer_arrays(stores[0])

    def block(index: NDArray[np.int64]) -> Block:
        found: Block = {}
        for name in names:
            layout = stores[0].arrays[name].layout
            found[name] = np.empty((len(index), *layout.row_shape), layout.dtype)
            for number in np.unique(owner[index]).tolist():
                place = owner[index] == number
                found[name][place] = stores[number].arrays[name].gather(row[index][place])
        return found

    return _derive("merge", stores, (labels, hashes), names, block, like=stores, **changes)


def _joint_topk(stores: Sequence[SoftLabels]) -> TopKFacts | None:
    facts = [store.attributes.top_k for store in stores]
    if facts[0] is None:
        return None
    distances = [each.total_variation for each in facts if each and each.total_variation]
    if len(distances) < len(facts):
        return TopKFacts(k=facts[0].k)
    samples = [each.samples for each in distances]
    mean = float(np.average([each.mean for each in distances], weights=samples))
    known = DistanceFacts.measured(mean, max(each.worst for each in distances), sum(samples))
    return TopKFacts(k=facts[0].k, total_variation=known)


def _require_different(
    stores: Sequence[SoftLabels],
    owner: NDArray[np.int64],
    row: NDArray[np.int64],
    hashes: NDArray[np.uint64],
) -> None:
    # One store may have an image twice, as its data set has; two stores of different samples
    # have none in common.
    each = np.concatenate([np.unique(store.sample_hash) for store in stores])
    images, counts = np.unique(each, return_counts=True)
    shared = np.flatnonzero(np.isin(hashes, images[counts > 1]))
    if not len(shared):
        return
    first = shared[0]
    again = shared[(hashes[shared] == hashes[first]) & (owner[shared] != owner[first])][0]
    raise StoreError(
        stores[owner[again]].path,
        f"row {row[again]} is the image of row {row[first]} of {stores[owner[first]].path}",
        expected="different samples in each store",
        found=f"sample_hash {hashes[first]:016x} in both",
        remedy="Where the data set has that image twice, pass it as --data. To average several "
        "teachers' labels of the same images, pass --average.",
    )


# --- Several teachers' labels of the same images, averaged as probabilities.


def average(
    stores: Sequence[SoftLabels],
    *,
    weights: Sequence[float] | None = None,
    by_hash: bool = False,
) -> DerivedStore:
    """The average of several stores' soft labels, in the order of the first one.

    Parameters
    ----------
    stores : sequence of SoftLabels
        Two or more, of the same images. Where all are top-k stores the average is one too,
        with the largest k of them.
    weights : sequence of float, optional
        Of each store, in any unit; by default equal.
    by_hash : bool
        Find the images of the other stores by their hashes, whatever their order.

    Raises
    ------
    StoreError
        When classes, temperature or views differ.
    JoinError
        When the images do, naming the first sample.
    """
    shares = normalised_weights(weights, len(stores))
    first = stores[0]
    # A view is one of images of one size; whole images may be any teacher's.
    shape = ["image_shape"] if first.attributes.views.augmentation else []
    remedy = "Bring them to one temperature with 'ltd-pipe store retemper'."
    _require_alike(stores, ("temperature", "views", *shape), remedy)
    rows = [_rows_like(first, other, by_hash=by_hash) for other in stores]
    ks = [store.top_k or 0 for store in stores]
    top_k = max(ks) if all(ks) else None
    names = [store.identity for store in stores]
    if len(set(shares)) > 1:
        pairs = zip(names, shares, strict=True)
        names = [f"{name} weight {share:.6g}" for name, share in pairs]
    teachers = {
        (teacher.sha256, teacher.normalisation): teacher
        for store in reversed(stores)
        for teacher in reversed(store.attributes.teachers)
    }

    def block(index: NDArray[np.int64]) -> Block:
        total = np.zeros(1, np.float32)
        for store, row, share in zip(stores, rows, shares, strict=True):
            soft = to_float32(store.gather(row[index]))
            soft /= soft.sum(axis=-1, keepdims=True) / np.float32(share)
            total = total + soft
        soft_labels = total if top_k else round_soft_labels(total, int(index[0]), first.path)
        return {"soft_labels": soft_labels}

    return _derive(
        "average",
        stores,
        (first.labels, first.sample_hash),
        SPARSE if top_k else ("soft_labels",),
        block,
        like=stores,
        names=names,
        teachers=tuple(reversed(teachers.values())),
        top_k=TopKFacts(k=top_k) if top_k else None,
        **_joint_terms(stores),
    )


def normalised_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Shares that sum to one, of as many stores; each weight is above zero."""
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count or not all(0 < each < float("inf") for each in given):
        raise ParamsError(
            "weights",
            "are one number above zero for each store",
            expected=f"{count} numbers",
            found=", ".join(f"{each:g}" for each in given),
        )
    return [each / sum(given) for each in given]


def _rows_like(first: SoftLabels, other: SoftLabels, *, by_hash: bool) -> NDArray[np.int64]:
    """The other store's rows in the order of the first one's."""
    # By the rows themselves: the fingerprint is what a store claims.
    if same_rows(first, other):
        return np.arange(first.num_samples)
    cut = "Cut both to the same images with 'ltd-pipe store subset --data'."
    if by_hash:
        ours, theirs = (ImageRows(s.sample_hash, s.labels, s.path) for s in (first, other))
        rows = partners(ours, theirs, remedy=cut)
        require_same_places(other, rows)
        return rows
    count = min(first.num_samples, other.num_samples)
    different = (first.sample_hash[:count] != other.sample_hash[:count]) | (
        first.labels[:count] != other.labels[:count]
    )
    if not different.any():
        raise JoinError(
            other.path,
            "number of samples",
            expected=f"{first.num_samples} as {first.path} has",
            found=other.num_samples,
            remedy=cut,
        )
    row = int(np.argmax(different))
    raise JoinError(
        other.path,
        f"sample {row}",
        expected=f"sample_hash {first.sample_hash[row]:016x}, class {first.labels[row]} as "
        f"{first.path} has",
        found=f"{other.sample_hash[row]:016x}, class {other.labels[row]}",
        remedy="Pass --by-hash when they are the same images in another order.",
    )
