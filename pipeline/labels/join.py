"""Whether labels belong to images: position alone is never trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np

from ltd_pipe.errors import JoinError
from ltd_pipe.text import nfc, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ltd_pipe.labels.format import StoreAttributes

__all__ = [
    "ImagesLike",
    "ManifestLike",
    "find_rows",
    "name_of",
    "remedy",
    "require_classes",
    "require_same_data",
    "require_same_images",
    "require_shape",
]


class ManifestLike(Protocol):
    """What a manifest of images tells; `ltd_pipe.images.manifest.Manifest` does."""

    @property
    def dataset(self) -> str:
        """Name of the data set."""

    @property
    def split(self) -> str:
        """Which part of it."""

    @property
    def num_samples(self) -> int:
        """N."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over classes, labels and sample hashes in their order."""


class ImagesLike(Protocol):
    """A set of images; `ltd_pipe.images.beton.Beton` is one."""

    @property
    def manifest(self) -> ManifestLike:
        """What the set is."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class of each image, shape (N,)."""

    @property
    def sample_hash(self) -> NDArray[np.uint64]:
        """Hash of each image's source, shape (N,)."""


def remedy(store: object) -> str:
    """What to do when labels and images do not belong together."""
    return (
        f"Re-run 'ltd-pipe label', or pass the data set that 'ltd-pipe store info {store}' names."
    )


def require_same_images(
    store: object,
    rows: NDArray[np.int64],
    expected: NDArray[np.uint64],
    found: NDArray[np.uint64],
    data: str,
) -> None:
    """Refuse the first row whose image is another one.

    Parameters
    ----------
    store : object
        The store's path, for the error.
    rows : ndarray of shape (B,), dtype int64
        Rows of the store.
    expected, found : ndarray of shape (B,), dtype uint64
        Hashes of the store's and of the data's images.
    data : str
        How the user knows the data.
    """
    different = expected != found
    if not different.any():
        return
    first = int(np.argmax(different))
    raise JoinError(
        store,
        f"sample {rows[first]}",
        expected=f"sample_hash {expected[first]:016x}",
        found=f"{found[first]:016x} in {data}: these labels belong to other images",
        remedy=remedy(store),
    )


def require_classes(
    store: object, attributes: StoreAttributes, class_names: Sequence[str], data: str
) -> None:
    """Refuse data whose classes are others, or in another order, than the labels' columns."""
    if len(class_names) != attributes.num_classes:
        raise JoinError(
            store,
            "number of classes",
            expected=attributes.num_classes,
            found=f"{len(class_names)} in {data}",
            remedy=remedy(store),
        )
    pairs = zip(attributes.class_names, class_names, strict=True)
    for number, (expected, found) in enumerate(pairs):
        if nfc(expected) != nfc(found):
            raise JoinError(
                store,
                f"class {number}",
                expected=quoted(expected),
                found=f"{quoted(found)} in {data}",
                remedy=remedy(store),
            )


def require_same_data(
    store: object,
    attributes: StoreAttributes,
    manifest: ManifestLike,
    data: str,
    rows: tuple[NDArray[np.uint64], NDArray[np.int32]] | None = None,
    images: ImagesLike | None = None,
) -> None:
    """Refuse a data set other than the labelled one, before any image is read.

    With the store's hashes and labels and the images the first that differs is named.
    """
    require_classes(store, attributes, manifest.class_names, data)
    labelled, same_number = attributes.dataset, manifest.num_samples == attributes.num_samples
    if same_number and manifest.fingerprint == labelled.fingerprint:
        return
    way_on = remedy(store)
    if rows is not None and images is not None:
        data = f"{data}; the first that differs is {_first_difference(*rows, images)}"
        if attributes.views.augmentation is None:
            way_on = _way_on(store, rows[0], images)
    if not same_number:
        raise JoinError(
            store,
            "number of samples",
            expected=attributes.num_samples,
            found=f"{manifest.num_samples} in {data}",
            remedy=way_on,
        )
    raise JoinError(
        store,
        "fingerprint of the images",
        expected=f"{labelled.fingerprint[:12]}… ({labelled.name}, {labelled.split})",
        found=f"{manifest.fingerprint[:12]}… ({manifest.dataset}, {manifest.split}) in {data}",
        remedy=way_on,
    )


