"""Whether labels belong to images: position alone is never trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import JoinError, StoreError
from ltd_pipe.text import nfc, quoted

if TYPE_CHECKING:
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.manifest import ImageFacts
    from ltd_pipe.images.stream import FolderStream
    from ltd_pipe.labels.convert import FolderFacts, HashedImages
    from ltd_pipe.labels.format import StoreAttributes

    # Sets of images that labels are joined to, and what is known of such a set.
    ImagesLike: TypeAlias = Beton | FolderStream | HashedImages
    ManifestLike: TypeAlias = ImageFacts | FolderFacts


def remedy(store: object) -> str:
    """What to do when labels and images do not belong together."""
    info = f"'ltd-pipe store info {quote(str(store))}'"
    return f"Re-run 'ltd-pipe label', or pass the data set that {info} names."


def require_rows(
    where: object, index: NDArray[np.integer[Any]], num_samples: int
) -> NDArray[np.int64]:
    """Refuse indices that are no rows: negative ones too, which NumPy would wrap around."""
    index = np.asarray(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise ValueError(f"index: expected integers (B,), found {index.shape} {index.dtype}")
    outside = (index < 0) | (index >= num_samples)
    if outside.any():
        expected = f"0 to {num_samples - 1}"
        raise StoreError(where, "no such row", expected=expected, found=index[outside][0])
    return index.astype(np.int64, copy=False)


def same_rows(one: Joinable, other: ImagesLike | Joinable) -> bool:
    """Whether both are of the same images with the same classes, in the same order."""
    return np.array_equal(one.sample_hash, other.sample_hash) and np.array_equal(
        one.labels, other.labels
    )


class HashIndex:
    """Finds rows by the hash of their image: of equal ones under several classes, each is a row."""

    def __init__(self, sample_hash: NDArray[np.uint64], labels: NDArray[np.int32]) -> None:
        self._order = np.argsort(sample_hash, kind="stable").astype(np.int64)
        self._sorted, self._labels = sample_hash[self._order], labels

    def first_rows(self, sample_hash: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The first row of each image, -1 where it has none."""
        place = np.searchsorted(self._sorted, sample_hash)
        place = np.minimum(place, len(self._sorted) - 1)
        return np.where(self._sorted[place] == sample_hash, self._order[place], -1)

    def rows(self, sample_hash: int, label: int | None = None) -> NDArray[np.int64]:
        """All rows of one image, or those of this class, ascending."""
        wanted = np.uint64(sample_hash)
        first, last = (self._sorted.searchsorted(wanted, side) for side in ("left", "right"))
        found = self._order[first:last]
        return found if label is None else found[self._labels[found] == label]


