"""Image files to RGB pixels, and to one size."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.errors import DataError, refuse_pointer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LUMA", "decode_image", "resize", "to_channels"]

# As Pillow converts to grey: thousandths of the ITU-R 601 weights, times 2^16 / 1000.
LUMA = (19595, 38470, 7471)


def decode_image(content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP, BMP or PPM file.

    Parameters
    ----------
    content : bytes
        The whole file.
    where : str
        How the user knows it.

    Returns
    -------
    ndarray of shape (H, W, 3), dtype uint8
        Grey becomes three equal channels, transparency is laid on black, 16-bit grey keeps its
        upper 8 bits. EXIF orientation is left alone, as in torchvision's ImageFolder.

    Raises
    ------
    DataError
        When it is empty, truncated, or no image.
    """
    if not content:
        raise DataError(where, "is empty (0 bytes)")
    refuse_pointer(content, where, DataError)
    try:
        # Warnings are not caught here: that changes the whole process, and threads call this.
        with Image.open(io.BytesIO(content)) as image:
            _require_sane_size(image)
            return _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise whatever comes to their mind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Pillow names the object in memory, whose address differs from run to run.
        reason = reason.partition(" <_io.BytesIO")[0]
        raise DataError(where, f"is not a readable image ({reason[:120]})") from error


def _require_sane_size(image: Image.Image) -> None:
    # Up to twice this limit Pillow only warns of a decompression bomb.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width}×{image.height} are more than {limit:,} pixels")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey to 255 when it converts; the upper byte is the picture.
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return np.asarray(image.convert("RGB"))


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
