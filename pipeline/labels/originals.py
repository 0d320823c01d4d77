"""The files or pixels that a torch data set's images come from: what their hashes are taken over.

A data set gives transformed images, which have no hash. For the common kinds the originals are
known; for all others the caller says what they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ltd_pipe.errors import DataError
from ltd_pipe.images.manifest import sample_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HashOf", "Originals", "find_originals"]

HashOf = Callable[[int], "int | bytes | NDArray[np.uint8] | Path"]
_MAX_HASH = 2**64
_HOW = (
    "Pass hash_of=, a function that takes i and returns what image i's hash is taken over: the "
    "bytes of its file, a Path to it, or its pixels as an array of uint8."
)


class Originals(Protocol):
    """What the images of one data set come from; looked up anew each time, as the data set does."""

    def where(self, i: int) -> str:
        """Image i as the user knows it."""

    def token(self, i: int) -> int | None:
        """A number that stays while image i is the same file; None: in memory, quickly hashed."""

    def hash(self, i: int) -> int:
        """The image's sample_hash, from its original."""

    def class_names(self) -> list[tuple[str, ...]]:
        """Of each data set below that knows its classes."""

    def transforms(self) -> bool:
        """Whether images come out changed."""


@dataclass(frozen=True)
class _Files:
    """torchvision's DatasetFolder and its kinds, such as ImageFolder."""

    dataset: Any

    def where(self, i: int) -> str:
        return str(self.dataset.samples[i][0])

    def token(self, i: int) -> int:
        return hash(self.dataset.samples[i][0])

    def hash(self, i: int) -> int:
        return sample_hash(Path(self.dataset.samples[i][0]).read_bytes())

    def class_names(self) -> list[tuple[str, ...]]:
        # ImageNet's classes are lists of synonyms; its folders are named by WordNet's numbers.
        names = getattr(self.dataset, "wnids", self.dataset.classes)
        return [tuple(names)]

    def transforms(self) -> bool:
        return self.dataset.transform is not None


@dataclass(frozen=True)
class _Pixels:
    """torchvision's CIFAR and MNIST, in memory: height first, channels last, as they came."""

    dataset: Any

    def where(self, i: int) -> str:
        return f"{type(self.dataset).__name__} image {i}"

    def token(self, _: int) -> None:
        return None

    def hash(self, i: int) -> int:
        return sample_hash(np.asarray(self.dataset.data[i]))

    def class_names(self) -> list[tuple[str, ...]]:
        return [tuple(self.dataset.classes)]

    def transforms(self) -> bool:
        return self.dataset.transform is not None


@dataclass(frozen=True)
class _Timm:
    """timm's ImageDataset over a folder or an archive."""

    dataset: Any

    def __post_init__(self) -> None:
        if not hasattr(self.dataset, "_max_retries"):
            raise DataError(
                type(self.dataset).__name__,
                "gives a neighbour's image where a file is unreadable, and this timm cannot be "
                "kept from it",
                remedy="Update timm, or use torchvision's ImageFolder.",
            )
        # After one attempt it raises. By default it goes on to the next image, and says nothing
        # to us, so that the label would be another image's.
        self.dataset._max_retries = 1

    def where(self, i: int) -> str:
        return str(self.dataset.filename(i, absolute=True))

    def token(self, i: int) -> int:
        return hash(self.dataset.filename(i, absolute=True))

    def hash(self, i: int) -> int:
        with self.dataset.reader[i][0] as file:
            return sample_hash(file.read())

    def class_names(self) -> list[tuple[str, ...]]:
        numbers = getattr(self.dataset.reader, "class_to_idx", None)
        return [tuple(sorted(numbers, key=numbers.get))] if numbers else []

    def transforms(self) -> bool:
        return self.dataset.transform is not None


@dataclass(frozen=True)
class _Subset:
    """Some of another data set's images."""

    dataset: Any
    inner: Originals

    def where(self, i: int) -> str:
        return self.inner.where(self._index(i))

    def token(self, i: int) -> int | None:
        return self.inner.token(self._index(i))

    def hash(self, i: int) -> int:
        return self.inner.hash(self._index(i))

    def class_names(self) -> list[tuple[str, ...]]:
        return self.inner.class_names()

    def transforms(self) -> bool:
        return self.inner.transforms()

    def _index(self, i: int) -> int:
        return int(self.dataset.indices[i])


