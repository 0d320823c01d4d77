"""TinyViT's sparse logits (arXiv 2207.10666), which are probabilities.

github.com/microsoft/Cream, TinyViT/data/augmentation/{manager,dataset_wrapper}.py: of each epoch
a folder `logits_top100_epoch0`, in it of each process `rank0-keys.txt`, one key a line, and
`rank0-values.bin`, of each key an int32 (the seed of its augmentation), k int16 (classes, most
probable first) and k float16 (their probabilities); little-endian, without gaps. The key is the
image's name without its suffix, or its number where the data set gives no names.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import JoinError, MissingError, ParamsError, StoreError
from pipeline.labels.topk import expand
from pipeline.provenance import sha256_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.images import HashedImages

__all__ = ["TinyVitLabels"]

_EPOCH = re.compile(r"logits_top([0-9]{1,6})_epoch([0-9]{1,6})")
_PACKAGE = re.compile(r"rank([0-9]{1,6})-values\.bin")


class TinyVitLabels:
    """TinyViT's labels as one row per image; see `pipeline.combine.foreign.ImageLabels`.

    Parameters
    ----------
    root : Path
        The folder of one epoch, or of several epochs' folders.
    images : HashedImages
    average_crops : bool
        Must be true. Each epoch's label is of one augmented view, whose seed only TinyViT's
        own augmentation understands.
    trust_order : bool
        Take keys that are numbers for the places of the images in their order.

    Raises
    ------
    MissingError, StoreError, JoinError, ParamsError
        When it is no such folder, files are damaged, or an image has no label.
    """

    has_logits = False

    def __init__(
        self, root: Path, images: HashedImages, *, average_crops: bool, trust_order: bool = False
    ) -> None:
        if not average_crops:
            raise ParamsError(
                root,
                "TinyViT's labels are of augmented views, which a store cannot make again",
                remedy="Pass --average-crops to take each image's, averaged over the epochs, for "
                "the image.",
            )
        self._folders, self.own_top_k = _epoch_folders(root)
        self._num_classes = len(images.manifest.class_names)
        if self.own_top_k > self._num_classes:
            raise StoreError(
                root,
                "probabilities per row",
                expected=f"at most {self._num_classes}, the classes",
                found=self.own_top_k,
            )
        places = _places(images, trust_order=trust_order)
        self._by_position = trust_order
        self._epochs = [
            _Epoch(folder, self.own_top_k, places, images, trust_order=trust_order)
            for folder in self._folders
        ]

    def sparse(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.float16]] | None:
        """Classes and probabilities of shape (n, k) as they are, of a single epoch."""
        if len(self._epochs) > 1:
            return None
        return self._epochs[0].rows(first, last, self._num_classes)

    def answers(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows of shape (n, K): the mean over epochs."""
        total = np.zeros((last - first, self._num_classes), np.float32)
        for epoch in self._epochs:
            total += expand(*epoch.rows(first, last, self._num_classes), self._num_classes)
        total /= np.float32(len(self._epochs))
        return total

    def source(self) -> str:
        """What was averaged, and the files' hash."""
        total = hashlib.sha256()
        files = [path for folder in self._folders for path in sorted(folder.glob("rank*"))]
        for path in files:
            total.update(f"{sha256_file(path)}  {path.parent.name}/{path.name}\n".encode())
        joined = ", joined by position" if self._by_position else ""
        return (
            f"TinyViT, mean over {len(self._folders)} augmented views of each image{joined}, "
            f"{len(files)} files, SHA-256 of their list {total.hexdigest()}"
        )


def _epoch_folders(root: Path) -> tuple[list[Path], int]:
    if not root.is_dir():
        raise MissingError(root, "no such folder")
    folders = [root] if _EPOCH.fullmatch(root.name) else list(root.iterdir())
    found = {path: match for path in folders if (match := _EPOCH.fullmatch(path.name))}
    ks = {int(match[1]) for match in found.values()}
    if not found or len(ks) > 1 or min(ks) < 1:
        raise StoreError(
            root,
            "holds no epochs as TinyViT writes them",
            expected="folders such as logits_top100_epoch0, all of the same number",
            found=", ".join(sorted(path.name for path in folders)[:5]) or "nothing",
        )
    return sorted(found, key=lambda path: int(found[path][2])), ks.pop()


