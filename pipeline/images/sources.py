"""Where images come from: scikit-learn's digits, CIFAR, or a folder; and a first look at them."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltd_pipe import rng
from ltd_pipe.errors import DataError, MissingError, ParamsError, reason_of
from ltd_pipe.images import MAX_SIDE
from ltd_pipe.images.decode import decode_image, is_one_colour, is_turned, resize
from ltd_pipe.images.manifest import fingerprint, sample_hash
from ltd_pipe.text import nfc, printable, quoted
from ltd_pipe.threads import in_threads

if TYPE_CHECKING:
    from ltd_pipe.params import PrepareParams


# --- The validation split, fixed by each image's hash.


def validation_mask(sample_hash: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Which images are held out.

    Parameters
    ----------
    sample_hash : ndarray of shape (N,), dtype uint64
    fraction : float
        Expected share, in [0, 1).

    Returns
    -------
    ndarray of shape (N,), dtype bool
        A function of each image alone: it does not change when images are added, removed or
        reordered, nor with the run's seed, and copies of an image are on the same side.
    """
    return _share(sample_hash, fraction, rng.stream_key(0, "validation"))


def _share(sample_hash: NDArray[np.uint64], share: float, key: int) -> NDArray[np.bool_]:
    """An expected share of the images, by their hashes."""
    return rng.bits(key, sample_hash.view(np.int64)) < np.uint64(int(share * 2**64))


# --- Wrong labels, for studies of what they cost.


# For each class of digits and CIFAR-10 one that it is taken for. Of Patrini et al. 2017 are 2:7,
# 3:8, 5:6, 6:5, 7:1, bird:airplane, cat:dog, deer:horse, dog:cat and truck:automobile; they leave
# the other classes alone, which are paired here so that any share of all images can be wrong.
# fmt: off
_SIMILAR = {
    "0": "6", "1": "7", "2": "7", "3": "8", "4": "9",
    "5": "6", "6": "5", "7": "1", "8": "3", "9": "4",
    "airplane": "bird", "automobile": "truck", "bird": "airplane", "cat": "dog", "deer": "horse",
    "dog": "cat", "frog": "deer", "horse": "deer", "ship": "airplane", "truck": "automobile",
}
# fmt: on


def wrong_labels(
    labels: NDArray[np.int32],
    sample_hash: NDArray[np.uint64],
    class_names: Sequence[str],
    params: PrepareParams,
) -> NDArray[np.int32]:
    """Labels of which `params.wrong_labels` are another class, all of shape (N,).

    As with `validation_mask` each is a function of the image's hash, its class and the seed alone;
    unknown ones (-1) stay.

    Raises
    ------
    ParamsError
        When there is no similar class for one of these.
    """
    if params.wrong_labels_to == "similar":
        if unpaired := [name for name in class_names if _SIMILAR.get(name) not in class_names]:
            raise ParamsError(
                "prepare.wrong_labels_to",
                "similar knows no class like this one",
                expected="the classes of digits or of CIFAR-10",
                found=quoted(unpaired[0]),
                remedy="Choose uniform.",
            )
        others = np.array([class_names.index(_SIMILAR[name]) for name in class_names])[labels]
    else:
        key, count = rng.stream_key(params.wrong_labels_seed, "wrong-class"), len(class_names)
        others = (labels + 1 + rng.integers(key, sample_hash.view(np.int64), count - 1)) % count
    key = rng.stream_key(params.wrong_labels_seed, "wrong-labels")
    chosen = _share(sample_hash, params.wrong_labels, key) & (labels >= 0)
    return np.where(chosen, others, labels).astype(np.int32)


# --- Where images come from.


Split = Literal["train", "test"]

# torchvision's IMG_EXTENSIONS, and what else Pillow decodes without another program.
EXTENSIONS = frozenset(
    f".{ending}"
    for ending in (
        *("apng", "avif", "bmp", "dib", "gif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm"),
        *("pcx", "pgm", "png", "pnm", "ppm", "qoi", "sgi", "tga", "tif", "tiff", "webp"),
    )
)
_KINDS = "image files, such as .jpg, .png, .tif or .webp"
# Thumbnails and bins of network storage, macOS and Windows; their names are no classes.
OF_OTHERS = frozenset({"@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN"})
_TEST_FOLDERS = ("test", "val", "validation")


