"""What makes an image, and a set of images, the same one."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["fingerprint", "sample_hash"]


def sample_hash(raw: bytes | NDArray[np.uint8]) -> int:
    """Identify one image by its source, whatever it is later resized or encoded to.

    Parameters
    ----------
    raw : bytes or ndarray, dtype uint8
        The bytes of the image's file, or its pixels where there is no file (hashed in C
        order, the shape is not).

    Returns
    -------
    int
        In [0, 2^64): the eight bytes of BLAKE2b-64, little-endian.
    """
    content = raw if isinstance(raw, bytes) else np.ascontiguousarray(raw, np.uint8).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def fingerprint(
    class_names: Sequence[str], labels: NDArray[np.int32], sample_hash: NDArray[np.uint64]
) -> str:
    """Identify a set of labelled images in its order.

    Parameters
    ----------
    class_names : sequence of str
        Name of each of the K classes.
    labels : ndarray of shape (N,), dtype int32
        Class of each image, -1 where unknown.
    sample_hash : ndarray of shape (N,), dtype uint64
        From `sample_hash`.

    Returns
    -------
    str
        SHA-256 in hexadecimal over N and K, each name preceded by its length in bytes, the
        labels and the hashes; all integers little-endian, counts and lengths as uint64.
    """
    total = hashlib.sha256(struct.pack("<QQ", len(labels), len(class_names)))
    for name in class_names:
        encoded = name.encode()
        # The length keeps ("ab", "c") apart from ("a", "bc").
        total.update(struct.pack("<Q", len(encoded)) + encoded)
    total.update(labels.astype("<i4").tobytes())
    total.update(sample_hash.astype("<u8").tobytes())
    return total.hexdigest()
