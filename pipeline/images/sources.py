"""Where images come from: scikit-learn's digits, CIFAR, or a folder of images."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from pipeline import rng
from pipeline.errors import DataError, MissingError
from pipeline.images.decode import decode_image
from pipeline.images.fingerprint import sample_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.params import PrepareParams

__all__ = ["ArraySource", "FolderSource", "Source", "Split", "open_source"]

Split = Literal["train", "test"]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"})
_TEST_FOLDERS = ("test", "val", "validation")


class Source(Protocol):
    """Labelled images in a fixed order."""

    @property
    def name(self) -> str:
        """The data set's name."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class of each image, shape (N,); -1 where unknown."""

    def __len__(self) -> int:
        """Number of images."""

    def where(self, i: int) -> str:
        """Image i as the user knows it."""

    def raw(self, i: int) -> bytes | NDArray[np.uint8]:
        """What image i's hash is taken over: its file's bytes, or its pixels."""

    def decode(self, i: int) -> NDArray[np.uint8]:
        """Image i as RGB of shape (H, W, 3); raises DataError when it is unreadable."""

    def take(self, keep: NDArray[np.int64]) -> Source:
        """The same images without those that are not in `keep`."""


@dataclass(frozen=True)
class ArraySource:
    """Images that are in memory as pixels.

    Attributes
    ----------
    name : str
    class_names : tuple of str
    images : ndarray of shape (N, H, W) or (N, H, W, 3), dtype uint8
    labels : ndarray of shape (N,), dtype int32
    """

    name: str
    class_names: tuple[str, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, i: int) -> str:
        """Name and number."""
        return f"{self.name} image {i}"

    def raw(self, i: int) -> NDArray[np.uint8]:
        """The pixels as they came."""
        image: NDArray[np.uint8] = self.images[i]
        return image

    def decode(self, i: int) -> NDArray[np.uint8]:
        """Grey becomes three equal channels."""
        image = self.images[i]
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)

    def take(self, keep: NDArray[np.int64]) -> ArraySource:
        """See `Source.take`."""
        return ArraySource(self.name, self.class_names, self.images[keep], self.labels[keep])


class FolderSource:
    """One folder per class, as in torchvision's ImageFolder; by class, then by sorted paths.

    Files and folders whose names begin with a dot are left alone: other programs keep
    thumbnails and check-points there.

    Parameters
    ----------
    folder : Path
        Holds a folder per class, each holding images at any depth; or, where `class_names` are
        given, images without class folders, whose labels are then -1.
    class_names : sequence of str, optional
        The classes that must be there, in the order of their labels; by default the
        sub-folders' names, sorted.

    Raises
    ------
    MissingError
        When there is no such folder.
    DataError
        When there are no images, fewer than two classes, a class without images, or other
        classes than expected.
    """

    def __init__(self, folder: Path, class_names: Sequence[str] | None = None) -> None:
        _require_folder(folder)
        found = _class_folders(folder)
        names = found if class_names is None else tuple(class_names)
        if not found and class_names is not None:
            # No class folders: the classes are the caller's, the ground truth is unknown.
            groups, numbers = [_images_below(folder)], np.array([-1])
        else:
            _require_classes(folder, found, class_names)
            groups, numbers = (
                [_images_below(folder / name) for name in names],
                np.arange(len(names)),
            )
        _require_images(folder, names, groups)
        self.folder = folder
        self.name, self.split = _name_and_split(folder.resolve())
        self.class_names = names
        self.paths = [path for group in groups for path in group]
        self.labels = np.repeat(numbers, [len(group) for group in groups]).astype(np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, i: int) -> str:
        """The file's path."""
        return str(self.paths[i])

    def raw(self, i: int) -> bytes:
        """The file's bytes."""
        content: bytes = self.paths[i].read_bytes()
        return content

    def decode(self, i: int) -> NDArray[np.uint8]:
        """See `pipeline.images.decode`."""
        return decode_image(self.raw(i), self.where(i))

    def take(self, keep: NDArray[np.int64]) -> FolderSource:
        """See `Source.take`."""
        part = copy.copy(self)
        part.paths = [self.paths[i] for i in keep]
        part.labels = self.labels[keep]
        return part


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    found = tuple(sorted(name for name in names if not name.startswith(".")))
    for name in found:
        _require_plain_name(folder, name)
    return found


