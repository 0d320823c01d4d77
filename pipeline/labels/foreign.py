"""Labels that other projects made of a folder of images, made into stores."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ltd_pipe.errors import JoinError, MissingError, ParamsError, StoreError
from ltd_pipe.images.beton import open_beton
from ltd_pipe.images.manifest import fingerprint, sample_hash
from ltd_pipe.images.sources import FolderSource
from ltd_pipe.labels.derive import (
    Distances,
    NewRows,
    Origin,
    chunk_rows,
    derive_store,
    foreign_attributes,
    sparse_rows,
    stepwise,
)
from ltd_pipe.labels.format import DerivationFacts, StoreAttributes, to_float16
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.labels.softmax import expand, soften
from ltd_pipe.labels.writer import round_logits, round_soft_labels, round_topk
from ltd_pipe.provenance import sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ltd_pipe.labels.join import ImagesLike


# --- Reading the stores that another one is made of: no byte is used that was not hashed.


class ProvenStore:
    """A store of which each chunk's SHA-256 is compared with the manifest before it is used.

    The new store names this one's identity as where its rows come from, so the rows must be
    those of that identity. A chunk's CRC-32C would find damage, but not a change.

    Parameters
    ----------
    path : Path or SoftLabels
        An opened one may lack chunks that are not read.

    Raises
    ------
    MissingError, StoreError
        See `SoftLabels.open`.

    Attributes
    ----------
    store : SoftLabels
    """

    def __init__(self, path: Path | SoftLabels) -> None:
        self.store = path if isinstance(path, SoftLabels) else SoftLabels.open(path)
        self._proven = {
            name: np.zeros(array.layout.num_chunks, bool)
            for name, array in self.store.arrays.items()
        }
        for name in ("labels", "sample_hash"):
            self._prove(name, range(self.store.arrays[name].layout.num_chunks))

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays with an answer for each row: all but `labels` and `sample_hash`."""
        return tuple(name for name in self.store.arrays if name not in ("labels", "sample_hash"))

    @property
    def rows(self) -> int:
        """Samples in a chunk."""
        return self.store.arrays["labels"].layout.rows

    def gather(self, name: str, index: NDArray[np.int64], view: int | None = None) -> NDArray[Any]:
        """Rows of one array, as `StoredArray.gather`.

        Raises
        ------
        StoreError
            When one is in a chunk that is damaged or was changed.
        """
        self._prove(name, np.unique(index // self.rows).tolist())
        return self.store.arrays[name].gather(index, None, view)

    def soft(self, index: NDArray[np.int64]) -> NDArray[np.float16]:
        """Dense soft labels, as `SoftLabels.gather`."""
        for name in self.names:
            if name != "logits":
                self._prove(name, np.unique(index // self.rows).tolist())
        return self.store.gather(index)

    def _prove(self, name: str, chunks: Any) -> None:
        proven, layout = self._proven[name], self.store.arrays[name].layout
        for chunk in chunks:
            if not proven[chunk]:
                self.store.hashes.verify(layout.chunk_name(chunk))
                proven[chunk] = True


# --- The images that rows are put in order by: a beton, or a folder that is hashed, not decoded.


@dataclass(frozen=True)
class ImagesFacts:
    """What a set of images is; see `ltd_pipe.labels.join.ManifestLike`."""

    dataset: str
    split: str
    num_samples: int
    class_names: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class HashedImages:
    """A folder's images as labels are joined to them.

    Attributes
    ----------
    manifest : ImagesFacts
    labels : ndarray of shape (N,), dtype int32
    sample_hash : ndarray of shape (N,), dtype uint64
    files : tuple of str
        Each image's path within the folder, with `/`.
    """

    manifest: ImagesFacts
    labels: NDArray[np.int32]
    sample_hash: NDArray[np.uint64]
    files: tuple[str, ...]

    @classmethod
    def read(
        cls,
        folder: Path,
        class_names: Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> HashedImages:
        """Hash all images of a folder with one folder per class.

        Parameters
        ----------
        folder : Path
        class_names : sequence of str, optional
            The classes in their order; by default the folders' names, sorted.
        progress : callable, optional
            Called with the number of images just hashed.

        Raises
        ------
        MissingError, DataError
            See `ltd_pipe.images.sources.FolderSource`.
        """
        source = FolderSource(folder, class_names)
        hashes = np.empty(len(source), np.uint64)
        with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda i: sample_hash(source.raw(i)), range(len(source)))
            for i, each in enumerate(found):
                hashes[i] = each
                if progress is not None:
                    progress(1)
        facts = ImagesFacts(
            dataset=source.name,
            split=source.split,
            num_samples=len(source),
            class_names=source.class_names,
            fingerprint=fingerprint(source.class_names, source.labels, hashes),
        )
        files = tuple(path.relative_to(folder).as_posix() for path in source.paths)
        return cls(facts, source.labels, hashes, files)


def open_images(
    path: Path,
    class_names: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> ImagesLike:
    """Open a beton, or hash a folder of images that has these classes.

    Raises
    ------
    MissingError, DataError
        When it is not there, or damaged, or has other classes.
    """
    if path.is_dir():
        return HashedImages.read(path, class_names, progress)
    return open_beton(path)


# --- Which rows of two sets are of the same images, though their order or number differ.


@dataclass(frozen=True)
class Matches:
    """Rows that belong together.

    Attributes
    ----------
    first, second : ndarray of shape (n,), dtype int64
        Pairs of rows, by rising row of the first set.
    only_first, only_second : ndarray, dtype int64
        Rows without a partner, rising.
    """

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

    Returns
    -------
    Matches
    """
    hashes = np.concatenate([first[0], second[0]])
    labels = np.concatenate([first[1], second[1]])
    side = np.repeat([0, 1], [len(first[0]), len(second[0])])
    row = np.concatenate([np.arange(len(first[0])), np.arange(len(second[0]))])
    # Equal hash and label first; what is left, by hash alone.
    left, pairs = np.arange(len(hashes)), []
    for keys in ((hashes, labels), (hashes,)):
        number = _occurrences(side[left], *(key[left] for key in keys))
        found = _adjacent(side[left], number, *(key[left] for key in keys))
        pairs.append(left[found])
        left = np.delete(left, found.reshape(-1))
    both = np.concatenate(pairs)
    both = both[np.argsort(row[both[:, 0]], kind="stable")]
    alone = [np.sort(row[left[side[left] == which]]) for which in (0, 1)]
    return Matches(row[both[:, 0]], row[both[:, 1]], alone[0], alone[1])


def _occurrences(*keys: NDArray[np.generic]) -> NDArray[np.int64]:
    # For each row, how many rows with the same keys come before it.
    count = len(keys[0])
    order = np.lexsort(keys)
    new = np.ones(count, bool)
    if count:
        new[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    start = np.maximum.accumulate(np.where(new, np.arange(count), 0))
    number = np.empty(count, np.int64)
    number[order] = np.arange(count) - start
    return number


def _adjacent(
    side: NDArray[np.int64], number: NDArray[np.int64], *keys: NDArray[np.generic]
) -> NDArray[np.int64]:
    # Places (n, 2) of pairs that differ in nothing but the side: neighbours once sorted.
    order = np.lexsort((side, number, *keys))
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in (number, *keys):
        same &= key[order][1:] == key[order][:-1]
    at = np.flatnonzero(same)
    return np.stack([order[at], order[at + 1]], axis=1)


def repeated(sample_hash: NDArray[np.uint64]) -> tuple[int, int] | None:
    """Two rows of the same image, or None: the earlier of them as early as can be."""
    order = np.argsort(sample_hash, kind="stable")
    again = np.flatnonzero(sample_hash[order][1:] == sample_hash[order][:-1])
    if not len(again):
        return None
    best = again[np.argmin(order[again])]
    return int(order[best]), int(order[best + 1])


# --- Labels in one file per image, found by the image's name, as FKD and ReLabel keep them.


# 500 crops of 1,000 classes take 2 MiB.
_MAX_BYTES = 2**26
# What PyTorch's unpickler says that it would not let in.
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,80})")


class ImageFiles:
    """The files of all images, in their order.

    Parameters
    ----------
    root : Path
        Holds the same folders as the images' folder; `a/b.c.jpg` has its labels in `a/b` and
        the suffix.
    images : HashedImages
    suffix : str
        Such as `.tar`.

    Raises
    ------
    MissingError, JoinError
        When there is no such folder, an image has no file, or two images have the same one.
    """

    def __init__(self, root: Path, images: HashedImages, suffix: str) -> None:
        if not root.is_dir():
            raise MissingError(root, "no such folder")
        files = [PurePosixPath(file) for file in images.files]
        self._names = [str(file.parent / file.name.partition(".")[0]) + suffix for file in files]
        self.root = root
        self._require_one_each(images)
        self._digests = np.zeros((len(self._names), 32), np.uint8)

    def _require_one_each(self, images: HashedImages) -> None:
        missing = [i for i, name in enumerate(self._names) if not (self.root / name).is_file()]
        if missing:
            raise JoinError(
                self.root,
                f"has no labels for {images.files[missing[0]]} ({len(missing)} such)",
                expected=self._names[missing[0]],
                remedy="Name the folder that has the same folders in it as the images'.",
            )
        seen: dict[str, int] = {}
        for i, name in enumerate(self._names):
            if name in seen:
                raise JoinError(
                    self.root,
                    f"{name} would be the labels of two images",
                    found=f"{images.files[seen[name]]} and {images.files[i]}",
                    remedy="Convert them one at a time.",
                )
            seen[name] = i

    def read(self, first: int, last: int) -> Iterator[tuple[Path, Any]]:
        """Path and content of some images' files."""
        for i in range(first, last):
            path = self.root / self._names[i]
            size = path.stat().st_size
            if size > _MAX_BYTES:
                raise StoreError(
                    path, "is too large", expected=f"at most {_MAX_BYTES} bytes", found=size
                )
            content = path.read_bytes()
            self._digests[i] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
            yield path, load_arrays(content, path)

    def source(self) -> str:
        """All files that were read, in one hash: of what sha256sum prints of them in order."""
        total = hashlib.sha256()
        for digest, name in zip(self._digests, self._names, strict=True):
            total.update(f"{digest.tobytes().hex()}  {name}\n".encode())
        return f"{len(self._names)} files, SHA-256 of their list {total.hexdigest()}"


def load_arrays(content: bytes, where: Path) -> Any:
    """What torch.save wrote, of tensors, NumPy arrays and plain values; no code is ever run.

    Only the three names are let in with which NumPy arrays are pickled: PyTorch's unpickler
    refuses all others.

    Raises
    ------
    StoreError
        When it holds anything else, or is damaged.
    """
    import torch

    _require_small(content, where)
    try:
        with torch.serialization.safe_globals(_array_globals()):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files end in many kinds of it
        found = _GLOBAL.search(str(error))
        what = "is damaged, or nothing that torch.save wrote"
        raise StoreError(
            where,
            f"needs code that is not run ({found[1]})" if found else what,
            remedy="Save it again from tensors and NumPy arrays only." if found else "",
        ) from error


def _array_globals() -> list[Any]:
    # NumPy 1 pickled arrays under the name that NumPy 2 has moved.
    from numpy._core import multiarray

    rebuild = multiarray._reconstruct
    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    return [rebuild, (rebuild, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, *kinds]


def _require_small(content: bytes, where: Path) -> None:
    # A member may be compressed: what it grows to must be small too.
    stream = io.BytesIO(content)
    if not zipfile.is_zipfile(stream):
        return
    with zipfile.ZipFile(stream) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _MAX_BYTES:
        raise StoreError(where, "is too large", expected=f"at most {_MAX_BYTES} bytes", found=size)


# --- FKD's labels of crops (arXiv 2112.01528), averaged over each image's crops.
#
# github.com/szq0214/FKD, FKD_SLG/generate_soft_label.py: of each image a file `.tar` of torch.save
# with the crops' boxes, whether they are flipped, and their labels, one of
# - (crops,): the most probable class ("hard");
# - (crops, 2): that class and its probability ("smoothing");
# - (crops, 2, k): the k most probable classes and their probabilities ("marginal").
# The rest of the probability is spread evenly over the other classes, as FKD's training does.


class FkdLabels:
    """FKD's labels as one row per image; see `ltd_pipe.labels.foreign.ImageLabels`.

    Parameters
    ----------
    root : Path
        With the same class folders as the images.
    images : HashedImages
    average_crops : bool
        Must be true. Each label is of one crop, which FKD cuts by boxes in the file; a store
        has none, so a crop's label alone would be joined to an image that it is not of.

    Raises
    ------
    ParamsError
        When the crops are not to be averaged.
    """

    has_logits, own_top_k = False, None

    def __init__(self, root: Path, images: HashedImages, *, average_crops: bool) -> None:
        if not average_crops:
            raise ParamsError(
                root,
                "FKD's labels are of random crops, which a store cannot cut again",
                remedy="Pass --average-crops to average each image's into one label.",
            )
        self._files = ImageFiles(root, images, ".tar")
        self._num_classes = len(images.manifest.class_names)
        self._crops: set[int] = set()

    def answers(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows of shape (n, K)."""
        rows = np.empty((last - first, self._num_classes), np.float32)
        for i, (path, content) in enumerate(self._files.read(first, last)):
            indices, probs = _labels(content, self._num_classes, path)
            self._crops.add(len(indices))
            rows[i] = expand(indices, probs, self._num_classes).mean(axis=0)
        return rows

    def sparse(self, first: int, last: int) -> None:
        """There are no rows to be stored as they are."""
        del first, last

    def source(self) -> str:
        """What was averaged, and the files' hash."""
        crops = sorted(self._crops)
        span = f"{crops[0]}" if len(crops) == 1 else f"{crops[0]} to {crops[-1]}"
        return f"FKD, mean over {span} crops of each image, {self._files.source()}"


def _labels(
    content: Any, num_classes: int, where: Path
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    import torch

    # Classes and probabilities of shape (crops, k).
    labels = content[2] if isinstance(content, list | tuple) and len(content) == 3 else None
    if isinstance(labels, torch.Tensor):
        labels = labels.numpy()
    if not isinstance(labels, np.ndarray) or not _plausible(labels):
        raise StoreError(
            where,
            "holds no labels as FKD writes them",
            expected="boxes, flips, and labels of shape (crops,), (crops, 2) or (crops, 2, k)",
            found=f"{labels.dtype} {labels.shape}"
            if isinstance(labels, np.ndarray)
            else type(content).__name__,
        )
    if labels.ndim == 1:
        classes, probs = labels[:, None], np.ones((len(labels), 1), np.float32)
    else:
        pairs = labels.reshape(len(labels), 2, -1)
        classes, probs = pairs[:, 0], pairs[:, 1].astype(np.float32)
    whole = classes.astype(np.int64)
    again = np.diff(np.sort(whole, axis=1), axis=1) == 0
    total = probs.sum(axis=1)
    # Written so that NaN fails.
    right = (probs >= 0).all() and (total <= 1.001).all() and not again.any()
    if not right or (whole != classes).any() or whole.min() < 0 or whole.max() >= num_classes:
        raise StoreError(
            where,
            "holds labels that are none",
            expected=f"different classes below {num_classes}, probabilities of sum at most 1",
            found=f"classes {whole.min()} to {whole.max()}, sums up to {total.max():.4f}",
        )
    return whole, probs


def _plausible(labels: NDArray[Any]) -> bool:
    pairs = labels.ndim == 1 or (labels.ndim in (2, 3) and labels.shape[1] == 2)
    return labels.dtype.kind in "fiu" and pairs and labels.size > 0


# --- ReLabel's label maps (arXiv 2101.05022), pooled over the whole image.
#
# github.com/naver-ai/relabel_imagenet, utils/relabel_functions.py: of each image a file `.pt` of
# torch.save with a tensor (2, k, H, W), the k largest logits at each place and their classes; the
# others are zero there. Its training averages the map over a crop (RoIAlign) and takes the softmax.
# A store has the label of the whole image: the average over all places.


class RelabelLabels:
    """ReLabel's maps as logits of each image; see `ltd_pipe.labels.foreign.ImageLabels`.

    Parameters
    ----------
    root : Path
        With the same class folders as the images.
    images : HashedImages
    """

    has_logits, own_top_k = True, None

    def __init__(self, root: Path, images: HashedImages) -> None:
        self._files = ImageFiles(root, images, ".pt")
        self._num_classes = len(images.manifest.class_names)

    def answers(self, first: int, last: int) -> NDArray[np.float32]:
        """Logits of shape (n, K)."""
        rows = np.empty((last - first, self._num_classes), np.float32)
        for i, (path, content) in enumerate(self._files.read(first, last)):
            rows[i] = _pooled(content, self._num_classes, path)
        return rows

    def sparse(self, first: int, last: int) -> None:
        """There are no rows to be stored as they are."""
        del first, last

    def source(self) -> str:
        """What was pooled, and the files' hash."""
        return f"ReLabel, mean over the label map of each image, {self._files.source()}"


def _pooled(content: Any, num_classes: int, where: Path) -> NDArray[np.float32]:
    import torch

    if not isinstance(content, torch.Tensor) or content.ndim != 4 or content.shape[0] != 2:
        raise StoreError(
            where,
            "holds no label map as ReLabel writes them",
            expected="a tensor of shape (2, k, H, W)",
            found=f"shape {tuple(content.shape)}"
            if isinstance(content, torch.Tensor)
            else type(content).__name__,
        )
    logits, classes = content.float().flatten(2)
    places = logits.shape[-1]
    # Written so that NaN fails.
    right = bool(((classes >= 0) & (classes < num_classes) & (classes == classes.floor())).all())
    if not right or not logits.numel() or not bool(torch.isfinite(logits).all()):
        raise StoreError(
            where,
            "holds a label map that is none",
            expected=f"finite logits, and classes below {num_classes}",
            found=f"classes {classes.min():g} to {classes.max():g}" if classes.numel() else "none",
        )
    dense = torch.zeros(num_classes, places).scatter_(0, classes.long(), logits)
    pooled: NDArray[np.float32] = dense.mean(dim=1).numpy()
    return pooled


# --- TinyViT's sparse logits (arXiv 2207.10666), which are probabilities.
#
# github.com/microsoft/Cream, TinyViT/data/augmentation/{manager,dataset_wrapper}.py: of each epoch
# a folder `logits_top100_epoch0`, in it of each process `rank0-keys.txt`, one key a line, and
# `rank0-values.bin`, of each key an int32 (the seed of its augmentation), k int16 (classes, most
# probable first) and k float16 (their probabilities); little-endian, without gaps. The key is the
# image's name without its suffix, or its number where the data set gives no names.


_EPOCH = re.compile(r"logits_top([0-9]{1,6})_epoch([0-9]{1,6})")
_PACKAGE = re.compile(r"rank([0-9]{1,6})-values\.bin")


class TinyVitLabels:
    """TinyViT's labels as one row per image; see `ltd_pipe.labels.foreign.ImageLabels`.

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


# --- Labels that other projects made of a folder of images, made into stores.


class ImageLabels(Protocol):
    """Labels of images, in their order."""

    @property
    def has_logits(self) -> bool:
        """Whether `answers` gives logits; otherwise it gives soft labels."""

    @property
    def own_top_k(self) -> int | None:
        """Of labels that are sparse themselves."""

    def answers(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows of shape (n, K)."""

    def sparse(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.float16]] | None:
        """Classes and probabilities of shape (n, own_top_k), where nothing has to be computed."""

    def source(self) -> str:
        """What was read, once all of it was."""


def store_of_images(
    labels: ImageLabels,
    images: HashedImages,
    target: Path,
    origin: Origin,
    *,
    top_k: int | None = None,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Make a store of other labels, in the memory of one chunk.

    Parameters
    ----------
    labels : ImageLabels
    images : HashedImages
        Whose labels they are.
    target : Path
    origin : Origin
        What is known of them.
    top_k : int, optional
        Probabilities to keep; by default as many as the labels have, dense ones all.
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
        When a file is damaged, or holds no labels of that kind.
    """
    keep = top_k or labels.own_top_k
    attributes = foreign_attributes(
        origin, images.manifest, images.labels, images.sample_hash, ("",), keep
    )
    rows = _Rows(labels, attributes, target)
    names: tuple[str, ...] = ("topk_indices", "topk_probs")
    if keep is None:
        names = ("soft_labels", "logits") if labels.has_logits else ("soft_labels",)
    return derive_store(
        target,
        attributes,
        NewRows(images.labels, images.sample_hash, names, stepwise(rows.block, attributes)),
        rows=chunk_rows([], attributes),
        replace=replace,
        progress=progress,
        finish=rows.finish,
        verify=True,
    )


class _Rows:
    def __init__(self, labels: ImageLabels, attributes: StoreAttributes, where: Path) -> None:
        self._labels, self._attributes, self._where = labels, attributes, where
        self._top_k = attributes.top_k.k if attributes.top_k else None
        self._distances = Distances()

    def block(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        kept = self._labels.sparse(first, last) if self._top_k == self._labels.own_top_k else None
        if kept is not None:
            num_classes = self._attributes.num_classes
            indices, probs = round_topk(*kept, num_classes, first, self._where)
            return {"topk_indices": indices, "topk_probs": probs}
        rows, temperature = self._labels.answers(first, last), self._attributes.temperature
        taken: dict[str, NDArray[Any]] = {}
        if self._labels.has_logits:
            taken["logits"] = round_logits(rows, first, self._where)
            rows = soften(taken["logits"], temperature)
        if self._top_k:
            return sparse_rows(rows, self._top_k, self._distances)
        if self._labels.has_logits:
            return taken | {"soft_labels": to_float16(rows)}
        return {"soft_labels": round_soft_labels(rows, first, self._where)}

    def finish(self) -> StoreAttributes:
        # What was lost is known only where all of it was there.
        known = self._attributes
        if self._top_k and self._labels.has_logits:
            known = self._distances.noted(known)
        derived = DerivationFacts(operation="convert", sources=(self._labels.source(),))
        return known.model_copy(update={"derived_from": derived})
