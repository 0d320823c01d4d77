"""Accuracy on corrupted images, such as CIFAR-10-C and ImageNet-C (Hendrycks and Dietterich 2019).

Two layouts of a folder are known: files NAME.npy beside labels.npy, with five severities one
after the other where the labels repeat five times; and folders of images, NAME/SEVERITY/CLASS/
or NAME/CLASS/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe.errors import DataError, MissingError, reason_of, refuse_pointer
from ltd_pipe.evaluation.bench import select_images
from ltd_pipe.evaluation.results import CorruptionRow, Score, measured
from ltd_pipe.images.sources import OF_OTHERS, ArraySource, FolderSource
from ltd_pipe.images.stream import FolderStream
from ltd_pipe.provenance import digest

if TYPE_CHECKING:
    from ltd_pipe.evaluation.bench import Bench
    from ltd_pipe.images.sources import Source

_SEVERITIES = 5
_LABELS = "labels.npy"


@dataclass(frozen=True)
class CorruptedSet:
    """Images under one corruption at one severity; None where the folder tells none apart."""

    corruption: str
    severity: int | None
    source: Source


def find_corruptions(folder: Path, class_names: Sequence[str]) -> list[CorruptedSet]:
    """Look through a folder of corrupted images of a model's classes, before anything is computed.

    A MissingError or DataError when it is not there, of neither layout, damaged, or of other
    classes.
    """
    if not folder.is_dir():
        raise MissingError(folder, "no such folder")
    names = tuple(class_names)
    if (folder / _LABELS).exists():
        return _array_sets(folder, names)
    found = [one for part in _folders(folder) for one in _folder_sets(part, names)]
    if not found:
        raise DataError(
            folder,
            "holds no corrupted images",
            expected=f"NAME.npy beside {_LABELS}, or folders NAME/SEVERITY/CLASS/",
        )
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in OF_OTHERS
    )


def _folder_sets(folder: Path, names: tuple[str, ...]) -> list[CorruptedSet]:
    parts = _folders(folder)
    # Classes may be called by numbers, too.
    if {part.name for part in parts} == set(names):
        return [CorruptedSet(folder.name, None, FolderSource(folder, names))]
    for part in parts:
        if not part.name.isdecimal():
            raise DataError(part, "is neither a class nor a severity", expected="a number")
    return [
        CorruptedSet(folder.name, int(part.name), FolderSource(part, names))
        for part in sorted(parts, key=lambda part: int(part.name))
    ]


def _array_sets(folder: Path, names: tuple[str, ...]) -> list[CorruptedSet]:
    labels = _read(folder / _LABELS)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise DataError(folder / _LABELS, "is no list of labels", found=_form(labels))
    if labels.min() < 0 or labels.max() >= len(names):
        spread = f"{labels.min()}…{labels.max()}"
        expected = f"0…{len(names) - 1}, the model's classes"
        raise DataError(folder / _LABELS, "labels", expected=expected, found=spread)
    files = sorted(path for path in folder.glob("*.npy") if path.name != _LABELS)
    if not files:
        raise DataError(folder, "holds no corrupted images", expected=f"NAME.npy beside {_LABELS}")
    size, rest = divmod(len(labels), _SEVERITIES)
    severities: dict[int | None, slice] = {None: slice(None)}
    if rest == 0 and (labels.reshape(_SEVERITIES, size) == labels[:size]).all():
        severities = {i + 1: slice(size * i, size * (i + 1)) for i in range(_SEVERITIES)}
    truth, found = labels.astype(np.int32), []
    for file in files:
        images = _images(file, len(labels))
        for severity, block in severities.items():
            source = ArraySource(file.name, names, images[block], truth[block])
            found.append(CorruptedSet(file.stem, severity, source))
    return found


def _images(file: Path, count: int) -> NDArray[np.uint8]:
    images = _read(file)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != count:
        expected = f"uint8 of shape ({count}, height, width, 3)"
        raise DataError(file, "holds other images", expected=expected, found=_form(images))
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim == 4 and images.shape[3] != 3:
        raise DataError(file, "holds other images", expected="1 or 3 channels", found=_form(images))
    return images


def _read(file: Path) -> NDArray[Any]:
    refuse_pointer(file, file, DataError)
    try:
        # Gigabytes, of which few may be wanted; and pickles are never read.
        found: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(file, f"is no array of numpy ({reason_of(error)})") from error
    return found


def _form(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


def state_of_corruptions(folder: Path) -> str:
    """What changes when the files do: names, sizes and times, not gigabytes of content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return digest(
        {
            path.relative_to(folder).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns]
            for path in files
        }
    )


def corruption_accuracies(
    bench: Bench, sets: Sequence[CorruptedSet], count: int | None
) -> list[CorruptionRow]:
    """Measure the model on each set, or on so many images of each, chosen at random.

    Raises
    ------
    DataError
        When images cannot be read or have another shape than the model's.
    """
    rows, (channels, height, width) = [], bench.model.shape
    size, device = height if height == width else None, bench.test.device
    for number, one in enumerate(sets):
        title = one.corruption if one.severity is None else f"{one.corruption} {one.severity}"
        stream = FolderStream(
            one.source, image_size=size, channels=channels, device=device, split="test"
        )
        bench.model.require_data(stream.manifest.class_names, stream.manifest.shape, title)
        total = len(one.source)
        wanted = None if count is None else min(count, total)
        part = replace(bench, test=select_images(stream, total, wanted, bench.seed))
        answers = part.answers(f"corruption-{number}", torch.arange(len(part.test)), title=title)
        correct = measured(answers.correct(part.test.labels))
        rows.append(CorruptionRow(corruption=one.corruption, severity=one.severity, **correct))
    return rows


def corruption_summary(rows: Sequence[CorruptionRow]) -> Score:
    """The mean over all corruptions and severities, with the n of the smallest set.

    The sets show the same images, so that their answers are no independent trials: the interval
    is that of one set's images alone, and rather too wide.
    """
    return Score.of(sum(row.accuracy for row in rows) / len(rows), min(row.n for row in rows))
