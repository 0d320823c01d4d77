"""Which rows of two sets are of the same images, though their order or number differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Matches", "match_rows", "repeated"]


@dataclass(frozen=True)
class Matches:
    """Rows that belong together.

    Attributes
    ----------
    first, second : ndarray of shape (n,), dtype int64
        Pairs of rows, by rising row of the first set.
    only_first, only_second : ndarray, dtype int64
        Rows without a partner, rising.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    only_first: NDArray[np.int64]
    only_second: NDArray[np.int64]


def match_rows(
    first: tuple[NDArray[np.uint64], NDArray[np.int32]],
    second: tuple[NDArray[np.uint64], NDArray[np.int32]],
) -> Matches:
    """Pair rows of equal sample_hash, each at most once.

    An image that is several times in both sets is paired as often as the rarer set has it:
    by label first, then in order.

    Parameters
    ----------
    first, second : tuple of ndarray of shape (N,), dtype uint64, and of int32
        Hashes and labels.

    Returns
    -------
    Matches
    """
    hashes = np.concatenate([first[0], second[0]])
    labels = np.concatenate([first[1], second[1]])
    side = np.repeat([0, 1], [len(first[0]), len(second[0])])
    row = np.concatenate([np.arange(len(first[0])), np.arange(len(second[0]))])
    # Equal hash and label first; what is left, by hash alone.
    left, pairs = np.arange(len(hashes)), []
    for keys in ((hashes, labels), (hashes,)):
        number = _occurrences(side[left], *(key[left] for key in keys))
        found = _adjacent(side[left], number, *(key[left] for key in keys))
        pairs.append(left[found])
        left = np.delete(left, found.reshape(-1))
    both = np.concatenate(pairs)
    both = both[np.argsort(row[both[:, 0]], kind="stable")]
    alone = [np.sort(row[left[side[left] == which]]) for which in (0, 1)]
    return Matches(row[both[:, 0]], row[both[:, 1]], alone[0], alone[1])


def _occurrences(*keys: NDArray[np.generic]) -> NDArray[np.int64]:
    # For each row, how many rows with the same keys come before it.
    count = len(keys[0])
    order = np.lexsort(keys)
    new = np.ones(count, bool)
    if count:
        new[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    start = np.maximum.accumulate(np.where(new, np.arange(count), 0))
    number = np.empty(count, np.int64)
    number[order] = np.arange(count) - start
    return number


def _adjacent(
    side: NDArray[np.int64], number: NDArray[np.int64], *keys: NDArray[np.generic]
) -> NDArray[np.int64]:
    # Places (n, 2) of pairs that differ in nothing but the side: neighbours once sorted.
    order = np.lexsort((side, number, *keys))
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in (number, *keys):
        same &= key[order][1:] == key[order][:-1]
    at = np.flatnonzero(same)
    return np.stack([order[at], order[at + 1]], axis=1)


def repeated(sample_hash: NDArray[np.uint64]) -> tuple[int, int] | None:
    """Two rows of the same image, or None: the earlier of them as early as can be."""
    order = np.argsort(sample_hash, kind="stable")
    again = np.flatnonzero(sample_hash[order][1:] == sample_hash[order][:-1])
    if not len(again):
        return None
    best = again[np.argmin(order[again])]
    return int(order[best]), int(order[best + 1])
