"""Which rows of two sets are of the same images, though their order or number differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import JoinError


class ImageRows(NamedTuple):
    """Rows of one set, and how they are named where one has no partner in another set."""

    sample_hash: NDArray[np.uint64]
    labels: NDArray[np.int32]
    # The set, such as a store's path.
    name: object
    # Gives the file of a row, and what the row is called there.
    row: Callable[[int], tuple[object, str]]


class Matches(NamedTuple):
    """Pairs of rows by rising row of the first set, and rows without a partner, rising."""

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
    """
    hashes = np.concatenate([first[0], second[0]])
    labels = np.concatenate([first[1], second[1]])
    count = len(first[0])
    left = [np.arange(count), np.arange(count, len(hashes))]
    pairs: list[list[NDArray[np.int64]]] = []
    _, image = np.unique(hashes, return_inverse=True)
    _, label = np.unique(labels, return_inverse=True)
    _, both = np.unique(image * (label.max(initial=0) + 1) + label, return_inverse=True)
    # Equal hash and label first; what is left, by hash alone.
    for key in (both, image):
        ours, theirs = (_numbered(key[rows], len(hashes)) for rows in left)
        _, *at = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
        pairs.append([rows[chosen] for rows, chosen in zip(left, at, strict=True)])
        left = [np.delete(rows, chosen) for rows, chosen in zip(left, at, strict=True)]
    ours, theirs = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    order = np.argsort(ours)
    return Matches(ours[order], theirs[order] - count, left[0], left[1] - count)


def _numbered(key: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    # Equal keys made different: the n-th row of a key is one of its own.
    order = np.argsort(key, kind="stable")
    starts = np.searchsorted(key[order], key[order])
    number = np.empty_like(key)
    number[order] = np.arange(len(key)) - starts
    return key * total + number


def partners(
    first: ImageRows, second: ImageRows, *, whole: bool = True, remedy: str = ""
) -> NDArray[np.int64]:
    """The row of the second set for each row of the first, each used once.

    Parameters
    ----------
    first, second : ImageRows
    whole : bool
        Refuse rows of the second set that have no partner, and take the first set's classes for
        right; else the second is a data set, of which the first are only some images.
    remedy : str
        What to do about a row without one.

    Raises
    ------
    JoinError
        When a row has no partner, or is of another class than its partner.
    """
    found = match_rows(first[:2], second[:2])
    sides = [(found.only_first, first, second), (found.only_second, second, first)]
    for alone, side, other in sides[: 1 + whole]:
        if len(alone):
            where, row = side.row(int(alone[0]))
            raise JoinError(
                where,
                f"{row} is not in {other.name}, or less often ({len(alone)} such)",
                found=f"sample_hash {side.sample_hash[alone[0]]:016x}",
                remedy=remedy,
            )
    pairs = zip((first, second), (found.first, found.second), strict=True)
    (wanted, at), (given, rows) = pairs if whole else reversed([*pairs])
    wrong = wanted.labels[at] != given.labels[rows]
    if wrong.any():
        pair = int(np.argmax(wrong))
        where, row = given.row(int(rows[pair]))
        _, partner = wanted.row(int(at[pair]))
        raise JoinError(
            where,
            row,
            expected=f"class {wanted.labels[at[pair]]} as {partner} of {wanted.name}",
            found=given.labels[rows[pair]],
        )
    return found.second
