"""Labels that other projects made of a folder of images: FKD's, ReLabel's and TinyViT's.

Each class reads what its project publishes as rows of a store.
"""

from __future__ import annotations

import abc
import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map_only

from ltd_pipe.errors import JoinError, MissingError, ParamsError, StoreError
from ltd_pipe.labels.convert import LabelFiles, convert
from ltd_pipe.labels.softmax import expand
from ltd_pipe.provenance import sha256_file
from ltd_pipe.text import quoted

if TYPE_CHECKING:
    from ltd_pipe.labels.convert import HashedImages, Origin
    from ltd_pipe.labels.derive import Block, DerivedStore

# 500 crops of 1,000 classes take 2 MiB.
_MAX_BYTES = 2**26
# What PyTorch's unpickler says that it would not let in.
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,80})")


def store_of_images(
    files: LabelFiles, images: HashedImages, origin: Origin, *, top_k: int | None = None
) -> DerivedStore:
    """The store of the labels of these images, one row for each, in their order.

    Of `top_k` probabilities in each row; by default as many as the labels have, dense ones all.
    """
    labels, hashes = images.labels, images.sample_hash
    attributes = origin.attributes(images.manifest, labels, hashes, top_k or files.top_k)
    return convert(files, attributes, labels, hashes)


# --- What the projects' labels share.


def _places(names: Sequence[str], refusal: Callable[[int, int], JoinError]) -> dict[str, int]:
    """The image of each name, which is one image's alone."""
    places: dict[str, int] = {}
    for i, name in enumerate(names):
        if (first := places.setdefault(name, i)) != i:
            raise refusal(first, i)
    return places


def _hash_of_list(lines: Iterable[str]) -> str:
    text = "".join(f"{line}\n" for line in lines)
    return f"SHA-256 of their list {hashlib.sha256(text.encode()).hexdigest()}"


def _first_wrong(
    classes: NDArray[Any], probs: NDArray[Any], num_classes: int, max_sum: float
) -> tuple[int, str, str] | None:
    """The first sparse row that is no distribution: its place, what was expected and found.

    Classes differ and are whole numbers; the sum of the probabilities is at most one. `max_sum`
    leaves room for the digits with which they were stored.
    """
    sums = probs.sum(axis=1, dtype=np.float32)
    known = (classes >= 0) & (classes < num_classes) & (classes == np.floor(classes))
    different = (np.diff(np.sort(classes, axis=1), axis=1) != 0).all(axis=1)
    # Written so that NaN fails.
    right = known.all(axis=1) & different & (probs >= 0).all(axis=1) & (sums <= max_sum)
    if right.all():
        return None
    wrong = int(np.argmin(right))
    expected = f"different classes below {num_classes}, probabilities of sum at most 1"
    return wrong, expected, f"classes up to {classes[wrong].max():.10g}, sum {sums[wrong]:.4f}"


class PerImageLabels(LabelFiles):
    """One file for each image, found by the image's name, of which a row is made.

    Parameters
    ----------
    path : Path
        Holds the same folders as the images' folder; `a/b.c.jpg` has its labels in `a/b` and
        the suffix.
    images : HashedImages
    """

    suffix: str

    def __init__(self, path: Path, images: HashedImages) -> None:
        if not path.is_dir():
            raise MissingError(path, "no such folder")
        self.path, self._num_classes = path, len(images.manifest.class_names)
        files = [PurePosixPath(file) for file in images.files]
        self._names = [
            str(file.parent / file.name.partition(".")[0]) + self.suffix for file in files
        ]
        self._digests = [""] * len(self._names)
        missing = [i for i, name in enumerate(self._names) if not (path / name).is_file()]
        if missing:
            raise JoinError(
                path,
                f"has no labels for {images.files[missing[0]]} ({len(missing)} such)",
                expected=self._names[missing[0]],
                remedy="Name the folder that has the same folders in it as the images'.",
            )
        _places(
            self._names,
            lambda first, i: JoinError(
                path,
                f"{self._names[i]} would be the labels of two images",
                found=f"{images.files[first]} and {images.files[i]}",
                remedy="Convert them one at a time.",
            ),
        )

    @abc.abstractmethod
    def _row(self, content: Any, where: Path) -> NDArray[np.float32]:
        """The row of shape (K,) of what one file holds."""

    def read(self, index: NDArray[np.int64]) -> Block:
        """The rows of some images."""
        rows = np.empty((len(index), self._num_classes), np.float32)
        for place, i in enumerate(index.tolist()):
            path = self.path / self._names[i]
            _require_small(path, path.stat().st_size)
            content = path.read_bytes()
            self._digests[i] = hashlib.sha256(content).hexdigest()
            rows[place] = self._row(load_arrays(content, path), path)
        return dict.fromkeys(self.arrays, rows)

    def origin(self) -> str:
        """All files that were read, in one hash: of what sha256sum prints of them in order."""
        lines = map("{}  {}".format, self._digests, self._names)
        return f"{len(self._names)} files, {_hash_of_list(lines)}"


