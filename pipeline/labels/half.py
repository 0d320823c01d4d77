"""Between float16, in which labels are stored, and float32, in which they are computed.

The results are NumPy's to the bit, but small probabilities are below float16's normal numbers,
where NumPy goes one by one: 4,194 rows of 1,000 take it 252 ms to round, torch 0.7 ms (one
core, NumPy 2.4, torch 2.15).

They go block by block on the calling thread: torch would share larger ones among threads that
wait for each other, which costs more than it gains as soon as other work has the cores.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["to_float16", "to_float32"]


# Torch starts threads above 32,768 numbers (at::internal::GRAIN_SIZE).
_BLOCK = 2**15
# NumPy takes 0.1 s for so many, importing torch a second: where it is not there yet, a store of
# many rows alone is worth it.
_MANY = 2**20


def to_float16(
    numbers: NDArray[np.floating[Any]], out: NDArray[np.float16] | None = None
) -> NDArray[np.float16]:
    """Round to float16; what is too large becomes infinite.

    Parameters
    ----------
    numbers : ndarray
    out : ndarray of the same shape, dtype float16, optional
        Contiguous; it is filled and returned.
    """
    rounded = np.empty(numbers.shape, np.float16) if out is None else out
    _convert(numbers, rounded)
    return rounded


def to_float32(numbers: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """A float32 copy, exact for float16."""
    widened = np.empty(numbers.shape, np.float32)
    _convert(numbers, widened)
    return widened


def _convert(numbers: NDArray[np.floating[Any]], out: NDArray[np.floating[Any]]) -> None:
    if "torch" not in sys.modules and numbers.size < _MANY:
        with np.errstate(over="ignore"):
            out[...] = numbers
        return
    import torch

    source, target = np.ascontiguousarray(numbers).reshape(-1), torch.from_numpy(out).view(-1)
    for start in range(0, source.size, _BLOCK):
        block = source[start : start + _BLOCK]
        # Torch warns of memory that must not be written to, such as a mapped file.
        block = block if block.flags.writeable else block.copy()
        target[start : start + _BLOCK].copy_(torch.from_numpy(block))