class Joinable:
    """Labels that are joined to images, with every hash compared."""

    path: Path
    attributes: StoreAttributes
    labels: NDArray[np.int32]
    sample_hash: NDArray[np.uint64]

    @cached_property
    def index(self) -> HashIndex:
        """Rows by hash; it is made when it is first needed."""
        return HashIndex(self.sample_hash, self.labels)

    def _refusal(
        self, what: str, *, found: object, expected: object = None, way_on: str | None = None
    ) -> JoinError:
        way_on = remedy(self.path) if way_on is None else way_on
        return JoinError(self.path, what, expected=expected, found=found, remedy=way_on)

    def join(self, rows: NDArray[np.int64], sample_hash: NDArray[np.uint64], data: str) -> None:
        """Refuse to go on unless each row belongs to the image at hand.

        Parameters
        ----------
        rows : ndarray of shape (B,), dtype int64
            Rows that were or will be gathered.
        sample_hash : ndarray of shape (B,), dtype uint64
            Of the images, read from the data themselves.
        data : str
            How the user knows the data, such as the beton's path.
        """
        rows = require_rows(self.path, rows, self.attributes.num_samples)
        if rows.shape != sample_hash.shape:
            raise ValueError(f"{len(rows)} rows and {len(sample_hash)} sample hashes")
        expected = self.sample_hash[rows]
        different = expected != sample_hash
        if different.any():
            first = int(np.argmax(different))
            raise self._refusal(
                f"sample {rows[first]}",
                expected=f"sample_hash {expected[first]:016x}",
                found=f"{sample_hash[first]:016x} in {data}: these labels belong to other images",
            )

    def rows_of(
        self,
        sample_hash: NDArray[np.uint64],
        labels: NDArray[np.int32] | None = None,
        data: str = "the data",
    ) -> NDArray[np.int64]:
        """Find the rows of images that come in another order, or are only some of them.

        Parameters
        ----------
        sample_hash : ndarray of shape (n,), dtype uint64
            Of the images.
        labels : ndarray of shape (n,), dtype int32, optional
            Their classes, which must then be the store's.
        data : str
            How the user knows the data.

        Returns
        -------
        ndarray of shape (n,), dtype int64
            Of equal images the row at the sample's own place, or any one's.
        """
        rows, both = self.index.first_rows(sample_hash), min(len(sample_hash), len(self.labels))
        # Of equal images the row at its own place is the sample's.
        own = sample_hash[:both] == self.sample_hash[:both]
        if labels is not None:
            own &= labels[:both] == self.labels[:both]
        rows[:both][own] = np.flatnonzero(own)
        if (rows < 0).any():
            sample = int(np.argmax(rows < 0))
            raise self._refusal(
                f"has no label for sample {sample} of {data}",
                found=f"sample_hash {sample_hash[sample]:016x}",
            )
        if labels is None:
            return rows
        # One image may be in the data set twice, under two classes.
        for sample in np.flatnonzero(self.labels[rows] != labels).tolist():
            fitting = self.index.rows(int(sample_hash[sample]), int(labels[sample]))
            if not len(fitting):
                raise self._refusal(
                    f"row {rows[sample]}",
                    expected=f"class {self.labels[rows[sample]]}",
                    found=f"class {labels[sample]} for the same image, sample {sample} of {data}",
                )
            rows[sample] = fitting[0]
        return rows

    def require_classes(self, class_names: Sequence[str], data: str) -> None:
        """Refuse data whose classes are not the columns; needed beside `rows_of`."""
        known = self.attributes.class_names
        if len(class_names) != len(known):
            raise self._refusal(
                "number of classes", expected=len(known), found=f"{len(class_names)} in {data}"
            )
        for number, (expected, found) in enumerate(zip(known, class_names, strict=True)):
            if nfc(expected) != nfc(found):
                raise self._refusal(
                    f"class {number}", expected=quoted(expected), found=f"{quoted(found)} in {data}"
                )

    def require_data(
        self, manifest: ManifestLike, data: str, images: ImagesLike | None = None
    ) -> None:
        """Refuse a data set other than the labelled one in the same order, before the work.

        Classes, number of samples and fingerprint are compared; with the images, Beton or
        FolderStream, the first sample that differs is named.
        """
        self.require_classes(manifest.class_names, data)
        labelled, num_samples = self.attributes.dataset, self.attributes.num_samples
        same_number = manifest.num_samples == num_samples
        if same_number and manifest.fingerprint == labelled.fingerprint:
            # Which is what the store claims; its own rows are what is joined.
            if images is not None and not same_rows(self, images):
                raise self._refusal(
                    f"claims the fingerprint of {data}, and has other samples",
                    found=f"first {self._first_difference(images)}",
                    way_on="Whoever made it wrote it wrongly, or changed it: ask them.",
                )
            return
        way_on = None
        if images is not None:
            data = f"{data}; the first that differs is {self._first_difference(images)}"
            if self.attributes.views.augmentation is None:
                way_on = self._way_on(images)
        if not same_number:
            raise self._refusal(
                "number of samples",
                expected=num_samples,
                found=f"{manifest.num_samples} ({manifest.dataset}, {manifest.split}) in {data}",
                way_on=way_on,
            )
        found = f"{manifest.fingerprint[:12]}… ({manifest.dataset}, {manifest.split})"
        raise self._refusal(
            "fingerprint of the images",
            expected=f"{labelled.fingerprint[:12]}… ({labelled.name}, {labelled.split})",
            found=f"{found} in {data}",
            way_on=way_on,
        )

    def _first_difference(self, images: ImagesLike) -> str:
        hashes, labels = self.sample_hash, self.labels
        both = min(len(hashes), len(images.labels))
        wrong = (hashes[:both] != images.sample_hash[:both]) | (
            labels[:both] != images.labels[:both]
        )
        first = int(np.argmax(wrong)) if wrong.any() else both
        if first < len(images.labels):
            return _name_of(images, first)
        if first < len(hashes):
            return f"sample {first}, which is in the store alone"
        return "none: class names are in another form of Unicode"

    def _way_on(self, images: ImagesLike) -> str:
        known = np.isin(images.sample_hash, self.sample_hash)
        if not known.any():
            return (
                "None of these images is in the store: are they of another split or data set? "
                "Images are known by their files' bytes, of digits and CIFAR by their pixels: "
                "copies that were saved anew, resized or converted are other images. "
                + remedy(self.path)
            )
        subset = f"'ltd-pipe store subset {quote(str(self.path))} --data IMAGES --out NEW.zarr'"
        if told := self._of_other_classes(images):
            return told
        if known.all():
            return (
                f"{subset} keeps the labels of these images, which are all in the store, in their "
                "order."
            )
        return (
            f"{known.sum():,} of {len(known):,} images are in the store: ask its maker for labels "
            f"of the others, such as {_name_of(images, int(np.argmin(known)))}, and join them with "
            f"'ltd-pipe store merge'; or label all with a teacher of your own; or remove the "
            f"others, and {subset} keeps the labels of those that remain."
        )

    def _of_other_classes(self, images: ImagesLike) -> str | None:
        """What to tell of images that are in the store, and of another class there."""
        rows = self.index.first_rows(images.sample_hash)
        differing = np.flatnonzero((rows >= 0) & (self.labels[rows] != images.labels))
        # An image may be there twice, under two classes.
        hashes, labels = images.sample_hash[differing], images.labels[differing]
        pairs = zip(hashes.tolist(), labels.tolist(), strict=True)
        alone = [not len(self.index.rows(*pair)) for pair in pairs]
        if not any(alone):
            return None
        first, names = int(differing[alone.index(True)]), self.attributes.class_names
        here, there = int(images.labels[first]), int(self.labels[rows[first]])
        words = [quoted(names[number]) if number >= 0 else "none" for number in (here, there)]
        return (
            f"{sum(alone):,} images have another class here than in the store, such as "
            f"{_name_of(images, first)}: {words[0]} here, {words[1]} there. Correct it where it is "
            "wrong; labels of a teacher that learned from it are then to be made anew."
        )

    def require_shape(self, shape: Sequence[int], data: str, *, any_size: bool = False) -> None:
        """Refuse images of another shape than the teacher was shown, where the store says it.

        Parameters
        ----------
        shape : sequence of int
            (C, H, W) of the images, or their (H, W).
        data : str
            How the user knows the data.
        any_size : bool
            Take labels of whole images all the same; a view is one of images of one size.
        """
        seen = self.attributes.labelling.image_shape if self.attributes.labelling else None
        if seen is None or tuple(shape) in (seen, seen[1:]):
            return
        views = self.attributes.views.augmentation is not None
        if any_size and not views:
            return
        size = f"--image-size {seen[1]}, or label at this size"
        raise self._refusal(
            "shape of the images",
            expected=f"{'×'.join(map(str, seen[-len(shape) :]))}, as the teacher saw them",
            found=f"{'×'.join(map(str, shape))} in {data}",
            way_on=f"Views are of images of one size: prepare them with {size}."
            if views
            else f"Prepare them with {size}; or pass --any-size (any_size=True), if that is meant.",
        )


