"""Image files to RGB pixels, and to one size."""

from __future__ import annotations

import contextlib
import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ltd_pipe.errors import DataError, reason_of, refuse_pointer

# Of 12 bits in a file of 16, which look black, 4 are left.
_LEAST_CONTRAST = 16
# Pillow goes by the content, and would start Ghostscript for a PostScript file that is called .jpg.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)
# What is done to images here, as a soft-label store says it.
RESIZE = "shorter side, bicubic, antialiased; centre crop"
CHANNELS = {1: "luminance; transparency on white", 3: "RGB; transparency on white"}


def decode_image(content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode an image file of the kinds that `sources.EXTENSIONS` has.

    Returns
    -------
    ndarray of shape (H, W, 3), dtype uint8
        Grey becomes three equal channels. Transparency is laid on white, or on black where
        nothing would be seen on white. 16-bit grey keeps its upper 8 bits, unless all values are
        8-bit ones. Of several frames the first is taken, and EXIF orientation is left alone, as
        in torchvision's ImageFolder, but in TIFFs, which Pillow turns for both.

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
            return _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise whatever comes to their mind
        # Pillow names the object in memory, whose address differs from run to run.
        reason = reason_of(error).partition(" <_io.BytesIO")[0]
        raise DataError(where, f"is not a readable image ({reason})") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    # Up to twice this limit Pillow only warns of a decompression bomb.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width}×{image.height} are more than {limit:,} pixels")
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
            "16-bit colours all below 512, black or 8-bit values in a 16-bit file: save 8 bits"
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
        orientation = image.getexif().get(ExifTags.Base.Orientation) if "exif" in image.info else 1
        return orientation in range(2, 9)
    return False


def is_one_colour(image: NDArray[np.uint8]) -> bool:
    """Whether all pixels of shape (H, W, 3) are about the same; nearly always a mistake."""
    # Most images are told by their first row.
    parts = (image[0], image.reshape(-1, 3))
    return all((part.max(axis=0) - part.min(axis=0)).max() < _LEAST_CONTRAST for part in parts)


def resize(image: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Scale the shorter side to `size` pixels (bicubic, antialiased), crop the centre square.

    Images are of shape (H, W, 3) and (size, size, 3); None leaves the image as it is.
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
    """RGB pixels of shape (..., H, W, 3) as a network of 1 or 3 channels takes them.

    1: the luminance, as Pillow's mode L to the bit; what is grey stays as it is.
    """
    if channels != 1:
        return images
    grey: NDArray[np.uint32] = luminance(*(images[..., i].astype(np.uint32) for i in range(3)))
    return grey.astype(np.uint8)[..., None]


def luminance(red: Any, green: Any, blue: Any) -> Any:
    """As Pillow converts to grey, of arrays or tensors of 32 bits; the weights are ITU-R 601's."""
    # Thousandths, times 2^16 / 1000.
    return (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16
