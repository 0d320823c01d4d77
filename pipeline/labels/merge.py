"""Parts of one data set's labels, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ltd_pipe.errors import JoinError, ParamsError, StoreError
from ltd_pipe.labels.derive import (
    Distances,
    NewRows,
    chunk_rows,
    derive_store,
    require_same_places,
    sparse_rows,
    stepwise,
    with_rows,
)
from ltd_pipe.labels.foreign import match_rows, repeated
from ltd_pipe.labels.format import (
    DerivationFacts,
    DistanceFacts,
    LabellingFacts,
    TopKFacts,
    to_float32,
)
from ltd_pipe.labels.join import require_classes
from ltd_pipe.labels.writer import round_soft_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ltd_pipe.labels.foreign import ProvenStore
    from ltd_pipe.labels.join import ImagesLike
    from ltd_pipe.labels.reader import SoftLabels


# --- What several stores must say alike, and what they say together.


def require_alike(sources: Sequence[ProvenStore], keys: Sequence[str], remedy: str) -> None:
    """Refuse stores that differ in something that one store has once.

    Parameters
    ----------
    sources : sequence of ProvenStore
    keys : sequence of str
        Of `classes`, `temperature`, `views`, `teachers`, `images`, `top-k`, `arrays`,
        `normalisation`, `columns`, and LabellingFacts'. What a store does not say agrees with
        anything.
    remedy : str
        What to do about a difference.

    Raises
    ------
    StoreError
        Naming the first store that differs from the first one, and in what.
    """
    for other in sources[1:]:
        _require_classes(sources[0].store, other.store)
    for key in keys:
        said = ((source, _value(source, key)) for source in sources)
        known = [(source, value) for source, value in said if value is not None]
        for other, found in known[1:]:
            first, expected = known[0]
            if expected != found:
                raise StoreError(
                    other.store.path,
                    key,
                    expected=f"{expected:.200} as {first.store.path} has",
                    found=f"{found:.200}",
                    remedy=remedy,
                )


def _require_classes(first: SoftLabels, other: SoftLabels) -> None:
    pairs = [first.attributes.class_names, other.attributes.class_names]
    if len(pairs[0]) != len(pairs[1]):
        raise StoreError(
            other.path,
            "number of classes",
            expected=f"{len(pairs[0])} as {first.path} has",
            found=len(pairs[1]),
        )
    for number, (expected, found) in enumerate(zip(*pairs, strict=True)):
        if expected != found:
            raise StoreError(
                other.path,
                f"class {number}",
                expected=f"'{expected}' as {first.path} has",
                found=f"'{found}'",
            )


def _value(source: ProvenStore, key: str) -> str | None:
    known = source.store.attributes
    if key in LabellingFacts.model_fields:
        said = getattr(known.labelling, key, None)
        return None if said is None else str(said)
    views, top_k, teachers = known.views, source.store.top_k, known.teachers
    constants = [each.normalisation for each in teachers]
    unknown = "unknown" in constants
    values = {
        "temperature": repr(known.temperature),
        "views": f"{views.count} × {views.augmentation or 'the image as it is'}, seed {views.seed}",
        "teachers": ", ".join(f"{each.architecture} {each.sha256[:12]}…" for each in teachers),
        "normalisation": None if unknown else "; ".join(constants),
        "columns": None if unknown else "; ".join(str(each.columns) for each in teachers),
        "images": f"{known.dataset.name}, {known.dataset.split}",
        "top-k": f"{top_k} probabilities per row" if top_k else "all",
        "arrays": ", ".join(sorted(source.names)),
    }
    return values[key]


def joint_terms(sources: Sequence[ProvenStore]) -> dict[str, Any]:
    """Licence, citation, software and labelling of rows that come from several stores.

    Returns
    -------
    dict
        Of each text all different ones, so that nobody's terms are lost; where only some
        stores name a licence, that the others' is unknown. Of the labelling what all say alike.
    """
    known = [source.store.attributes for source in sources]
    software: dict[str, str] = {}
    for name in sorted({name for each in known for name in each.software}):
        versions = [each.software[name] for each in known if name in each.software]
        software[name] = ", ".join(dict.fromkeys(versions))
    return {
        "licence": _joined([each.licence for each in known], " AND ", "unknown"),
        "citation": _joined([each.citation for each in known], "\n\n", None),
        "software": software,
        "labelling": _joint_labelling([each.labelling for each in known]),
    }


def _joint_labelling(facts: Sequence[LabellingFacts | None]) -> LabellingFacts | None:
    first = facts[0]
    if first is None or None in facts:
        return None
    return LabellingFacts(
        **{
            name: value
            for name, value in first
            if all(value == getattr(other, name) for other in facts)
        }
    )


def _joined(texts: Sequence[str | None], between: str, otherwise: str | None) -> str | None:
    if not any(texts):
        return None
    different = dict.fromkeys(text or otherwise for text in texts)
    return between.join(text for text in different if text)


# --- Parts of one data set's labels, put together.


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
    known = with_rows(
        sources[0].store.attributes, labels, hashes, **_merge_changes(sources, images)
    )
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


def _merge_changes(sources: Sequence[ProvenStore], images: ImagesLike | None) -> dict[str, Any]:
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


# --- Several teachers' labels of the same images, averaged as probabilities.


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
        first.attributes,
        first.labels,
        first.sample_hash,
        **_average_changes(sources, shares, top_k),
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


def _average_changes(
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
