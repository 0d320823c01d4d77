"""Batches straight from an image folder, for work that passes over it once."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from ltd_pipe.errors import DataError, reason_of, refuse_pointer
from ltd_pipe.images.manifest import Duplicates, ImageFacts, fingerprint, sample_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from ltd_pipe.images.sources import Source, Split
    from ltd_pipe.images.stream import Batch


# --- Image files to RGB pixels, and to one size.


# As Pillow converts to grey: thousandths of the ITU-R 601 weights, times 2^16 / 1000.
LUMA = (19595, 38470, 7471)
# Of 12 bits in a file of 16, which look black, 4 are left.
_LEAST_CONTRAST = 16
# Pillow goes by the content, and would start Ghostscript for a PostScript file that is called .jpg.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)
# EXIF's tag; 1 is upright.
_ORIENTATION = 0x0112
# What is done to images here, as a soft-label store says it.
RESIZE = "shorter side, bicubic, antialiased; centre crop"
CHANNELS = {1: "luminance; transparency on white", 3: "RGB; transparency on white"}


def decode_image(content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode an image file of the kinds that `sources.EXTENSIONS` has.

    Parameters
    ----------
    content : bytes
        The whole file.
    where : str
        How the user knows it.

    Returns
    -------
    ndarray of shape (H, W, 3), dtype uint8
        Grey becomes three equal channels. Transparency is laid on white, or on black where
        nothing would be seen on white. 16-bit grey keeps its upper 8 bits, unless all values are
        8-bit ones. Of several frames the first is taken, and EXIF orientation is left alone, as
        in torchvision's ImageFolder.

    Raises
    ------
    DataError
        When it is empty, truncated, or no image, or its values are of no known scale.
    """
    if not content:
        raise DataError(where, "is empty (0 bytes)")
    refuse_pointer(content, where, DataError)
    try:
        # Warnings are not caught here: that changes the whole process, and threads call this.
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            _require_sane_size(image)
            return _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise whatever comes to their mind
        # Pillow names the object in memory, whose address differs from run to run.
        reason = reason_of(error).partition(" <_io.BytesIO")[0]
        raise DataError(where, f"is not a readable image ({reason})") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _require_sane_size(image: Image.Image) -> None:
    # Up to twice this limit Pillow only warns of a decompression bomb.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width}×{image.height} are more than {limit:,} pixels")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose scale is not known: save it with 8 bits")
    if image.mode.startswith("I"):
        return np.repeat(_eight_bits(np.asarray(image).astype(np.int64))[:, :, None], 3, axis=2)
    deep = _has_deep_colours(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        pixels = _laid_on(layer, 255)
        low, high = layer.getchannel("A").getextrema()
        if low != high and is_one_colour(pixels):
            pixels = _laid_on(layer, 0)  # white glyphs
    else:
        pixels = np.asarray(image.convert("RGB"))
    if deep and pixels.max() <= 1:
        raise ValueError(
            "16-bit colours all below 256, black or 8-bit values in a 16-bit file: save 8 bits"
        )
    return pixels


def _eight_bits(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    # Pillow would clip 16-bit grey to 255 when it converts; the upper byte is the picture.
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 1 << 16:
        raise ValueError(f"values of {low} to {high} are of no known scale: save it with 8 bits")
    return (values if high < 1 << 8 else values >> 8).astype(np.uint8)


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether its file has 16 bits a colour, of which Pillow gives the upper 8."""
    kinds = (
        tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in getattr(image, "tile", ())
    )
    return any(";16" in str(kind[0]) or kind[1:] == (65535,) for kind in kinds if kind)


def _laid_on(layer: Image.Image, grey: int) -> NDArray[np.uint8]:
    ground = Image.new("RGBA", layer.size, (grey, grey, grey, 255))
    return np.asarray(Image.alpha_composite(ground, layer).convert("RGB"))


def is_turned(content: bytes) -> bool:
    """Whether EXIF asks viewers to turn or mirror the picture, which decoding does not do."""
    file = io.BytesIO(content)
    with contextlib.suppress(Exception), Image.open(file, formats=_formats()) as image:
        # Without it in `info`, Pillow would decode a whole PNG to look for it.
        return "exif" in image.info and image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return False


def is_one_colour(image: NDArray[np.uint8]) -> bool:
    """Whether all pixels of shape (H, W, 3) are about the same; nearly always a mistake."""
    # Most images are told by their first row.
    parts = (image[0], image.reshape(-1, 3))
    return all((part.max(axis=0) - part.min(axis=0)).max() < _LEAST_CONTRAST for part in parts)


def resize(image: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Scale the shorter side to `size` (bicubic, antialiased) and crop the centre square.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), dtype uint8
    size : int or None
        Pixels; None leaves the image as it is.

    Returns
    -------
    ndarray of shape (size, size, 3), dtype uint8
    """
    height, width = image.shape[:2]
    if size is None or height == width == size:
        return image
    scale = size / min(height, width)
    scaled = max(size, round(width * scale)), max(size, round(height * scale))
    picture = Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def to_channels(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """RGB pixels as a network of so many channels takes them.

    Parameters
    ----------
    images : ndarray of shape (..., H, W, 3), dtype uint8
    channels : int
        1: the luminance, as Pillow's mode L to the bit; what is grey stays as it is. 3: RGB.

    Returns
    -------
    ndarray of shape (..., H, W, channels), dtype uint8
    """
    if channels != 1:
        return images
    red, green, blue = (images[..., i].astype(np.uint32) * weight for i, weight in enumerate(LUMA))
    return ((red + green + blue + (1 << 15)) >> 16).astype(np.uint8)[..., None]


# --- Batches straight from an image folder, for work that passes over it once.


class FolderStream:
    """Reads a source as `ImageStream` reads a beton; its images are decoded as they come.

    Parameters
    ----------
    source : Source
    facts : ImageFacts
        Of that source.
    sample_hash : ndarray of shape (N,), dtype uint64
    device : torch.device
    notes : sequence of str
        What the user should know of the images, in lines.
    """

    def __init__(
        self,
        source: Source,
        facts: ImageFacts,
        sample_hash: NDArray[np.uint64],
        device: torch.device,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = notes
        self.facts, self.sample_hash, self.device = facts, sample_hash, device
        self.labels = source.labels
        self._source = source

    @property
    def manifest(self) -> ImageFacts:
        """What the images are, under the name that a beton has it by."""
        return self.facts

    def where(self, i: int) -> str:
        """Image i as the user knows it."""
        return self._source.where(i)

    def batches(self, order: NDArray[np.int64], batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield the samples of `order`; see `ImageStream.batches`."""
        with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
            for begin in range(start * batch_size, len(order), batch_size):
                rows = np.ascontiguousarray(order[begin : begin + batch_size])
                yield self._batch(rows, np.stack(list(pool.map(self._pixels, rows))))

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        channels, height, width = self.facts.shape
        # Images that are not square are all of one size, and stay as they are.
        image = resize(self._source.decode(int(row)), height if height == width else None)
        require_unchanged(self._source, int(row), int(self.sample_hash[row]))
        return np.ascontiguousarray(to_channels(image, channels).transpose(2, 0, 1))

    def _batch(self, rows: NDArray[np.int64], pixels: NDArray[np.uint8]) -> Batch:
        import torch

        from ltd_pipe.images.stream import Batch

        labels = torch.from_numpy(self.labels[rows].astype(np.int64))
        return Batch(
            torch.from_numpy(pixels).to(self.device),
            labels.to(self.device),
            torch.from_numpy(rows).to(self.device),
            rows,
            self.sample_hash[rows],
        )


def open_folder(
    source: Source,
    *,
    image_size: int | None,
    channels: Literal[1, 3],
    device: torch.device,
    split: Split = "train",
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[FolderStream, list[str]]:
    """Survey a source and open it for reading.

    Parameters
    ----------
    source : Source
    image_size : int or None
        See `ltd_pipe.images.folder.resize`; None: all images must have one size.
    channels : int
        1 or 3.
    device : torch.device
    split : str
        Which part of the data set they are.
    skip_bad : bool
        Leave unreadable images out.
    progress : callable, optional
        Called with the number of images just surveyed.

    Returns
    -------
    tuple of FolderStream and list of str
        The second names what was left out.

    Raises
    ------
    DataError
        See `ltd_pipe.images.folder`.
    """
    source, found, skipped = without_bad(source, survey(source, progress), skip=skip_bad)
    height, width = common_size(source, found, image_size)
    facts = ImageFacts(
        dataset=source.name,
        split=split,
        num_samples=len(source),
        class_names=source.class_names,
        shape=(channels, height, width),
        fingerprint=fingerprint(source.class_names, source.labels, found.sample_hash),
    )
    duplicates = Duplicates.count((source.labels, found.sample_hash))
    doubts = facts.doubts(int(found.one_colour.sum()), int(found.turned.sum()), duplicates)
    notes = [*source.notes, *(f"warning: {source.name}: {line}" for line in doubts)]
    return FolderStream(source, facts, found.sample_hash, device, notes), skipped


# --- One pass over all images before anything is done with them.


# An image of this size takes 192 MiB; FFCV, which holds five batches, needs far smaller ones.
_MAX_SIDE = 8192


@dataclass(frozen=True)
class Survey:
    """What one pass over all images found.

    Attributes
    ----------
    sample_hash : ndarray of shape (N,), dtype uint64
        Meaningless where the image is bad.
    sizes : ndarray of shape (N, 2), dtype int64
        Height and width.
    bad : list of tuple of int and str
        Unreadable images and why.
    one_colour : ndarray of shape (N,), dtype bool
        Images whose pixels are all about the same.
    """

    sample_hash: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    bad: list[tuple[int, str]]
    one_colour: NDArray[np.bool_]
    turned: NDArray[np.bool_]


def survey(source: Source, progress: Callable[[int], None] | None = None) -> Survey:
    """Read, hash and decode every image once, before anything is written.

    Parameters
    ----------
    source : Source
    progress : callable, optional
        Called with the number of images just done.
    """
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

    Parameters
    ----------
    source : Source
    found : Survey
        Of that source.
    skip : bool
        Leave them out.

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
    """Refuse an image that is not the one that was surveyed.

    Parameters
    ----------
    source : Source
    i : int
        Which image.
    expected : int
        Its hash in the survey.

    Raises
    ------
    DataError
        When its file was changed since.
    """
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
