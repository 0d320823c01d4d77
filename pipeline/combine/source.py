"""Reading the stores that another one is made of: no byte is used that was not hashed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.labels.read import SoftLabels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ProvenStore"]


class ProvenStore:
    """A store of which each chunk's SHA-256 is compared with the manifest before it is used.

    The new store names this one's identity as where its rows come from, so the rows must be
    those of that identity. A chunk's CRC-32C would find damage, but not a change.

    Parameters
    ----------
    path : Path or SoftLabels
        An opened one may lack chunks that are not read.

    Raises
    ------
    MissingError, StoreError
        See `SoftLabels.open`.

    Attributes
    ----------
    store : SoftLabels
    """

    def __init__(self, path: Path | SoftLabels) -> None:
        self.store = path if isinstance(path, SoftLabels) else SoftLabels.open(path)
        self._proven = {
            name: np.zeros(array.layout.num_chunks, bool)
            for name, array in self.store.arrays.items()
        }
        for name in ("labels", "sample_hash"):
            self._prove(name, range(self.store.arrays[name].layout.num_chunks))

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays with an answer for each row: all but `labels` and `sample_hash`."""
        return tuple(name for name in self.store.arrays if name not in ("labels", "sample_hash"))

    @property
    def rows(self) -> int:
        """Samples in a chunk."""
        return self.store.arrays["labels"].layout.rows

    def gather(self, name: str, index: NDArray[np.int64], view: int | None = None) -> NDArray[Any]:
        """Rows of one array, as `StoredArray.gather`.

        Raises
        ------
        StoreError
            When one is in a chunk that is damaged or was changed.
        """
        self._prove(name, np.unique(index // self.rows).tolist())
        return self.store.arrays[name].gather(index, None, view)

    def soft(self, index: NDArray[np.int64]) -> NDArray[np.float16]:
        """Dense soft labels, as `SoftLabels.gather`."""
        for name in self.names:
            if name != "logits":
                self._prove(name, np.unique(index // self.rows).tolist())
        return self.store.gather(index)

    def _prove(self, name: str, chunks: Any) -> None:
        proven, layout = self._proven[name], self.store.arrays[name].layout
        for chunk in chunks:
            if not proven[chunk]:
                self.store.hashes.verify(layout.chunk_name(chunk))
                proven[chunk] = True
