"""Several stores put together: parts of one data set, or several teachers' answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import JoinError, ParamsError, StoreError
from ltd_pipe.labels.derive import (
    DerivedStore,
    Distances,
    answer_arrays,
    attributes_of_rows,
    chunk_rows,
    dataset_of,
    require_same_places,
)
from ltd_pipe.labels.distributions import round_soft_labels
from ltd_pipe.labels.format import (
    DerivationFacts,
    DistanceFacts,
    LabellingFacts,
    TopKFacts,
    to_float32,
)
from ltd_pipe.labels.join import ImageRows, partners
from ltd_pipe.labels.layout import SPARSE

if TYPE_CHECKING:
    from ltd_pipe.labels.derive import Block
    from ltd_pipe.labels.join import ImagesLike
    from ltd_pipe.labels.reader import SoftLabels

_ALIKE = (
    *("temperature", "top-k", "arrays", "views", "teachers", "columns", "normalisation"),
    *("image_shape", "resize", "channels", "precision"),
)


# --- What several stores must say alike, and what they say together.


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
    a licence, that the others' is unknown. Of the labelling what all say alike.
    """
    known = [store.attributes for store in stores]
    software: dict[str, str] = {}
    for name in sorted({name for each in known for name in each.software}):
        versions = [each.software[name] for each in known if name in each.software]
        software[name] = ", ".join(dict.fromkeys(versions))
    licences = dict.fromkeys(each.licence or "unknown" for each in known)
    citations = dict.fromkeys(each.citation for each in known if each.citation)
    facts = [each.labelling for each in known]
    labelling = None
    if facts[0] is not None and None not in facts:
        alike = {
            name: value
            for name, value in facts[0]
            if all(value == getattr(other, name) for other in facts)
        }
        labelling = LabellingFacts(**alike)
    return {
        "licence": " AND ".join(licences) if any(each.licence for each in known) else None,
        "citation": "\n\n".join(citations) or None,
        "software": software,
        "labelling": labelling,
    }


def _rows_of(store: SoftLabels) -> ImageRows:
    return ImageRows(
        store.sample_hash, store.labels, store.path, lambda row: (store.path, f"row {row}")
    )


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
    changes = _merge_changes(stores)
    if images is None:
        _require_different(stores, owner, row, hashes)
    else:
        stores[0].require_classes(images.manifest.class_names, data)
        changes["dataset"] = dataset_of(images.manifest)
        order = partners(
            ImageRows(images.sample_hash, images.labels, data, lambda at: (data, f"sample {at}")),
            ImageRows(
                hashes,
                labels,
                "the stores",
                lambda at: (stores[owner[at]].path, f"row {row[at]}"),
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

    attributes = attributes_of_rows(stores[0].attributes, labels, hashes, **changes)
    rows = chunk_rows(stores, attributes)
    return DerivedStore(attributes, labels, hashes, names, block, rows)


def _merge_changes(stores: Sequence[SoftLabels]) -> dict[str, Any]:
    identities = tuple(store.identity for store in stores)
    changes = _joint_terms(stores) | {
        "derived_from": DerivationFacts(operation="merge", sources=identities),
        "top_k": _joint_topk(stores),
    }
    known = [teacher for store in stores for teacher in store.attributes.teachers]
    if any(teacher.mean is None for teacher in known):
        unknown = {"mean": None, "std": None, "columns": ()}
        first = stores[0].attributes.teachers
        changes["teachers"] = tuple(one.model_copy(update=unknown) for one in first)
    return changes


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
    identities = [store.identity for store in stores]
    if len(set(shares)) > 1:
        pairs = zip(identities, shares, strict=True)
        identities = [f"{name} weight {share:.6g}" for name, share in pairs]
    teachers = {
        (teacher.sha256, teacher.normalisation): teacher
        for store in reversed(stores)
        for teacher in reversed(store.attributes.teachers)
    }
    attributes = attributes_of_rows(
        first.attributes,
        first.labels,
        first.sample_hash,
        derived_from=DerivationFacts(operation="average", sources=tuple(identities)),
        teachers=tuple(reversed(teachers.values())),
        top_k=TopKFacts(k=top_k) if top_k else None,
        **_joint_terms(stores),
    )
    distances = Distances()

    def block(index: NDArray[np.int64]) -> Block:
        total = np.zeros(1, np.float32)
        for store, row, share in zip(stores, rows, shares, strict=True):
            soft = to_float32(store.gather(row[index]))
            soft /= soft.sum(axis=-1, keepdims=True) / np.float32(share)
            total = total + soft
        if top_k:
            return distances.largest(total, top_k)
        return {"soft_labels": round_soft_labels(total, int(index[0]), first.path)}

    return DerivedStore(
        attributes,
        first.labels,
        first.sample_hash,
        SPARSE if top_k else ("soft_labels",),
        block,
        chunk_rows(stores, attributes),
        finish=(lambda: distances.noted(attributes)) if top_k else None,
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
    if first.attributes.dataset.fingerprint == other.attributes.dataset.fingerprint:
        return np.arange(first.num_samples)
    cut = "Cut both to the same images with 'ltd-pipe store subset --data'."
    if by_hash:
        rows = partners(_rows_of(first), _rows_of(other), remedy=cut)
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
