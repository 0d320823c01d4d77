"""One pass over all images before anything is done with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import DataError, reason_of
from ltd_pipe.images.decode import is_one_colour, is_turned
from ltd_pipe.images.manifest import sample_hash

if TYPE_CHECKING:
    from ltd_pipe.images.sources import Source

# An image of this size takes 192 MiB; FFCV, which holds five batches, needs far smaller ones.
_MAX_SIDE = 8192


@dataclass(frozen=True)
class Survey:
    """What one pass over all images found."""

    # Of shape (N,); meaningless where the image is bad.
    sample_hash: NDArray[np.uint64]
    # Height and width, of shape (N, 2).
    sizes: NDArray[np.int64]
    # Unreadable images and why.
    bad: list[tuple[int, str]]
    # Images whose pixels are all about the same, and those with an EXIF orientation.
    one_colour: NDArray[np.bool_]
    turned: NDArray[np.bool_]


def survey(source: Source, progress: Callable[[int], None] | None = None) -> Survey:
    """Read, hash and decode every image once; `progress` is called with the number just done."""
    hashes = np.zeros(len(source), dtype=np.uint64)
    sizes = np.zeros((len(source), 2), dtype=np.int64)
    bad: list[tuple[int, str]] = []
    one_colour, turned = np.zeros((2, len(source)), dtype=np.bool_)

    def look(i: int) -> None:
        try:
            raw = source.raw(i)
            hashes[i], turned[i] = sample_hash(raw), isinstance(raw, bytes) and is_turned(raw)
            image = source.decode(i)
            sizes[i], one_colour[i] = image.shape[:2], is_one_colour(image)
        except DataError as error:
            bad.append((i, error.what))
        except OSError as error:
            bad.append((i, f"cannot be read: {reason_of(error)}"))

    # Reading, hashing and decoding release the interpreter's lock.
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(look, range(len(source)), chunksize=64), 1):
            if progress and (done % 256 == 0 or done == len(source)):
                progress(256 if done % 256 == 0 else done % 256)
    return Survey(hashes, sizes, sorted(bad), one_colour, turned)


def without_bad(source: Source, found: Survey, *, skip: bool) -> tuple[Source, Survey, list[str]]:
    """Leave unreadable images out, or refuse them.

    Returns
    -------
    tuple
        What is usable, its survey, and a line for each image that was left out.

    Raises
    ------
    DataError
        Naming the first bad image, or a class of which none is left.
    """
    if not found.bad:
        return source, found, []
    if not skip:
        raise DataError(
            source.where(found.bad[0][0]),
            f"is not usable: {found.bad[0][1]}",
            remedy="Remove or mend it, or pass --skip-bad." + _others(source, found),
        )
    keep = np.setdiff1d(np.arange(len(source)), [i for i, _ in found.bad])
    part = source.take(keep)
    if not len(part):
        raise DataError(source.name, "has no readable image")
    lost = set(source.labels.tolist()) - set(part.labels.tolist())
    if lost:
        name = source.class_names[min(lost)]
        raise DataError(source.name, f"class '{name}' has no readable image")
    reasons = [f"{source.where(i)}: {reason}" for i, reason in found.bad]
    rest = Survey(
        found.sample_hash[keep],
        found.sizes[keep],
        [],
        found.one_colour[keep],
        found.turned[keep],
    )
    return part, rest, reasons


def _others(source: Source, found: Survey) -> str:
    """A sentence on the bad images after the first, the next two by name."""
    others = [source.where(i) for i, _ in found.bad[1:]]
    if not others:
        return ""
    rest = f" and {len(others) - 2} more" if len(others) > 2 else ""
    return f" The same is true of {', '.join(others[:2])}{rest}."


def require_unchanged(source: Source, i: int, expected: int) -> None:
    """Refuse an image whose hash is not the one of its survey: its file was changed since."""
    if sample_hash(source.raw(i)) != expected:
        raise DataError(
            source.where(i),
            "was changed while the images were read",
            remedy="Run it again when nothing else writes there.",
        )


def common_size(source: Source, found: Survey, image_size: int | None) -> tuple[int, int]:
    """Height and width that all images have, or will have.

    Raises
    ------
    DataError
        When they differ and are not to be resized, naming two that do; or are too large.
    """
    if image_size is not None:
        return image_size, image_size
    if found.sizes.max() > _MAX_SIDE:
        i = int(found.sizes.max(axis=1).argmax())
        raise DataError(
            source.where(i),
            "is too large",
            expected=f"at most {_MAX_SIDE:,} pixels a side",
            found=f"{found.sizes[i][1]}×{found.sizes[i][0]}",
            remedy="Pass --image-size to resize them all.",
        )
    different = np.flatnonzero((found.sizes != found.sizes[0]).any(axis=1))
    height, width = (int(side) for side in found.sizes[0])
    if len(different):
        i = int(different[0])
        raise DataError(
            source.where(i),
            "images differ in size",
            expected=f"{width}×{height} like {source.where(0)}",
            found=f"{found.sizes[i][1]}×{found.sizes[i][0]}",
            remedy="Pass --image-size to resize them all.",
        )
    return height, width