def _first_difference(
    hashes: NDArray[np.uint64], labels: NDArray[np.int32], images: ImagesLike
) -> str:
    both = min(len(hashes), len(images.labels))
    wrong = (hashes[:both] != images.sample_hash[:both]) | (labels[:both] != images.labels[:both])
    first = int(np.argmax(wrong)) if wrong.any() else both
    if first < len(images.labels):
        return name_of(images, first)
    if first < len(hashes):
        return f"sample {first}, which is in the store alone"
    return "none: class names are in another form of Unicode"


def name_of(images: ImagesLike, sample: int) -> str:
    """A sample by its number, and by its file where that is known."""
    where = getattr(images, "where", None)
    return f"sample {sample}" + (f", {where(sample)}" if where else "")


def _way_on(store: object, hashes: NDArray[np.uint64], images: ImagesLike) -> str:
    known = np.isin(images.sample_hash, hashes)
    if not known.any():
        return remedy(store)
    keeps = f"'ltd-pipe store subset {store} --data' keeps the labels"
    if known.all():
        return f"{keeps} of these images, which are all in the store, in their order."
    return (
        f"{known.sum():,} of {len(known):,} images are in the store: without the others, such as "
        f"{name_of(images, int(np.argmin(known)))}, {keeps} of those that remain. Or run "
        "'ltd-pipe label' again."
    )


def require_shape(
    store: object,
    attributes: StoreAttributes,
    shape: Sequence[int],
    data: str,
    *,
    any_size: bool = False,
) -> None:
    """Refuse images of another shape than the teacher was shown, where the store says it.

    Parameters
    ----------
    store : object
        The store's path, for the error.
    attributes : StoreAttributes
    shape : sequence of int
        (C, H, W) of the images, or their (H, W).
    data : str
        How the user knows the data.
    any_size : bool
        Take labels of whole images all the same; a view is one of images of one size.
    """
    seen = attributes.labelling.image_shape if attributes.labelling else None
    if seen is None or tuple(shape) in (seen, seen[1:]):
        return
    views = attributes.views.augmentation is not None
    if any_size and not views:
        return
    size = f"--image-size {seen[1]}, or label at this size"
    raise JoinError(
        store,
        "shape of the images",
        expected=f"{'×'.join(map(str, seen[-len(shape) :]))}, as the teacher saw them",
        found=f"{'×'.join(map(str, shape))} in {data}",
        remedy=f"Views are of images of one size: prepare them with {size}."
        if views
        else f"Prepare them with {size}; or pass --any-size (any_size=True), if that is meant.",
    )


def find_rows(
    store: object,
    stored: tuple[NDArray[np.uint64], NDArray[np.int32]],
    wanted: tuple[NDArray[np.uint64], NDArray[np.int32] | None],
    data: str,
) -> NDArray[np.int64]:
    """Find each image's row by its hash; see `SoftLabels.rows_of`."""
    hashes, labels = stored
    wanted_hash, wanted_labels = wanted
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    place = np.searchsorted(ordered, wanted_hash)
    found = ordered[np.minimum(place, len(ordered) - 1)] == wanted_hash
    if not found.all():
        _refuse_unknown(store, int(np.argmin(found)), wanted_hash, data)
    rows = order[place].astype(np.int64)
    if wanted_labels is not None:
        # One image may be in the data set twice, under two classes.
        for sample in np.flatnonzero(labels[rows] != wanted_labels).tolist():
            rows[sample] = _row_of_class(store, sample, (ordered, order, labels), wanted, data)
    return rows


def _row_of_class(
    store: object,
    sample: int,
    stored: tuple[NDArray[np.uint64], NDArray[np.intp], NDArray[np.int32]],
    wanted: tuple[NDArray[np.uint64], NDArray[np.int32] | None],
    data: str,
) -> int:
    ordered, order, labels = stored
    assert wanted[1] is not None  # noqa: S101
    sought = wanted[0][sample]
    first, last = (int(np.searchsorted(ordered, sought, side)) for side in ("left", "right"))
    same = order[first:last]
    fitting = same[labels[same] == wanted[1][sample]]
    if not len(fitting):
        raise JoinError(
            store,
            f"row {same[0]}",
            expected=f"class {labels[same[0]]}",
            found=f"class {wanted[1][sample]} for the same image, sample {sample} of {data}",
            remedy=remedy(store),
        )
    return int(fitting[0])


def _refuse_unknown(
    store: object, sample: int, wanted_hash: NDArray[np.uint64], data: str
) -> NoReturn:
    raise JoinError(
        store,
        f"has no label for sample {sample} of {data}",
        found=f"sample_hash {wanted_hash[sample]:016x}",
        remedy=remedy(store),
    )
