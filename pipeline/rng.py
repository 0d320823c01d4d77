"""Counter-based random numbers: a pure function of (seed, stream, epoch, sample index).

A run must not depend on the loader's batch size, the number of workers or ranks, or on where
it was interrupted. So nothing here has a state: every number is the SplitMix64 finaliser
(Steele, Lea and Flood, OOPSLA 2014, the variant of Stafford) applied to a key, a sample index
and a counter. numpy and torch (any device) give the same integers.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["bits", "bits_torch", "integers", "normal", "permutation", "stream_key", "uniform"]

# 2^64 / golden ratio, and the two multipliers of SplitMix64, as signed integers.
_GOLDEN, _MIX_1, _MIX_2 = (
    word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
Words = TypeVar("Words", NDArray[np.int64], "torch.Tensor")


def stream_key(seed: int, stream: str, epoch: int = 0) -> int:
    """Derive the 64-bit key of one stream of random numbers, independent of all others.

    `stream` says what they are for, such as "attack-start"; `epoch` is a view's or restart's, too.
    """
    text = f"{seed}/{stream}/{epoch}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def bits(key: int, index: NDArray[np.int64], counter: int = 0) -> NDArray[np.uint64]:
    """Random 64-bit integers, one per sample of `index`, which has any shape; uint64 of the same.

    The key is from `stream_key`; `counter` says which draw of the sample this is.
    """
    sample = _mix(index * _GOLDEN + _signed(key))
    return _mix(sample + _signed((counter + 1) * _GOLDEN)).view(np.uint64)


def bits_torch(key: int, index: torch.Tensor, draws: int) -> torch.Tensor:
    """`bits` for counters 0 to draws - 1 on the index's device: int64 of the same bit patterns."""
    import torch

    sample = _mix(index * _GOLDEN + _signed(key))
    counter = torch.arange(1, draws + 1, device=index.device) * _GOLDEN
    return _mix(sample[:, None] + counter)


def _mix(z: Words) -> Words:
    """SplitMix64's finaliser, of int64 arrays or tensors, whose products wrap around."""
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Words, by: int) -> Words:
    # torch has no uint64 arithmetic, and >> on int64 copies the sign bit: mask it away.
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def uniform(key: int, index: torch.Tensor, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24, so exact in float32: of shape (B, *shape).

    For sample indices of shape (B,), dtype int64; `shape` is of one sample's numbers.
    """
    raw = bits_torch(key, index, math.prod(shape))
    return (_shift_right(raw, 40).float() * 2.0**-24).reshape(len(index), *shape)


def integers(key: int, index: Words, high: int, counter: int = 0) -> Words:
    """Integers in [0, high), one per sample, int64; the bias of the modulo is below high / 2^63."""
    sample = _mix(index * _GOLDEN + _signed(key))
    return _shift_right(_mix(sample + _signed((counter + 1) * _GOLDEN)), 1) % high


def normal(key: int, index: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers, of shape (B, *shape), by Box and Muller's transform of `uniform`."""
    pair = uniform(key, index, (2, *shape))
    # 1 - u lies in (0, 1], so the logarithm is finite.
    radius = (-2.0 * (1.0 - pair[:, 0]).log()).sqrt()
    return radius * (2.0 * math.pi * pair[:, 1]).cos()


def permutation(key: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Samples in random order: sorted by their own random number.

    Where one lands relative to another does not depend on which others there are.
    """
    return samples[np.argsort(bits(key, samples), kind="stable")]