def _require_small(where: Path, size: int) -> None:
    if size > _MAX_BYTES:
        raise StoreError(where, "is too large", expected=f"at most {_MAX_BYTES} bytes", found=size)


def _kind(content: Any) -> str:
    known = isinstance(content, np.ndarray | torch.Tensor)
    return f"{content.dtype} {tuple(content.shape)}" if known else type(content).__name__


def load_arrays(content: bytes, where: Path) -> Any:
    """What torch.save wrote, of tensors, NumPy arrays and plain values; no code is ever run.

    Only the names are let in with which NumPy arrays are pickled: PyTorch's unpickler refuses
    all others.
    """
    stream, size = io.BytesIO(content), 0
    try:
        if zipfile.is_zipfile(stream):
            # A member may be compressed: what it grows to must be small too.
            with zipfile.ZipFile(stream) as archive:
                size = sum(member.file_size for member in archive.infolist())
        _require_small(where, size)
        with torch.serialization.safe_globals(_array_globals()):
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return tree_map_only(torch.Tensor, lambda tensor: _numbers(tensor, where), loaded)
    except StoreError:
        raise
    except Exception as error:  # damaged files end in many kinds of it
        found = _GLOBAL.search(str(error))
        what = "is damaged, or nothing that torch.save wrote"
        raise StoreError(
            where,
            f"needs code that is not run ({found[1]})" if found else what,
            remedy="Save it again from tensors and NumPy arrays only." if found else "",
        ) from error


def _numbers(tensor: torch.Tensor, where: Path) -> torch.Tensor:
    """What NumPy takes: without its gradient, and of a precision that it has."""
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        found = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout)
        raise StoreError(where, "holds a tensor of other things than real numbers", found=found)
    # One stored number, seen again and again, makes a tensor of any size.
    _require_small(where, tensor.numel() * max(tensor.element_size(), 4))
    tensor = tensor.detach().resolve_neg()
    known = not tensor.is_floating_point() or tensor.dtype in _NUMPY_FLOATS
    return tensor if known else tensor.float()


