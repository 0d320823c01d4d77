"""Which row of a store belongs to which sample: found by the image's hash, then remembered."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import JoinError
from pipeline.labels.join import remedy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.labels.read import SoftLabels

__all__ = ["SampleRows"]

_WORD = 64


class SampleRows:
    """Rows of the samples of one data set.

    What was found is kept in memory that forked processes share, so that of all workers of a
    DataLoader, in all epochs, only the first one to see a sample has to hash it. A process that
    was spawned starts anew.

    Parameters
    ----------
    store : SoftLabels
    count : int
        Number of samples.
    """

    def __init__(self, store: SoftLabels, count: int) -> None:
        self._store, self._count = store, count
        # A row and the token of the file that it was found for are one word: 8 bytes are
        # written at once, so that no process ever reads one without the other.
        self._bits = store.num_samples.bit_length()
        self._mask = (1 << self._bits) - 1
        self._found = _shared(count)
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.intp]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Elsewhere nothing was checked.
        return vars(self) | {"_found": None, "_sorted": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _found=_shared(state["_count"]))

    def known(self, sample: int, token: int) -> int:
        """The row that `remember` was given with the same token, or -1."""
        word = int(self._found[sample])
        return (word & self._mask) - 1 if word == self._word(word & self._mask, token) else -1

    def remember(self, sample: int, token: int, row: int) -> None:
        """Keep what was found."""
        self._found[sample] = self._word(row + 1, token)

    def _word(self, low: int, token: int) -> int:
        return low and ((token << self._bits) & (2**_WORD - 1) | low)

    def at_place(self, sample: int, sample_hash: int, where: str) -> int:
        """The sample's own number, which must be the row of its image."""
        expected = int(self._store.sample_hash[sample])
        if expected != sample_hash:
            raise JoinError(
                self._store.path,
                f"sample {sample}",
                expected=f"sample_hash {expected:016x}",
                found=f"{sample_hash:016x} in {where}: these labels belong to other images, or "
                "stand in another order",
                remedy="Pass order='any' to have each image's label found by its hash.",
            )
        return sample

    def by_hash(self, sample: int, sample_hash: int, label: int, where: str) -> int:
        """The row of that image, wherever it stands.

        Of an image that is there several times it is the one at the sample's own place, or one
        of the sample's class.

        Raises
        ------
        JoinError
            When there is none.
        """
        store = self._store
        if (
            sample < store.num_samples
            and int(store.sample_hash[sample]) == sample_hash
            and label in (-1, int(store.labels[sample]))
        ):
            return sample
        rows = self._rows_of(sample_hash)
        if not len(rows):
            raise JoinError(
                store.path,
                f"has no label for sample {sample}",
                found=f"sample_hash {sample_hash:016x} in {where}",
                remedy=remedy(store.path),
            )
        fitting = rows[store.labels[rows] == label]
        return int(fitting[0] if len(fitting) else rows[0])

    def _rows_of(self, sample_hash: int) -> NDArray[np.intp]:
        if self._sorted is None:
            order = np.argsort(self._store.sample_hash, kind="stable")
            self._sorted = self._store.sample_hash[order], order
        ordered, order = self._sorted
        wanted = np.uint64(sample_hash)
        return order[ordered.searchsorted(wanted) : ordered.searchsorted(wanted, "right")]


def _shared(count: int) -> NDArray[np.uint64]:
    # Anonymous and shared: zeros, of which no page exists before it is written to.
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * 8), np.uint64)
