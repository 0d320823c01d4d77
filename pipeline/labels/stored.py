"""One array of a store, in memory-mapped chunks that are checked when first touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.labels.arrays import ArrayLayout
    from pipeline.labels.folder import StoreFolder

__all__ = ["StoredArray", "map_chunk"]

_FLOAT16_INFINITY = np.uint16(0x7C00)
_FLOAT16_MAGNITUDE = np.uint16(0x7FFF)


def map_chunk(folder: StoreFolder, layout: ArrayLayout, chunk: int) -> NDArray[Any]:
    """Map one chunk and check it.

    Returns
    -------
    ndarray of shape (rows_in(chunk), K) or (rows_in(chunk),)
        Read-only, without the padding.

    Raises
    ------
    StoreError
        When its size or checksum is wrong, or a value is one that the format excludes.
    """
    name = layout.chunk_name(chunk)
    content = folder.map(name, layout.file_bytes)
    payload, stored = content[: layout.payload_bytes], content[layout.payload_bytes :]
    if google_crc32c.value(payload) != int.from_bytes(stored.tobytes(), "little"):
        raise StoreError(
            folder.path,
            f"{name} is damaged: its CRC-32C is wrong",
            remedy="Fetch or make the store again.",
        )
    whole: NDArray[Any] = payload.view(layout.dtype).reshape(layout.chunk_shape)
    rows = whole[: layout.rows_in(chunk)]
    if layout.dtype == np.float16:
        _require_numbers(folder, layout, chunk, rows)
    return rows


def _require_numbers(
    folder: StoreFolder, layout: ArrayLayout, chunk: int, rows: NDArray[np.float16]
) -> None:
    # As integers: float16 numbers below infinity compare like their bits, and the sign bit
    # makes negative ones large, so that one maximum finds NaN, infinity and sign.
    bits = rows.view(np.uint16)
    logits = layout.name == "logits"
    magnitude = bits & _FLOAT16_MAGNITUDE if logits else bits
    if magnitude.max() < _FLOAT16_INFINITY:
        return
    row = int(np.argmax((magnitude >= _FLOAT16_INFINITY).any(axis=1)))
    wrong = rows[row][magnitude[row] >= _FLOAT16_INFINITY][0]
    raise StoreError(
        folder.path,
        f"sample {chunk * layout.rows + row}: {layout.name}",
        expected="finite numbers" if logits else "probabilities",
        found=wrong,
        remedy="The store was made wrongly: run 'ltd-pipe label' again.",
    )


class StoredArray:
    """Rows of one array, without reading more than is asked for.

    Parameters
    ----------
    folder : StoreFolder
    layout : ArrayLayout
        Each of its chunk files must exist and have its size.
    """

    def __init__(self, folder: StoreFolder, layout: ArrayLayout) -> None:
        for chunk in range(layout.num_chunks):
            folder.require_size(layout.chunk_name(chunk), layout.file_bytes)
        self.folder, self.layout = folder, layout
        self._chunks: dict[int, NDArray[Any]] = {}

    def chunk(self, chunk: int) -> NDArray[Any]:
        """Rows of one chunk, as `map_chunk`, which checks it the first time."""
        if chunk not in self._chunks:
            self._chunks[chunk] = map_chunk(self.folder, self.layout, chunk)
        return self._chunks[chunk]

    def read(self) -> NDArray[Any]:
        """The whole array, in memory."""
        return np.concatenate([self.chunk(chunk) for chunk in range(self.layout.num_chunks)])

    def gather(
        self, index: NDArray[np.integer[Any]], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Rows in any order; see `SoftLabels.gather`."""
        index = self.require_rows(index)
        shape = (len(index), *self.layout.shape[1:])
        if out is None:
            out = np.empty(shape, self.layout.dtype)
        elif out.shape != shape or out.dtype != self.layout.dtype:
            raise ValueError(f"out: expected {shape} float16, found {out.shape} {out.dtype}")
        chunks, rows = np.divmod(index, self.layout.rows)
        # Grouped by chunk, so that the cost in Python is one step per chunk, not per row.
        order = np.argsort(chunks, kind="stable")
        chunks, rows = chunks[order], rows[order]
        starts = np.flatnonzero(np.diff(chunks, prepend=-1))
        ends = np.append(starts[1:], len(index))
        grouped = np.empty(shape, self.layout.dtype)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=False):
            # Clipping changes nothing, since rows were checked; it spares NumPy a buffer.
            source = self.chunk(int(chunks[start]))
            source.take(rows[start:end], axis=0, out=grouped[start:end], mode="clip")
        out[order] = grouped
        return out

    def require_rows(self, index: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Refuse indices that are no rows: negative ones too, which NumPy would wrap around."""
        index = np.asarray(index)
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise ValueError(f"index: expected integers (B,), found {index.shape} {index.dtype}")
        outside = (index < 0) | (index >= self.layout.num_samples)
        if outside.any():
            raise StoreError(
                self.folder.path,
                "no such row",
                expected=f"0 to {self.layout.num_samples - 1}",
                found=index[outside][0],
            )
        return index.astype(np.int64, copy=False)
