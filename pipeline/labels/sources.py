"""Which row of a store belongs to sample i of a torch data set: by the hash of its source.

A data set gives transformed images, which have no hash. For the common kinds the files or pixels
that they come from are known; for all others the caller says what they are.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import DataError, JoinError
from ltd_pipe.images.manifest import sample_hash
from ltd_pipe.labels.join import remedy

if TYPE_CHECKING:
    from ltd_pipe.labels.reader import SoftLabels

HashOf = Callable[[int], "int | bytes | NDArray[np.uint8] | Path"]
_MAX_HASH = 2**64
_HOW = (
    "Pass hash_of=, a function that takes i and returns what image i's hash is taken over: the "
    "bytes of its file, a Path to it, or its pixels as an array of uint8."
)
_WORD = 64


class Source:
    """What the images of one data set come from; looked up anew each time, as the data set does."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def where(self, i: int) -> str:
        """Image i as the user knows it."""
        return f"{type(self.dataset).__name__} image {i}"

    def token(self, i: int) -> int | None:
        """A number that stays while image i is the same file; None: in memory, quickly hashed."""
        return hash(self.where(i))

    def hash(self, i: int) -> int:
        """The image's sample_hash, from its source."""
        raise NotImplementedError

    def class_names(self) -> list[tuple[str, ...]]:
        """Of each data set below that knows its classes."""
        names = getattr(self.dataset, "classes", None)
        return [tuple(names)] if isinstance(names, list | tuple) else []

    def transforms(self) -> bool:
        """Whether images come out changed."""
        return getattr(self.dataset, "transform", None) is not None


class _Files(Source):
    """torchvision's DatasetFolder and its kinds, such as ImageFolder."""

    def where(self, i: int) -> str:
        return str(self.dataset.samples[i][0])

    def hash(self, i: int) -> int:
        return sample_hash(Path(self.dataset.samples[i][0]).read_bytes())

    def class_names(self) -> list[tuple[str, ...]]:
        # ImageNet's classes are lists of synonyms; its folders are named by WordNet's numbers.
        return [tuple(getattr(self.dataset, "wnids", self.dataset.classes))]


class _Pixels(Source):
    """torchvision's CIFAR and MNIST, in memory: height first, channels last, as they came."""

    def token(self, i: int) -> None:
        del i

    def hash(self, i: int) -> int:
        return sample_hash(np.asarray(self.dataset.data[i]))


class _Timm(Source):
    """timm's ImageDataset over a folder or an archive."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset)
        if not hasattr(dataset, "_max_retries"):
            raise DataError(
                type(dataset).__name__,
                "gives a neighbour's image where a file is unreadable, and this timm cannot be "
                "kept from it",
                remedy="Update timm, or use torchvision's ImageFolder.",
            )
        # After one attempt it raises. By default it goes on to the next image, and says nothing
        # to us, so that the label would be another image's.
        dataset._max_retries = 1

    def where(self, i: int) -> str:
        return str(self.dataset.filename(i, absolute=True))

    def hash(self, i: int) -> int:
        with self.dataset.reader[i][0] as file:
            return sample_hash(file.read())

    def class_names(self) -> list[tuple[str, ...]]:
        numbers = getattr(self.dataset.reader, "class_to_idx", None)
        return [tuple(sorted(numbers, key=numbers.get))] if numbers else []


class _Stated(Source):
    """Whatever the caller says."""

    def __init__(self, dataset: Any, hash_of: HashOf) -> None:
        super().__init__(dataset)
        self._hash_of = hash_of

    def where(self, i: int) -> str:
        return f"image {i} of {type(self.dataset).__name__}"

    def token(self, i: int) -> int:
        del i
        return 0

    def hash(self, i: int) -> int:
        stated = self._hash_of(i)
        if isinstance(stated, Path):
            stated = stated.read_bytes()
        if isinstance(stated, bytes) or (
            isinstance(stated, np.ndarray) and stated.dtype == np.uint8
        ):
            return sample_hash(stated)
        if isinstance(stated, int | np.integer) and 0 <= stated < _MAX_HASH:
            return int(stated)
        kind = getattr(stated, "dtype", type(stated).__name__)
        raise DataError(self.where(i), "hash_of returned something else", found=kind, remedy=_HOW)


class _Parts(Source):
    """torch's Subset, or ConcatDataset of several data sets: image i is an image of another one."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset)
        below = dataset.datasets if hasattr(dataset, "datasets") else [dataset.dataset]
        self._parts = [find_source(each) for each in below]

    def _find(self, i: int) -> tuple[Source, int]:
        if hasattr(self.dataset, "indices"):
            return self._parts[0], int(self.dataset.indices[i])
        ends = self.dataset.cumulative_sizes
        if i < 0:
            i += ends[-1]
        part = int(np.searchsorted(ends, i, side="right"))
        return self._parts[part], i - (ends[part - 1] if part else 0)

    def where(self, i: int) -> str:
        part, inner = self._find(i)
        return part.where(inner)

    def token(self, i: int) -> int | None:
        part, inner = self._find(i)
        return part.token(inner)

    def hash(self, i: int) -> int:
        part, inner = self._find(i)
        return part.hash(inner)

    def class_names(self) -> list[tuple[str, ...]]:
        return [names for part in self._parts for names in part.class_names()]

    def transforms(self) -> bool:
        return any(part.transforms() for part in self._parts)