_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def _array_globals() -> list[Any]:
    # NumPy 1 pickled arrays under the name that NumPy 2 has moved.
    from numpy._core import multiarray

    rebuild = multiarray._reconstruct
    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    return [rebuild, (rebuild, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, *kinds]


# --- FKD's labels of crops (arXiv 2112.01528), averaged over each image's crops.
#
# github.com/szq0214/FKD, FKD_SLG/generate_soft_label.py: of each image a file `.tar` of torch.save
# with the crops' boxes, whether they are flipped, and their labels, one of
# - (crops,): the most probable class ("hard");
# - (crops, 2): that class and its probability ("smoothing");
# - (crops, 2, k): the k most probable classes and their probabilities ("marginal").
# The rest of the probability is spread evenly over the other classes, as FKD's training does.


class FkdLabels(PerImageLabels):
    """FKD's labels as one row per image.

    Parameters
    ----------
    path : Path
        With the same class folders as the images.
    images : HashedImages
    average_crops : bool
        Must be true. Each label is of one crop, which FKD cuts by boxes in the file; a store
        has none, so a crop's label alone would be joined to an image that it is not of.
    """

    suffix, arrays = ".tar", frozenset({"soft_labels"})

    def __init__(self, path: Path, images: HashedImages, *, average_crops: bool) -> None:
        if not average_crops:
            raise ParamsError(
                path,
                "FKD's labels are of random crops, which a store cannot cut again",
                remedy="Pass --average-crops to average each image's into one label.",
            )
        super().__init__(path, images)
        self._crops: set[int] = set()

    def _row(self, content: Any, where: Path) -> NDArray[np.float32]:
        labels = content[2] if isinstance(content, list | tuple) and len(content) == 3 else None
        if isinstance(labels, torch.Tensor):
            labels = labels.numpy()
        shape: tuple[int, ...] = labels.shape if isinstance(labels, np.ndarray) else ()
        fits = len(shape) == 1 or (len(shape) in (2, 3) and shape[1] == 2)
        if labels is None or not fits or labels.dtype.kind not in "fiu" or not labels.size:
            expected = "boxes, flips, and labels of shape (crops,), (crops, 2) or (crops, 2, k)"
            found = _kind(content if labels is None else labels)
            what = "holds no labels as FKD writes them"
            raise StoreError(where, what, expected=expected, found=found)
        if labels.ndim == 1:
            labels = np.stack([labels, np.ones_like(labels)], axis=1)
        _require_small(where, 4 * len(labels) * self._num_classes)
        pairs = labels.reshape(len(labels), 2, -1)
        classes, probs = pairs[:, 0], pairs[:, 1].astype(np.float32)
        if wrong := _first_wrong(classes, probs, self._num_classes, max_sum=1.001):
            _, expected, found = wrong
            raise StoreError(where, "holds labels that are none", expected=expected, found=found)
        self._crops.add(len(classes))
        row: NDArray[np.float32] = expand(classes, probs, self._num_classes).mean(axis=0)
        return row

    def origin(self) -> str:
        """What was averaged, and the files' hash."""
        span = " to ".join(f"{count}" for count in sorted({min(self._crops), max(self._crops)}))
        return f"FKD, mean over {span} crops of each image, {super().origin()}"


# --- ReLabel's label maps (arXiv 2101.05022), pooled over the whole image.
#
# github.com/naver-ai/relabel_imagenet, utils/relabel_functions.py: of each image a file `.pt` of
# torch.save with a tensor (2, k, H, W), the k largest logits at each place and their classes; the
# others are zero there. Its training averages the map over a crop (RoIAlign) and takes the softmax.
# A store has the label of the whole image: the average over all places.


class RelabelLabels(PerImageLabels):
    """ReLabel's maps as logits of each image; `path` has the same class folders as the images."""

    suffix, arrays = ".pt", frozenset({"logits"})

    def _row(self, content: Any, where: Path) -> NDArray[np.float32]:
        if not isinstance(content, torch.Tensor) or content.ndim != 4 or content.shape[0] != 2:
            what, expected = "holds no label map as ReLabel writes them", "shape (2, k, H, W)"
            raise StoreError(where, what, expected=f"a tensor of {expected}", found=_kind(content))
        logits, classes = content.float().flatten(2)
        # Written so that NaN fails.
        known = (classes >= 0) & (classes < self._num_classes) & (classes == classes.floor())
        different = bool((classes.sort(dim=0).values.diff(dim=0) != 0).all())
        if not logits.numel() or not different or not bool((known & torch.isfinite(logits)).all()):
            span = f"classes {classes.min():g} to {classes.max():g}" if classes.numel() else "none"
            expected = f"finite logits, and different classes below {self._num_classes}"
            raise StoreError(where, "holds a label map that is none", expected=expected, found=span)
        _require_small(where, 4 * self._num_classes * logits.shape[-1])
        dense = torch.zeros(self._num_classes, logits.shape[-1])
        row: NDArray[np.float32] = dense.scatter_(0, classes.long(), logits).mean(dim=1).numpy()
        return row

    def origin(self) -> str:
        """What was pooled, and the files' hash."""
        return f"ReLabel, mean over the label map of each image, {super().origin()}"


# --- TinyViT's sparse logits (arXiv 2207.10666), which are probabilities.
#
# github.com/microsoft/Cream, TinyViT/data/augmentation/{manager,dataset_wrapper}.py: of each epoch
# a folder `logits_top100_epoch0`, in it of each process `rank0-keys.txt`, one key a line, and
# `rank0-values.bin`, of each key an int32 (the seed of its augmentation), k int16 (classes, most
# probable first) and k float16 (their probabilities); little-endian, without gaps. The key is the
# image's name without its suffix, or its number where the data set gives no names.


_EPOCH = re.compile(r"logits_top([0-9]{1,6})_epoch([0-9]{1,6})")
_PACKAGE = re.compile(r"rank([0-9]{1,6})-values\.bin")


class TinyVitLabels(LabelFiles):
    """TinyViT's labels as one row per image: of a single epoch as they are, of several their mean.

    Parameters
    ----------
    path : Path
        The folder of one epoch, or of several epochs' folders.
    images : HashedImages
    average_crops : bool
        Must be true. Each epoch's label is of one augmented view, whose seed only TinyViT's
        own augmentation understands.
    trust_order : bool
        Take keys that are numbers for the places of the images in their order, which must be
        torchvision's, and as many as there are images.
    """

    def __init__(
        self, path: Path, images: HashedImages, *, average_crops: bool, trust_order: bool = False
    ) -> None:
        if not average_crops:
            raise ParamsError(
                path,
                "TinyViT's labels are of augmented views, which a store cannot make again",
                remedy="Pass --average-crops to take each image's, averaged over the epochs, for "
                "the image.",
            )
        self.path, self._trust_order = path, trust_order
        self._num_classes = len(images.manifest.class_names)
        folders, top_k = _epoch_folders(path)
        self.top_k = top_k
        if top_k > self._num_classes:
            raise StoreError(
                path,
                "probabilities per row",
                expected=f"at most {self._num_classes}, the classes",
                found=top_k,
            )
        files = images.files
        if trust_order:
            _require_order_of_torchvision(files)
        places = _places(
            [str(i) if trust_order else PurePosixPath(file).stem for i, file in enumerate(files)],
            lambda first, i: JoinError(
                files[i],
                "has the same name as another image, so that a key would be of both",
                found=files[first],
            ),
        )
        self._epochs = [_Epoch(folder, top_k, places) for folder in folders]
        for epoch in self._epochs:
            if trust_order and epoch.others:
                raise JoinError(
                    epoch.folder,
                    "has labels of more images: one that is gone shifts all others to wrong ones",
                    expected=f"keys 0 to {len(files) - 1}, one for each image",
                    found=f"{len(epoch.others)} others, such as {quoted(min(epoch.others))}",
                    remedy="Name all images that were labelled, those that cannot be read too.",
                )
            missing = np.flatnonzero(epoch.package < 0)
            if len(missing):
                numbers = (
                    " If the keys are numbers, and the images in the order that was labelled, pass "
                    "--trust-order."
                )
                raise JoinError(
                    epoch.folder,
                    f"has no label for {files[missing[0]]} ({len(missing)} such)",
                    remedy="Name the images that these labels were made of."
                    + ("" if trust_order else numbers),
                )
        several = len(folders) > 1
        self.arrays = frozenset({"soft_labels"} if several else {"topk_indices", "topk_probs"})

    def read(self, index: NDArray[np.int64]) -> Block:
        """The rows of some images."""
        rows = [epoch.rows(index, self._num_classes) for epoch in self._epochs]
        if len(rows) == 1:
            return dict(zip(("topk_indices", "topk_probs"), rows[0], strict=True))
        total = np.zeros((len(index), self._num_classes), np.float32)
        for sparse in rows:
            total += expand(*sparse, self._num_classes)
        return {"soft_labels": total / np.float32(len(rows))}

    def origin(self) -> str:
        """What was averaged, and the files' hash."""
        files = [path for epoch in self._epochs for path in sorted(epoch.files)]
        lines = (f"{sha256_file(path)}  {path.parent.name}/{path.name}" for path in files)
        joined = ", joined by position" if self._trust_order else ""
        return (
            f"TinyViT, mean over {len(self._epochs)} augmented views of each image{joined}, "
            f"{len(files)} files, {_hash_of_list(lines)}"
        )


def _require_order_of_torchvision(files: Sequence[str]) -> None:
    """Refuse images that torchvision's ImageFolder, whose places the keys are, has elsewhere."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for file in files:
        if file.count("/") != 1 or not file.lower().endswith(IMG_EXTENSIONS):
            raise JoinError(
                file,
                "has another place in torchvision's order, or none, so that it cannot be trusted",
                expected=f"CLASS/IMAGE, with one of the endings {' '.join(IMG_EXTENSIONS)}",
                remedy="Name the folder as it was when the labels were made.",
            )


def _epoch_folders(root: Path) -> tuple[list[Path], int]:
    if not root.is_dir():
        raise MissingError(root, "no such folder")
    folders = [root] if _EPOCH.fullmatch(root.name) else list(root.iterdir())
    found = {path: match for path in folders if (match := _EPOCH.fullmatch(path.name))}
    ks = {int(match[1]) for match in found.values()}
    if len(ks) != 1 or min(ks) < 1:
        raise StoreError(
            root,
            "holds no epochs as TinyViT writes them",
            expected="folders such as logits_top100_epoch0, all of the same number",
            found=", ".join(sorted(path.name for path in folders)[:5]) or "nothing",
        )
    return sorted(found, key=lambda path: int(found[path][2])), ks.pop()


class _Epoch:
    """One folder: of each image in which file its label is, and where.

    `files` were read; `others` are keys of no image.
    """

    def __init__(self, folder: Path, top_k: int, places: dict[str, int]) -> None:
        self.folder = folder
        self._item = np.dtype([("seed", "<i4"), ("classes", "<i2", top_k), ("probs", "<f2", top_k)])
        packages = [path for path in folder.iterdir() if _PACKAGE.fullmatch(path.name)]
        # As TinyViT's reader does, the first file that has a key counts; samplers repeat some.
        packages.sort(key=lambda path: int(path.name[4:].partition("-")[0]))
        self.package = np.full(len(places), -1, np.int32)
        self._row = np.zeros(len(places), np.int64)
        self._values, self.files, self.others = [], list[Path](), set[str]()
        for number, path in enumerate(packages):
            names = path.with_name(path.name.replace("-values.bin", "-keys.txt"))
            self.files += [path, names]
            try:
                # Names may have blanks in them, and what Python takes for ends of lines.
                keys = names.read_text(encoding="utf-8").rstrip("\n").split("\n")
                keys = [key.rstrip("\r") for key in keys if key]
            except FileNotFoundError as error:
                raise MissingError(names, "no such file") from error
            except UnicodeDecodeError as error:
                raise StoreError(names, "is no text in UTF-8") from error
            size, expected = path.stat().st_size, len(keys) * self._item.itemsize
            if size != expected:
                what = "is cut short, or another file's keys are beside it"
                raise StoreError(path, what, expected=f"{expected} bytes", found=size)
            # Nothing can be mapped of an empty file, and nothing is in it.
            empty = np.empty(0, self._item)
            self._values.append(np.memmap(path, self._item, "r") if keys else empty)
            for row, key in enumerate(keys):
                place = places.get(key, -1)
                if place < 0:
                    self.others.add(key)
                elif self.package[place] < 0:
                    self.package[place], self._row[place] = number, row

    def rows(
        self, index: NDArray[np.int64], num_classes: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Classes and probabilities of shape (n, k)."""
        package, row = self.package[index], self._row[index]
        items = np.empty(len(index), self._item)
        for number in np.unique(package).tolist():
            chosen = package == number
            items[chosen] = self._values[number][row[chosen]]
        # Written as int16, which holds classes beyond 32,767 as negative numbers.
        classes, probs = items["classes"].astype(np.uint16).astype(np.int64), items["probs"]
        if wrong := _first_wrong(classes, probs, num_classes, max_sum=1.01):
            place, expected, found = wrong
            what = f"the label of image {index[place]} is no distribution"
            raise StoreError(self.folder, what, expected=expected, found=found)
        return classes, probs