def _places(images: HashedImages, *, trust_order: bool) -> dict[str, int]:
    # Key to place.
    if trust_order:
        return {str(i): i for i in range(len(images.files))}
    places: dict[str, int] = {}
    for i, file in enumerate(images.files):
        key = PurePosixPath(file).stem
        if key in places:
            raise JoinError(
                images.files[i],
                "has the same name as another image, so that a key would be of both",
                found=images.files[places[key]],
            )
        places[key] = i
    return places


class _Epoch:
    # One folder: of each image in which file its label is, and where.
    def __init__(
        self,
        folder: Path,
        top_k: int,
        places: dict[str, int],
        images: HashedImages,
        *,
        trust_order: bool,
    ) -> None:
        self._top_k, self._folder = top_k, folder
        item = np.dtype([("seed", "<i4"), ("classes", "<i2", top_k), ("probs", "<f2", top_k)])
        packages = [path for path in folder.iterdir() if _PACKAGE.fullmatch(path.name)]
        # As TinyViT's reader does, the first file that has a key counts; samplers repeat some.
        packages.sort(key=lambda path: int(path.name[4:].partition("-")[0]))
        self._package = np.full(len(images.files), -1, np.int32)
        self._row = np.zeros(len(images.files), np.int64)
        self._values = []
        for number, path in enumerate(packages):
            keys = _read_keys(path.with_name(path.name.replace("-values.bin", "-keys.txt")))
            _require_size(path, len(keys) * item.itemsize)
            # Nothing can be mapped of an empty file, and nothing is in it.
            self._values.append(np.memmap(path, item, "r") if keys else np.empty(0, item))
            for row, key in enumerate(keys):
                place = places.get(key, -1)
                if place >= 0 and self._package[place] < 0:
                    self._package[place], self._row[place] = number, row
        self._require_all(images, trust_order=trust_order)

    def _require_all(self, images: HashedImages, *, trust_order: bool) -> None:
        missing = np.flatnonzero(self._package < 0)
        if len(missing):
            remedy = "Name the images that these labels were made of."
            if not trust_order:
                remedy += (
                    " If the keys are numbers, and the images in the order that was labelled, "
                    "pass --trust-order."
                )
            raise JoinError(
                self._folder,
                f"has no label for {images.files[missing[0]]} ({len(missing)} such)",
                remedy=remedy,
            )

    def rows(
        self, first: int, last: int, num_classes: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        package, row = self._package[first:last], self._row[first:last]
        classes = np.empty((last - first, self._top_k), np.int64)
        probs = np.empty((last - first, self._top_k), np.float16)
        for number in np.unique(package).tolist():
            chosen = package == number
            items = self._values[number][row[chosen]]
            # Written as int16, which holds classes beyond 32,767 as negative numbers.
            classes[chosen] = items["classes"].astype(np.uint16)
            probs[chosen] = items["probs"]
        again = (np.diff(np.sort(classes, axis=1), axis=1) == 0).any(axis=1)
        # Written so that NaN fails.
        right = ~again & (probs >= 0).all(axis=1) & (classes < num_classes).all(axis=1)
        right &= probs.sum(axis=1, dtype=np.float32) <= 1.01
        if not right.all():
            wrong = int(np.argmin(right))
            raise StoreError(
                self._folder,
                f"the label of image {first + wrong} is no distribution",
                expected=f"different classes below {num_classes}, probabilities of sum at most 1",
                found=f"classes up to {classes[wrong].max()}, sum "
                f"{probs[wrong].sum(dtype=np.float32):.4f}",
            )
        return classes, probs


def _read_keys(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except FileNotFoundError as error:
        raise MissingError(path, "no such file") from error


def _require_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size != expected:
        raise StoreError(
            path,
            "is cut short, or another file's keys are beside it",
            expected=f"{expected} bytes",
            found=size,
        )
