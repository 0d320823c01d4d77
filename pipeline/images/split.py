"""The validation split, fixed by each image's hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline import rng

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["validation_mask"]


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
    draw = rng.bits(rng.stream_key(0, "validation"), sample_hash.view(np.int64))
    return draw < np.uint64(int(fraction * 2**64))
