"""Parts of one data set's labels, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.combine.agreement import joint_terms, require_alike
from pipeline.combine.derive import NewRows, chunk_rows, derive_store, with_rows
from pipeline.combine.match import match_rows, repeated
from pipeline.combine.subset import require_same_places
from pipeline.errors import JoinError, StoreError
from pipeline.labels.format import DerivationFacts, DistanceFacts, TopKFacts
from pipeline.labels.join import require_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.source import ProvenStore
    from pipeline.labels.join import ImagesLike

__all__ = ["merge_stores"]

_ALIKE = (
    *("temperature", "top-k", "arrays", "views", "teachers", "columns", "normalisation"),
    *("image_shape", "resize", "channels", "precision"),
)


def merge_stores(
    sources: Sequence[ProvenStore],
    target: Path,
    *,
    images: ImagesLike | None = None,
    data: str = "the data",
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Write the rows of stores that one teacher made of different samples.

    Parameters
    ----------
    sources : sequence of ProvenStore
        Two or more.
    target : Path
    images : Beton, optional
        The whole data set, whose order the rows are then put into; by default one store's
        rows follow the other's.
    data : str
        How the user knows the data.
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
        When the stores differ in more than their samples, or share one.
    JoinError
        When they are not the data set's samples, each once.
    """
    alike = _ALIKE if images is not None else (*_ALIKE, "images")
    require_alike(sources, alike, "Merge stores that the same teachers labelled alike.")
    counts = [source.store.num_samples for source in sources]
    which = np.repeat(np.arange(len(sources)), counts)
    rows = np.concatenate([np.arange(count) for count in counts])
    labels = np.concatenate([source.store.labels for source in sources])
    hashes = np.concatenate([source.store.sample_hash for source in sources])
    if images is None:
        _require_different(sources, which, rows, hashes)
    else:
        order = _order(sources, (which, rows), (hashes, labels), images, data)
        which, rows, labels, hashes = which[order], rows[order], labels[order], hashes[order]
    _require_places(sources, which, rows)
    known = with_rows(sources[0].store.attributes, labels, hashes, **_changes(sources, images))
    new = NewRows(labels, hashes, sources[0].names, _gathering(sources, which, rows))
    size = chunk_rows(sources, known)
    return derive_store(target, known, new, rows=size, replace=replace, progress=progress)


def _gathering(
    sources: Sequence[ProvenStore], which: NDArray[np.int64], rows: NDArray[np.int64]
) -> Callable[[int, int], dict[str, NDArray[Any]]]:
    def block(first: int, last: int) -> dict[str, NDArray[Any]]:
        owner, row = which[first:last], rows[first:last]
        found: dict[str, NDArray[Any]] = {}
        for name in sources[0].names:
            layout = sources[0].store.arrays[name].layout
            found[name] = np.empty((last - first, *layout.row_shape), layout.dtype)
            for number in np.unique(owner).tolist():
                place = owner == number
                found[name][place] = sources[number].gather(name, row[place])
        return found

    return block


def _changes(sources: Sequence[ProvenStore], images: ImagesLike | None) -> dict[str, Any]:
    known = sources[0].store.attributes
    identities = tuple(source.store.identity for source in sources)
    changes = joint_terms(sources) | {
        "derived_from": DerivationFacts(operation="merge", sources=identities),
        "top_k": _joint_topk(sources),
    }
    teachers = [source.store.attributes.teachers for source in sources]
    if any(one.mean is None for each in teachers for one in each):
        unknown = {"mean": None, "std": None, "columns": ()}
        changes["teachers"] = tuple(one.model_copy(update=unknown) for one in known.teachers)
    if images is not None:
        named = {"name": images.manifest.dataset, "split": images.manifest.split}
        changes["dataset"] = known.dataset.model_copy(update=named)
    return changes


def _joint_topk(sources: Sequence[ProvenStore]) -> TopKFacts | None:
    facts = [source.store.attributes.top_k for source in sources]
    first = facts[0]
    if first is None:
        return None
    distances = [each.total_variation for each in facts if each and each.total_variation]
    if len(distances) < len(facts):
        return TopKFacts(k=first.k)
    samples = [each.samples for each in distances]
    mean = float(np.average([each.mean for each in distances], weights=samples))
    worst = max(each.worst for each in distances)
    known = DistanceFacts.measured(mean, worst, sum(samples))
    return TopKFacts(k=first.k, total_variation=known)


def _require_different(
    sources: Sequence[ProvenStore],
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
    hashes: NDArray[np.uint64],
) -> None:
    # One store may have an image twice, as its data set has; two stores of different samples
    # have none in common.
    each = [np.unique(source.store.sample_hash) for source in sources]
    pair = repeated(np.concatenate(each))
    if pair is None:
        return
    shared = np.concatenate(each)[pair[0]]
    places = np.flatnonzero(hashes == shared)
    first, again = places[0], places[which[places] != which[places[0]]][0]
    raise StoreError(
        sources[which[again]].store.path,
        f"row {rows[again]} is the image of row {rows[first]} of "
        f"{sources[which[first]].store.path}",
        expected="different samples in each store",
        found=f"sample_hash {shared:016x} in both",
        remedy="Where the data set has that image twice, pass it as --data. To average several "
        "teachers' labels of the same images, pass --average.",
    )


def _order(
    sources: Sequence[ProvenStore],
    place: tuple[NDArray[np.int64], NDArray[np.int64]],
    stored: tuple[NDArray[np.uint64], NDArray[np.int32]],
    images: ImagesLike,
    data: str,
) -> NDArray[np.int64]:
    first = sources[0].store
    require_classes(first.path, first.attributes, images.manifest.class_names, data)
    found = match_rows((images.sample_hash, images.labels), stored)
    if len(found.only_first):
        sample = found.only_first[0]
        raise JoinError(
            "the stores",
            f"have no label for sample {sample} of {data} ({len(found.only_first)} such)",
            found=f"sample_hash {images.sample_hash[sample]:016x}",
            remedy="Merge all parts, or take the part of the data with 'ltd-pipe store subset'.",
        )
    if len(found.only_second):
        row = found.only_second[0]
        raise JoinError(
            sources[place[0][row]].store.path,
            f"row {place[1][row]} is no sample of {data}, or one that another row has "
            f"({len(found.only_second)} such)",
            found=f"sample_hash {stored[0][row]:016x}",
            remedy="Leave out the store that repeats, or pass the data that all belong to.",
        )
    wrong = images.labels != stored[1][found.second]
    if wrong.any():
        sample = int(np.argmax(wrong))
        row = found.second[sample]
        raise JoinError(
            sources[place[0][row]].store.path,
            f"row {place[1][row]}",
            expected=f"class {images.labels[sample]} as sample {sample} of {data}",
            found=stored[1][row],
        )
    return found.second


def _require_places(
    sources: Sequence[ProvenStore], which: NDArray[np.int64], rows: NDArray[np.int64]
) -> None:
    for number, source in enumerate(sources):
        places = np.flatnonzero(which == number)
        require_same_places(source.store, rows[places], places)