# Module and class, whose __getitem__ must be the one in use.
_KINDS: tuple[tuple[str, str, Callable[[Any], Source]], ...] = (
    ("torchvision.datasets.folder", "DatasetFolder", _Files),
    ("torchvision.datasets.cifar", "CIFAR10", _Pixels),
    ("torchvision.datasets.mnist", "MNIST", _Pixels),
    ("timm.data.dataset", "ImageDataset", _Timm),
    ("torch.utils.data.dataset", "Subset", _Parts),
    ("torch.utils.data.dataset", "ConcatDataset", _Parts),
)


def find_source(dataset: Any, hash_of: HashOf | None = None) -> Source:
    """Know where a data set's images come from, or refuse it.

    Known are torchvision's DatasetFolder (ImageFolder, ImageNet, …), CIFAR10, CIFAR100 and
    MNIST with its kin, timm's ImageDataset, and torch's Subset and ConcatDataset of these, where
    their `__getitem__` is not another one, which may return any image for i.

    Parameters
    ----------
    dataset : map-style data set
    hash_of : callable, optional
        Says it for any data set: of i, the bytes of image i's file, a Path to it, its pixels as
        an array of uint8, or its sample_hash. It must look at the image that the data set
        gives; to repeat what the store says would be no check.
    """
    if hash_of is not None:
        return _Stated(dataset, hash_of)
    what, expected = (
        "is a kind of data set whose images cannot be checked",
        (
            "torchvision's ImageFolder, CIFAR or MNIST, timm's ImageDataset, or a Subset or "
            "ConcatDataset of these"
        ),
    )
    for module, name, source in _KINDS:
        # A data set whose module was never imported cannot be of its kind.
        kind = getattr(sys.modules.get(module), name, None)
        if kind is None or not isinstance(dataset, kind):
            continue
        methods = ("__getitem__", "__getitems__")
        if all(getattr(type(dataset), m, None) is getattr(kind, m, None) for m in methods):
            return source(dataset)
        what = f"has its own __getitem__, not {name}'s: which file is image i is not known"
        raise DataError(type(dataset).__name__, what, remedy=_HOW)
    raise DataError(type(dataset).__name__, what, expected=expected, remedy=_HOW)


class SampleRows:
    """Rows of the `count` samples of one data set: found by hash, then remembered.

    What was found is kept in memory that forked processes share, so that of all workers of a
    DataLoader, in all epochs, only the first one to see a sample has to hash it. A process that
    was spawned starts anew.
    """

    def __init__(self, store: SoftLabels, count: int) -> None:
        self._store, self._count = store, count
        # A row and the token of the file that it was found for are one word: 8 bytes are
        # written at once, so that no process ever reads one without the other.
        self._bits = store.num_samples.bit_length()
        self._mask = (1 << self._bits) - 1
        self._found = _shared_words(count)

    def __getstate__(self) -> dict[str, Any]:
        # Elsewhere nothing was checked.
        return vars(self) | {"_found": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _found=_shared_words(state["_count"]))

    def known(self, sample: int, token: int) -> int:
        """The row that `remember` was given with the same token, or -1."""
        word = int(self._found[sample])
        return (word & self._mask) - 1 if word == self._word(word & self._mask, token) else -1

    def remember(self, sample: int, token: int, row: int) -> None:
        """Keep what was found."""
        self._found[sample] = self._word(row + 1, token)

    def _word(self, low: int, token: int) -> int:
        return low and ((token << self._bits) & (2**_WORD - 1) | low)

    def at_place(self, sample: int, sample_hash: int, where: str) -> int:
        """The sample's own number, which must be the row of its image."""
        expected = int(self._store.sample_hash[sample])
        if expected != sample_hash:
            raise JoinError(
                self._store.path,
                f"sample {sample}",
                expected=f"sample_hash {expected:016x}",
                found=f"{sample_hash:016x} in {where}: these labels belong to other images, or "
                "stand in another order",
                remedy="Pass order='any' to have each image's label found by its hash.",
            )
        return sample

    def by_hash(self, sample: int, sample_hash: int, label: int, where: str) -> int:
        """The row of that image, wherever it stands.

        Of an image that is there several times it is the one at the sample's own place, or one
        of the sample's class.
        """
        store = self._store
        if (
            sample < store.num_samples
            and int(store.sample_hash[sample]) == sample_hash
            and label in (-1, int(store.labels[sample]))
        ):
            return sample
        rows = store.index.rows(sample_hash)
        if not len(rows):
            raise JoinError(
                store.path,
                f"has no label for sample {sample}",
                found=f"sample_hash {sample_hash:016x} in {where}",
                remedy=remedy(store.path),
            )
        fitting = store.index.rows(sample_hash, label)
        return int(fitting[0] if len(fitting) else rows[0])


def _shared_words(count: int) -> NDArray[np.uint64]:
    # Anonymous and shared: zeros, of which no page exists before it is written to.
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * 8), np.uint64)