def _require_plain_name(folder: Path, name: str) -> None:
    """It becomes a class's name, which is printed and stands in every store's metadata."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            folder, "a class folder's name is not UTF-8", found=ascii(name), remedy="Rename it."
        ) from error
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise DataError(
            folder,
            "a class folder's name has a control character",
            found=ascii(name),
            remedy="Rename it.",
        )


def _images_below(folder: Path) -> list[Path]:
    """All images at any depth, sorted by path; links to folders may form loops: not followed."""
    found = []
    for root, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = (name for name in files if not name.startswith("."))
        found += [Path(root) / name for name in names if Path(name).suffix.lower() in EXTENSIONS]
    return sorted(found)


def _refuse_unreadable(error: OSError) -> None:
    # os.walk would pass over such a folder in silence, and its images be missing.
    raise DataError(error.filename, f"cannot be read: {error.strerror}") from error


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise MissingError(folder, "no such folder")
    if not folder.is_dir():
        raise DataError(folder, "is a file", expected="a folder with one folder per class")


def _require_classes(folder: Path, found: tuple[str, ...], expected: Sequence[str] | None) -> None:
    layout = f"Put images into {folder}/CLASS/, one folder per class."
    if not found:
        raise DataError(folder, "has no class folders", remedy=layout)
    if expected is None and len(found) == 1:
        raise DataError(folder, f"has one class only, '{found[0]}'", remedy=layout)
    if expected is not None and set(expected) != set(found):
        differing = sorted(set(expected) ^ set(found))
        raise DataError(
            folder,
            "classes differ from the training images'",
            expected=f"{len(expected)} classes",
            found=f"{len(found)}; in one of them only: {', '.join(differing[:5])}",
        )


def _require_images(folder: Path, names: tuple[str, ...], groups: list[list[Path]]) -> None:
    kinds = ", ".join(sorted(EXTENSIONS))
    if not any(groups):
        raise DataError(folder, "has no images", expected=f"files ending in {kinds}")
    empty = [name for name, group in zip(names, groups, strict=False) if not group]
    if empty:
        raise DataError(
            folder / empty[0],
            f"class without images ({len(empty)} such)",
            expected=f"files ending in {kinds}",
            remedy="Add images or remove the folder.",
        )


def _name_and_split(folder: Path) -> tuple[str, Split]:
    # photos/train is the data set photos, so that its labels are those of photos' beton.
    split: Split = "test" if folder.name in _TEST_FOLDERS else "train"
    return (folder.parent.name if folder.name in {"train", *_TEST_FOLDERS} else folder.name), split


def open_source(params: PrepareParams, split: Split) -> Source:
    """Open one split of the data set that the parameters name.

    Parameters
    ----------
    params : PrepareParams
    split : str
        `train` or `test`.

    Raises
    ------
    MissingError, DataError
        When it is not there or not usable.
    """
    if params.dataset == "digits":
        return _digits(split)
    if params.dataset == "folder":
        return _folder(Path(str(params.path)), split)
    return _cifar(params, split)


def _folder(root: Path, split: Split) -> FolderSource:
    _require_folder(root)
    _require_folder(root / "train")
    train = FolderSource(root / "train")
    if split == "train":
        part = train
    else:
        names = [name for name in _TEST_FOLDERS if (root / name).is_dir()]
        if not names:
            raise MissingError(root, "has no test images", expected="test/ or val/ beside train/")
        part = FolderSource(root / names[0], train.class_names)
    part.name = root.resolve().name
    return part


def _digits(split: Split) -> ArraySource:
    from sklearn.datasets import load_digits

    content = load_digits()
    # Sixteen grey levels to 0..255.
    images = np.round(content.images * 255 / 16).astype(np.uint8)
    hashes = np.array([sample_hash(image) for image in images], dtype=np.uint64)
    # A third is for testing, chosen by each image's hash. The split is random, so that both
    # parts hold digits of every writer, as in most work that uses this set.
    draw = rng.bits(rng.stream_key(0, "digits-test"), hashes.view(np.int64))
    chosen = (draw < np.uint64(2**64 // 3)) == (split == "test")
    names = tuple(str(name) for name in content.target_names)
    return ArraySource("digits", names, images[chosen], content.target[chosen].astype(np.int32))


def _cifar(params: PrepareParams, split: Split) -> ArraySource:
    from torchvision import datasets

    root = Path(params.path or "data/raw")
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[params.dataset]
    there = (root / kind.base_folder).exists()
    try:
        # torchvision unpickles the archive only after its MD5 sum was found right. Its words on
        # the way are not ours.
        with contextlib.redirect_stdout(io.StringIO()):
            content = kind(str(root), train=split == "train", download=params.download)
    except Exception as error:  # a download fails in many ways, a corrupt archive in another
        raise _cifar_refused(params, root, there, error) from error
    labels = np.asarray(content.targets, dtype=np.int32)
    return ArraySource(params.dataset, tuple(content.classes), content.data, labels)


def _cifar_refused(params: PrepareParams, root: Path, there: bool, error: Exception) -> Exception:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    if there:
        return DataError(
            root,
            f"{params.dataset} is damaged or incomplete ({reason})",
            remedy="Remove it and put torchvision's archive there again.",
        )
    if params.download:
        return MissingError(
            root,
            f"{params.dataset} is not there and cannot be downloaded ({reason})",
            remedy="Put torchvision's archive there, or try again when there is a connection.",
        )
    return MissingError(
        root,
        f"{params.dataset} is not there",
        remedy="Put torchvision's archive there, or set prepare.download: true.",
    )
