"""Stored pixels and the unit that models and attacks see."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from pipeline.images.stream import Stream

__all__ = ["pixels_sha256", "sampled_pixels_sha256", "to_unit"]

# Resizing, another encoding and another decoder change nearly every image.
_SAMPLED, _BATCH = 256, 64


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1]: uint8 images divided by 255, as float32 of the same shape."""
    return images.float().div_(255.0)


def pixels_sha256(images: NDArray[np.uint8]) -> str:
    """SHA-256 of images as a model is shown them: their shape, and all pixels in order.

    `sample_hash` is of the stored source, which resizing and another encoding leave alone.

    Parameters
    ----------
    images : ndarray of shape (n, C, H, W), dtype uint8
    """
    total = hashlib.sha256(repr(images.shape).encode())
    total.update(np.ascontiguousarray(images).data)
    return total.hexdigest()


def sampled_pixels_sha256(stream: Stream, num_samples: int) -> str:
    """`pixels_sha256` of at most 256 images, number ⌊i · N / n⌋ of N for i = 0 … n - 1."""
    count = min(num_samples, _SAMPLED)
    rows = np.arange(count, dtype=np.int64) * num_samples // count
    parts = [each.images.cpu().numpy() for each in stream.batches(rows, _BATCH)]
    return pixels_sha256(np.concatenate(parts))