def _name_of(images: ImagesLike, sample: int) -> str:
    # By its file, where that is known.
    where = getattr(images, "where", None)
    return f"sample {sample}" + (f", {where(sample)}" if where else "")


# --- Which rows of two sets are of the same images, though their order or number differ.


class ImageRows(NamedTuple):
    """Rows of one set, and how they are named where one has no partner in another set."""

    sample_hash: NDArray[np.uint64]
    labels: NDArray[np.int32]
    # The set, such as a store's path, and what one of it is called.
    name: object
    unit: str = "row"
    # Gives the file of a row, and what it is called there; by default by the set and its number.
    place: Callable[[int], tuple[object, str]] | None = None

    def row(self, number: int) -> tuple[object, str]:
        """How the user knows a row: the file, and what it is called there."""
        return self.place(number) if self.place else (self.name, f"{self.unit} {number}")


class Matches(NamedTuple):
    """Pairs of rows by rising row of the first set, and rows without a partner, rising."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    only_first: NDArray[np.int64]
    only_second: NDArray[np.int64]


def match_rows(
    first: tuple[NDArray[np.uint64], NDArray[np.int32]],
    second: tuple[NDArray[np.uint64], NDArray[np.int32]],
) -> Matches:
    """Pair rows of equal sample_hash, each at most once.

    An image that is several times in both sets is paired as often as the rarer set has it:
    by label first, then in order.

    Parameters
    ----------
    first, second : tuple of ndarray of shape (N,), dtype uint64, and of int32
        Hashes and labels.
    """
    hashes = np.concatenate([first[0], second[0]])
    labels = np.concatenate([first[1], second[1]])
    count = len(first[0])
    left = [np.arange(count), np.arange(count, len(hashes))]
    pairs: list[list[NDArray[np.int64]]] = []
    _, image = np.unique(hashes, return_inverse=True)
    _, label = np.unique(labels, return_inverse=True)
    _, both = np.unique(image * (label.max(initial=0) + 1) + label, return_inverse=True)
    # Equal hash and label first; what is left, by hash alone.
    for key in (both, image):
        ours, theirs = (_numbered(key[rows], len(hashes)) for rows in left)
        _, *at = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
        pairs.append([rows[chosen] for rows, chosen in zip(left, at, strict=True)])
        left = [np.delete(rows, chosen) for rows, chosen in zip(left, at, strict=True)]
    ours, theirs = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    order = np.argsort(ours)
    return Matches(ours[order], theirs[order] - count, left[0], left[1] - count)


def _numbered(key: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    # Equal keys made different: the n-th row of a key is one of its own.
    order = np.argsort(key, kind="stable")
    starts = np.searchsorted(key[order], key[order])
    number = np.empty_like(key)
    number[order] = np.arange(len(key)) - starts
    return key * total + number


def partners(
    first: ImageRows, second: ImageRows, *, whole: bool = True, remedy: str = ""
) -> NDArray[np.int64]:
    """The row of the second set for each row of the first, each used once.

    Parameters
    ----------
    first, second : ImageRows
    whole : bool
        Refuse rows of the second set that have no partner, and take the first set's classes for
        right; else the second is a data set, of which the first are only some images.
    remedy : str
        What to do about a row without one.

    Raises
    ------
    JoinError
        When a row has no partner, or is of another class than its partner.
    """
    found = match_rows(first[:2], second[:2])
    sides = [(found.only_first, first, second), (found.only_second, second, first)]
    for alone, side, other in sides[: 1 + whole]:
        if len(alone):
            where, row = side.row(int(alone[0]))
            raise JoinError(
                where,
                f"{row} is not in {other.name}, or less often ({len(alone)} such)",
                found=f"sample_hash {side.sample_hash[alone[0]]:016x}",
                remedy=remedy,
            )
    pairs = zip((first, second), (found.first, found.second), strict=True)
    (wanted, at), (given, rows) = pairs if whole else reversed([*pairs])
    wrong = wanted.labels[at] != given.labels[rows]
    if wrong.any():
        pair = int(np.argmax(wrong))
        where, row = given.row(int(rows[pair]))
        _, partner = wanted.row(int(at[pair]))
        raise JoinError(
            where,
            row,
            expected=f"class {wanted.labels[at[pair]]} as {partner} of {wanted.name}",
            found=given.labels[rows[pair]],
        )
    return found.second