class Source(ABC):
    """Labelled images in a fixed order.

    Attributes
    ----------
    name : str
        The data set's.
    class_names : tuple of str
        K names.
    labels : ndarray of shape (N,), dtype int32
        Class of each image; -1 where unknown.
    notes : list of str
        What the user should know of them, in lines.
    """

    name: str
    class_names: tuple[str, ...]
    labels: NDArray[np.int32]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def where(self, i: int) -> str:
        """Image i as the user knows it."""

    @abstractmethod
    def raw(self, i: int) -> bytes | NDArray[np.uint8]:
        """What image i's hash is taken over: its file's bytes, or its pixels."""

    @abstractmethod
    def decode(self, i: int) -> NDArray[np.uint8]:
        """Image i as RGB of shape (H, W, 3); raises DataError when it is unreadable."""

    @abstractmethod
    def take(self, keep: NDArray[np.int64]) -> Source:
        """The same images without those that are not in `keep`."""


@dataclass
class ArraySource(Source):
    """Images that are in memory as pixels, of shape (N, H, W) or (N, H, W, 3), dtype uint8."""

    name: str
    class_names: tuple[str, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    notes: list[str] = field(default_factory=list)

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
        return replace(self, images=self.images[keep], labels=self.labels[keep])


class FolderSource(Source):
    """One folder per class, as in torchvision's ImageFolder; by class, then by sorted paths.

    Links are followed, to files and to folders. What is left out is counted by its reason: other
    files, images beside the class folders, and what other programs keep for themselves.

    Parameters
    ----------
    folder : Path
        Holds a folder per class, each holding images at any depth; or, where `class_names` are
        given, images without class folders, whose labels are then -1.
    class_names : sequence of str, optional
        The classes that must be there, in the order of their labels; by default the
        sub-folders' names, sorted.

    Attributes
    ----------
    notes : list of str
        What the user should know of them: what was left out, whether their classes are unknown.

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
        left: Counter[str] = Counter()
        found, beside = _class_folders(folder, left)
        names = tuple(found) if class_names is None else tuple(class_names)
        self.notes: list[str] = []
        if not found and class_names is not None:
            # No class folders: the classes are the caller's, the ground truth is unknown.
            groups, numbers = [sorted(beside)], np.array([-1])
            self.notes.append(
                f"warning: {folder} has no class folders: the classes of its images are unknown, "
                "and no accuracy can be measured on them"
            )
        else:
            _require_classes(folder, found, class_names)
            by_name = {nfc(name): path for name, path in found.items()}
            above = (os.path.realpath(folder),)
            groups = [_images_below(by_name[nfc(name)], left, above) for name in names]
            numbers = np.arange(len(names))
            left["beside the class folders"] += len(beside)
        _require_images(folder, names, groups, left)
        if left.total():
            self.notes.append(f"left out of {folder}: {_listed(left)}")
        self.folder, real = folder, folder.resolve()
        self.split: Split = "test" if real.name in _TEST_FOLDERS else "train"
        # photos/train is the data set photos, so that its labels are those of photos' beton.
        part_of = real.name in {"train", *_TEST_FOLDERS}
        self.name = real.parent.name if part_of else real.name
        _require_printable(folder, "its data set", self.name)
        self.class_names = names
        self.paths = [path for group in groups for path in group]
        self.labels = np.repeat(numbers, [len(group) for group in groups]).astype(np.int32)

    def where(self, i: int) -> str:
        """The file's path."""
        return str(self.paths[i])

    def raw(self, i: int) -> bytes:
        """The file's bytes."""
        content: bytes = self.paths[i].read_bytes()
        return content

    def decode(self, i: int) -> NDArray[np.uint8]:
        """See `ltd_pipe.images.decode`."""
        return decode_image(self.raw(i), self.where(i))

    def take(self, keep: NDArray[np.int64]) -> FolderSource:
        """See `Source.take`."""
        part = copy.copy(self)
        part.paths = [self.paths[i] for i in keep]
        part.labels = self.labels[keep]
        return part


def _require_printable(folder: Path, what: str, name: str) -> None:
    """Refuse a name that is printed, and stands in every store's metadata, where it cannot be."""
    utf8 = name == name.encode(errors="ignore").decode()
    if not utf8 or any(unicodedata.category(letter) == "Cc" for letter in name):
        wrong = "has a control character" if utf8 else "is not UTF-8"
        raise DataError(folder, f"{what}'s name {wrong}", found=ascii(name), remedy="Rename it.")


def _class_folders(folder: Path, left: Counter[str]) -> tuple[dict[str, Path], list[Path]]:
    """The class folders by their names, sorted, and the images beside them."""
    folders, images = _entries(folder, left)
    found = {path.name: path for path in sorted(folders, key=lambda path: path.name)}
    for name in found:
        _require_printable(folder, "a class folder", name)
    if len({nfc(name) for name in found}) < len(found):
        same = next(name for name in found if name != nfc(name) and nfc(name) in found)
        raise DataError(
            folder,
            "two class folders have one name, in two forms of Unicode",
            found=f"{quoted(nfc(same))} and {quoted(same)}",
            remedy="Make one folder of the two.",
        )
    return found, images


def _entries(folder: str | Path, left: Counter[str]) -> tuple[list[Path], list[Path]]:
    """A folder's sub-folders and images; the rest is counted."""
    folders, images = [], []
    try:
        for entry in os.scandir(folder):
            path = Path(entry.path)
            ending = path.suffix.lower()
            link = entry.is_symlink()
            gone = link and not path.exists()
            if entry.name.startswith("."):
                left["hidden"] += 1
            elif entry.name in OF_OTHERS:
                left[f"{entry.name}/"] += 1
            elif entry.is_dir(follow_symlinks=False) or (link and path.is_dir()):
                folders.append(path)
            elif not (gone or (path if link else entry).is_file()):
                # To open a pipe would wait for whoever writes to it.
                left["pipes and devices"] += 1
            elif ending in EXTENSIONS:
                images.append(path)
            elif gone:
                left["links that lead nowhere"] += 1
            else:
                left[f"*{printable(ending)}" if ending else "without an ending"] += 1
    except OSError as error:
        # It would otherwise be passed over in silence, and its images be missing.
        raise DataError(error.filename or folder, f"cannot be read: {reason_of(error)}") from error
    return folders, images


def _images_below(folder: Path, left: Counter[str], above: tuple[str, ...]) -> list[Path]:
    """All images at any depth, sorted by path; `above` are the real paths that lead there."""
    found, waiting = [], [(folder, above)]
    while waiting:
        path, above = waiting.pop()
        real = os.path.realpath(path)
        if any(each == real or each.startswith(real + os.sep) for each in above):
            left["links to a folder above them"] += 1
            continue
        folders, images = _entries(path, left)
        found += images
        waiting += [(each, (*above, real)) for each in folders]
    return sorted(found)


def _listed(left: Counter[str]) -> str:
    """The commonest reasons with their numbers."""
    shown = [f"{count:,} {reason}" for reason, count in left.most_common(8) if count]
    rest = left.total() - sum(count for _, count in left.most_common(8))
    return ", ".join(shown + ([f"{rest:,} others"] if rest else []))


def _require_folder(folder: Path, remedy: str = "") -> None:
    if not folder.exists():
        raise MissingError(folder, "no such folder", remedy=remedy)
    if not folder.is_dir():
        raise DataError(folder, "is a file", expected="a folder with one folder per class")


def _require_classes(folder: Path, found: Iterable[str], expected: Sequence[str] | None) -> None:
    layout, names = f"Put images into {folder}/CLASS/, one folder per class.", list(found)
    if not names:
        raise DataError(folder, "has no class folders", remedy=layout)
    parts = sorted({"train", *_TEST_FOLDERS}.intersection(names).difference(expected or ()))
    either = " or ".join(str(folder / part) for part in parts)
    if expected is None:
        if len(names) == 1:
            raise DataError(folder, f"has one class only, '{names[0]}'", remedy=layout)
        if len(parts) == len(names):
            what = "holds parts of a data set, not classes"
            remedy = f"Name one part of it: {either}."
            raise DataError(folder, what, found=", ".join(parts), remedy=remedy)
        return
    wanted, there = {nfc(name) for name in expected}, {nfc(name) for name in names}
    if wanted != there:
        raise DataError(
            folder,
            "has other classes than the training images, the model or the store that it is for",
            expected=_classes(wanted, wanted - there, "lacking here"),
            found=_classes(there, there - wanted, "here alone"),
            remedy=f"Name one part of it: {either}." if parts else "",
        )


def _classes(names: set[str], alone: set[str], where: str) -> str:
    shown = ", ".join(map(quoted, sorted(alone)[:5]))
    return f"{len(names)} classes" + (f", {where}: {shown}" if alone else "")


def _require_images(
    folder: Path, names: tuple[str, ...], groups: list[list[Path]], left: Counter[str]
) -> None:
    others = f" (there are {_listed(left)})" if left.total() else ""
    if not any(groups):
        raise DataError(folder, f"has no images{others}", expected=_KINDS)
    empty = [name for name, group in zip(names, groups, strict=False) if not group]
    if empty:
        raise DataError(
            folder / empty[0],
            f"class without images ({len(empty)} such){others}",
            expected=_KINDS,
            remedy="Add images or remove the folder.",
        )


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
    layout = "Give prepare.path the folder that holds train/CLASS/ and test/CLASS/."
    _require_folder(root, layout)
    _require_folder(root / "train", layout)
    part = FolderSource(root / "train")
    if split == "test":
        part = _test_folder(root, part.class_names)
    part.name = root.resolve().name
    return part


def _test_folder(root: Path, classes: tuple[str, ...]) -> FolderSource:
    """The first that has the training images' classes: a flat test/ often stands beside val/."""
    folders = [root / name for name in _TEST_FOLDERS if (root / name).is_dir()]
    if not folders:
        raise MissingError(root, "has no test images", expected="test/ or val/ beside train/")
    found = {folder: {*map(nfc, _class_folders(folder, Counter())[0])} for folder in folders}
    same = [folder for folder in folders if found[folder] == {*map(nfc, classes)}]
    taken = (same or [folder for folder in folders if found[folder]] or folders)[0]
    part = FolderSource(taken, classes)
    others = [
        str(folder)
        if folder in same
        else f"{folder}, which has {'other' if found[folder] else 'no'} classes"
        for folder in folders
        if folder != taken
    ]
    if others:
        line = f"test images are those of {taken}, not of {' and '.join(others)}"
        part.notes.insert(0, line)
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
    # An archive that is there is unpacked when a download is allowed, which it is instead of.
    download = params.download or (root / kind.filename).exists()
    try:
        # torchvision unpickles the archive only after its MD5 sum was found right. Its words on
        # the way are not ours.
        with contextlib.redirect_stdout(io.StringIO()):
            content = kind(str(root), train=split == "train", download=download)
    except Exception as error:  # a download fails in many ways, a corrupt archive in another
        if there:
            what = f"{params.dataset} is damaged or incomplete ({reason_of(error)})"
            remedy = "Remove it and put torchvision's archive there again."
            raise DataError(root, what, remedy=remedy) from error
        what, otherwise = f"{params.dataset} is not there", "set prepare.download: true"
        if params.download:
            what += f" and cannot be downloaded ({reason_of(error)})"
            otherwise = "try again when there is a connection"
        remedy = f"Put torchvision's archive there, or {otherwise}."
        raise MissingError(root, what, remedy=remedy) from error
    labels = np.asarray(content.targets, dtype=np.int32)
    return ArraySource(params.dataset, tuple(content.classes), content.data, labels)


# --- One pass over all images before anything is done with them.


_SEEN = np.dtype([("hash", "<u8"), ("size", "<i8", 2), ("one_colour", "?"), ("turned", "?")])


@dataclass(frozen=True)
class Survey:
    """What one pass over all images found, of those that are usable.

    Attributes
    ----------
    source : Source
        Without the images that were left out.
    sample_hash : ndarray of shape (N,), dtype uint64
    sizes : ndarray of shape (N, 2), dtype int64
        Height and width.
    one_colour, turned : int
        Images whose pixels are all about the same, and those with an EXIF orientation.
    skipped : list of str
        A line for each image that was left out.
    wrong_labels : float, optional
        Share of the labels that `mislabelled` made wrong.
    """

    source: Source
    sample_hash: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    one_colour: int
    turned: int
    skipped: list[str]
    wrong_labels: float | None = None

    def common_size(
        self, image_size: int | None, train: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Height and width that all images have, or will have; `train` are the training images'.

        A DataError names one that differs and is not to be resized, or is too large.
        """
        if image_size is not None:
            return image_size, image_size
        wanted = self.sizes[0] if train is None else np.array(train)
        differs = (self.sizes != wanted).any(axis=1)
        i = int(self.sizes.max(axis=1).argmax())
        if self.sizes[i].max() > MAX_SIDE:
            what, expected = "is too large", f"at most {MAX_SIDE:,} pixels a side"
        elif differs.any():
            i, what = int(differs.argmax()), "images differ in size"
            like = self.source.where(0) if train is None else "the training images"
            expected = f"{wanted[1]}×{wanted[0]} like {like}"
        else:
            return int(wanted[0]), int(wanted[1])
        raise DataError(
            self.source.where(i),
            what,
            expected=expected,
            found=f"{self.sizes[i][1]}×{self.sizes[i][0]}",
            remedy="Pass --image-size to resize them all.",
        )

    def pixels(self, i: int, image_size: int | None) -> NDArray[np.uint8]:
        """Image i as RGB, resized; refused when its file was changed since it was surveyed."""
        image = resize(self.source.decode(i), image_size)
        # After it was decoded: this hash is what ties the teacher's labels to these pixels.
        if sample_hash(self.source.raw(i)) != self.sample_hash[i]:
            raise DataError(
                self.source.where(i),
                "was changed while the images were read",
                remedy="Run it again when nothing else writes there.",
            )
        return image

    def mislabelled(self, params: PrepareParams) -> Survey:
        """The same images with some labels wrong, and a name that says so wherever they go."""
        source, names = self.source.take(np.arange(len(self.source))), self.source.class_names
        right = source.labels
        source.labels = wrong_labels(right, self.sample_hash, names, params)
        if emptied := np.setdiff1d(right, source.labels).tolist():
            raise ParamsError(
                "prepare.wrong_labels",
                f"leaves no training image of class {quoted(names[emptied[0]])}",
                expected="some of each class that there was",
                remedy="Lower it, or choose another wrong_labels_seed.",
            )
        share = float((source.labels != right).mean())
        if not share:
            raise ParamsError(
                "prepare.wrong_labels",
                f"makes none of {len(source):,} labels wrong",
                found=f"{params.wrong_labels:g}",
                remedy="Raise it, or set it to 0.",
            )
        source.name += (
            f" with {100 * params.wrong_labels:g} % wrong labels ({params.wrong_labels_to}, seed "
            f"{params.wrong_labels_seed})"
        )
        return replace(self, source=source, wrong_labels=share)

    def facts(self, split: Split, shape: tuple[Any, int, int]) -> dict[str, Any]:
        """What `ImageFacts` has of images that are stored or shown in this shape (C, H, W)."""
        source = self.source
        return {
            "dataset": source.name,
            "split": split,
            "num_samples": len(source),
            "class_names": source.class_names,
            "shape": shape,
            "fingerprint": fingerprint(source.class_names, source.labels, self.sample_hash),
            "wrong_labels": self.wrong_labels,
        }


def survey(
    source: Source, *, skip_bad: bool, progress: Callable[[int], None] | None = None
) -> Survey:
    """Read, hash and decode every image once, and leave unreadable ones out, or refuse them.

    `progress` is called with the number just done.

    Raises
    ------
    DataError
        Naming the first bad images, or a class of which none is left.
    """
    seen, bad = np.zeros(len(source), _SEEN), {}

    def look(i: int) -> None:
        try:
            raw, image = source.raw(i), source.decode(i)
            turned = isinstance(raw, bytes) and is_turned(raw)
            seen[i] = sample_hash(raw), image.shape[:2], is_one_colour(image), turned
        except DataError as error:
            bad[i] = error.what
        except OSError as error:
            bad[i] = f"cannot be read: {reason_of(error)}"

    # Reading, hashing and decoding release the interpreter's lock.
    for done, _ in enumerate(in_threads(look, len(source)), 1):
        if progress and (done % 256 == 0 or done == len(source)):
            progress(256 if done % 256 == 0 else done % 256)
    named = {i: source.where(i) for i in sorted(bad)}
    if bad:
        first, *others = named.items()
        if not skip_bad:
            more = f" and {len(others) - 2} more" if len(others) > 2 else ""
            also = ", ".join(name for _, name in others[:2])
            raise DataError(
                first[1],
                f"is not usable: {bad[first[0]]}",
                remedy="Remove or mend it, or pass --skip-bad."
                + (f" The same is true of {also}{more}." if others else ""),
            )
        keep = np.setdiff1d(np.arange(len(source)), list(bad))
        classes, source, seen = set(source.labels.tolist()), source.take(keep), seen[keep]
        if not len(source):
            raise DataError(source.name, "has no readable image")
        if lost := classes - set(source.labels.tolist()):
            name = source.class_names[min(lost)]
            raise DataError(source.name, f"class '{name}' has no readable image")
    one_colour, turned = int(seen["one_colour"].sum()), int(seen["turned"].sum())
    skipped = [f"{name}: {bad[i]}" for i, name in named.items()]
    return Survey(source, seen["hash"].copy(), seen["size"], one_colour, turned, skipped)