@dataclass(frozen=True)
class _Joined:
    """Several data sets, one after the other."""

    dataset: Any
    parts: tuple[Originals, ...]

    def where(self, i: int) -> str:
        part, inner = self._place(i)
        return part.where(inner)

    def token(self, i: int) -> int | None:
        part, inner = self._place(i)
        return part.token(inner)

    def hash(self, i: int) -> int:
        part, inner = self._place(i)
        return part.hash(inner)

    def class_names(self) -> list[tuple[str, ...]]:
        return [names for part in self.parts for names in part.class_names()]

    def transforms(self) -> bool:
        return any(part.transforms() for part in self.parts)

    def _place(self, i: int) -> tuple[Originals, int]:
        ends = self.dataset.cumulative_sizes
        part = int(np.searchsorted(ends, i, side="right"))
        return self.parts[part], i - (ends[part - 1] if part else 0)


@dataclass(frozen=True)
class _Given:
    """Whatever the caller says."""

    dataset: Any
    hash_of: HashOf

    def where(self, i: int) -> str:
        return f"image {i} of {type(self.dataset).__name__}"

    def token(self, _: int) -> int:
        return 0

    def hash(self, i: int) -> int:
        given = self.hash_of(i)
        if isinstance(given, Path):
            given = given.read_bytes()
        if isinstance(given, bytes) or (isinstance(given, np.ndarray) and given.dtype == np.uint8):
            return sample_hash(given)
        if isinstance(given, int | np.integer) and 0 <= given < _MAX_HASH:
            return int(given)
        kind = getattr(given, "dtype", type(given).__name__)
        raise DataError(self.where(i), "hash_of returned something else", found=kind, remedy=_HOW)

    def class_names(self) -> list[tuple[str, ...]]:
        names = getattr(self.dataset, "classes", None)
        return [tuple(names)] if isinstance(names, list | tuple) else []

    def transforms(self) -> bool:
        return getattr(self.dataset, "transform", None) is not None


# Module and class, whose __getitem__ must be the one in use.
_KINDS: tuple[tuple[str, str, Callable[[Any], Originals]], ...] = (
    ("torchvision.datasets.folder", "DatasetFolder", _Files),
    ("torchvision.datasets.cifar", "CIFAR10", _Pixels),
    ("torchvision.datasets.mnist", "MNIST", _Pixels),
    ("timm.data.dataset", "ImageDataset", _Timm),
    ("torch.utils.data.dataset", "Subset", lambda d: _Subset(d, find_originals(d.dataset))),
    (
        "torch.utils.data.dataset",
        "ConcatDataset",
        lambda d: _Joined(d, tuple(map(find_originals, d.datasets))),
    ),
)


def find_originals(dataset: Any, hash_of: HashOf | None = None) -> Originals:
    """Know where a data set's images come from, or refuse it.

    Known are torchvision's DatasetFolder (ImageFolder, ImageNet, …), CIFAR10, CIFAR100 and
    MNIST with its kin, timm's ImageDataset, and torch's Subset and ConcatDataset of these.

    Parameters
    ----------
    dataset : map-style data set
    hash_of : callable, optional
        Says it for any data set: of i, the bytes of image i's file, a Path to it, its pixels as
        an array of uint8, or its sample_hash. It must look at the image that the data set
        gives; to repeat what the store says would be no check.

    Raises
    ------
    DataError
        When it is of another kind, or its class has a `__getitem__` of its own, which may
        return any image for i.
    """
    if hash_of is not None:
        return _Given(dataset, hash_of)
    for module, name, originals in _KINDS:
        # A data set whose module was never imported cannot be of its kind.
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(dataset, kind):
            if _reads_as(dataset, kind):
                return originals(dataset)
            raise DataError(
                type(dataset).__name__,
                f"has its own __getitem__, not {name}'s: which file is image i is not known",
                remedy=_HOW,
            )
    raise DataError(
        type(dataset).__name__,
        "is a kind of data set whose images cannot be checked",
        expected="torchvision's ImageFolder, CIFAR or MNIST, timm's ImageDataset, or a Subset or "
        "ConcatDataset of these",
        remedy=_HOW,
    )


def _reads_as(dataset: Any, kind: type) -> bool:
    return all(
        getattr(type(dataset), method, None) is getattr(kind, method, None)
        for method in ("__getitem__", "__getitems__")
    )
