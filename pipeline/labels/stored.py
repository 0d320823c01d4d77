"""One array of a store, in memory-mapped chunks that are checked when first touched."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from pipeline.errors import StoreError
from pipeline.labels.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.labels.arrays import ArrayLayout
    from pipeline.labels.folder import StoreFolder
    from pipeline.labels.manifest import FileHashes

__all__ = ["StoredArray", "map_chunk", "parse_chunk"]

_MAX_THREADS = 8
_FLOAT16_INFINITY = np.uint16(0x7C00)
_FLOAT16_MAGNITUDE = np.uint16(0x7FFF)


def map_chunk(folder: StoreFolder, layout: ArrayLayout, chunk: int) -> NDArray[Any]:
    """Map one chunk and check it.

    Returns
    -------
    ndarray of shape (rows_in(chunk), *row_shape)
        Read-only, without the padding.

    Raises
    ------
    StoreError
        When its size or checksum is wrong, or a value is one that the format excludes.
    """
    content = folder.map(layout.chunk_name(chunk), layout.file_bytes)
    rows: NDArray[Any] = parse_chunk(folder, layout, chunk, content)[: layout.rows_in(chunk)]
    return rows


def parse_chunk(
    folder: StoreFolder, layout: ArrayLayout, chunk: int, content: NDArray[np.uint8]
) -> NDArray[Any]:
    """Check the bytes of a chunk file.

    Returns
    -------
    ndarray of shape (rows, *row_shape)
        With the padding, which is not looked at; the same memory.

    Raises
    ------
    StoreError
        As `map_chunk`.
    """
    payload = content[: layout.payload_bytes]
    whole: NDArray[Any] = payload.view(layout.dtype).reshape(layout.chunk_shape)
    _require_sound(folder, layout, chunk, content, whole[: layout.rows_in(chunk)])
    return whole


def _require_sound(
    folder: StoreFolder,
    layout: ArrayLayout,
    chunk: int,
    content: NDArray[np.uint8],
    rows: NDArray[Any],
) -> None:
    payload, stored = content[: layout.payload_bytes], content[layout.payload_bytes :]
    if google_crc32c.value(payload) != int.from_bytes(stored.tobytes(), "little"):
        raise StoreError(
            folder.path,
            f"{layout.chunk_name(chunk)} is damaged: its CRC-32C is wrong",
            remedy="Fetch or make the store again.",
        )
    if layout.dtype == np.float16:
        _require_numbers(folder, layout, chunk, rows)
    elif layout.name == "topk_indices":
        _require_classes(folder, layout, chunk, rows)


def _require_classes(
    folder: StoreFolder, layout: ArrayLayout, chunk: int, rows: NDArray[Any]
) -> None:
    # One that is no class would be written outside the row that it is spread into.
    if rows.max() < layout.num_classes:
        return
    wrong = (rows >= layout.num_classes).reshape(len(rows), -1).any(axis=1)
    raise StoreError(
        folder.path,
        f"sample {chunk * layout.rows + int(np.argmax(wrong))}: {layout.name}",
        expected=f"classes below {layout.num_classes}",
        found=rows.max(),
        remedy="The store was made wrongly: run 'ltd-pipe label' again.",
    )


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
    outside = magnitude >= _FLOAT16_INFINITY
    row = int(np.argmax(outside.reshape(len(rows), -1).any(axis=1)))
    wrong = rows[row][outside[row]][0]
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
    hashes : FileHashes, optional
        The store's manifest: a chunk must also be the one that it lists. CRC-32C does not see
        that two sound chunks have changed places.
    partial : bool
        Only those must that are read.
    """

    def __init__(
        self,
        folder: StoreFolder,
        layout: ArrayLayout,
        hashes: FileHashes | None = None,
        *,
        partial: bool = False,
    ) -> None:
        for chunk in range(0 if partial else layout.num_chunks):
            folder.require_size(layout.chunk_name(chunk), layout.file_bytes)
        self.folder, self.layout, self._hashes = folder, layout, hashes
        self._mapping = Mapping(layout.num_chunks, layout.file_bytes, folder.path)
        # Shape (chunks, rows, *row_shape). A row may be touched once its chunk is checked.
        self._rows = self._mapping.rows(layout.chunk_shape, layout.dtype)
        self._checked = np.zeros(layout.num_chunks, bool)

    def chunk(self, chunk: int) -> NDArray[Any]:
        """Rows of one chunk, as `map_chunk`, which are checked the first time."""
        rows: NDArray[Any] = self._rows[chunk, : self.layout.rows_in(chunk)]
        if not self._checked[chunk]:
            name = self.layout.chunk_name(chunk)
            self.folder.require_size(name, self.layout.file_bytes)
            self._mapping.map(chunk, self.folder.locate(name))
            content = self._mapping.content(chunk)
            _require_sound(self.folder, self.layout, chunk, content, rows)
            if self._hashes is not None:
                self._hashes.verify_content(name, content)
            self._checked[chunk] = True
        return rows

    def read(self) -> NDArray[Any]:
        """The whole array, in memory."""
        self._check(range(self.layout.num_chunks))
        return np.concatenate([self.chunk(chunk) for chunk in range(self.layout.num_chunks)])

    def _check(self, chunks: Sequence[int]) -> None:
        # Hashing and checksums let other threads run; the first error is that of the first chunk.
        if len(chunks) < 2:
            for chunk in chunks:
                self.chunk(chunk)
            return
        count = min(os.cpu_count() or 1, _MAX_THREADS, len(chunks))
        with ThreadPoolExecutor(count) as threads:
            for _ in threads.map(self.chunk, chunks):
                pass

    def gather(
        self,
        index: NDArray[np.integer[Any]],
        out: NDArray[Any] | None = None,
        view: int | None = None,
    ) -> NDArray[Any]:
        """Rows in any order; see `SoftLabels.gather`."""
        index = self.require_rows(index)
        chunks, rows = np.divmod(index, self.layout.rows)
        new = chunks[~self._checked[chunks]]
        if len(new):
            self._check(np.unique(new).tolist())
        place: tuple[Any, ...] = (chunks, rows)
        if view is not None and self.layout.num_views > 1:
            place = (chunks, rows, self.require_view(view))
        elif view:
            self.require_view(view)
        found: NDArray[Any] = self._rows[place]
        if out is None:
            return found
        # Not left to NumPy, which would spread one row over all, or convert.
        if out.shape != found.shape or out.dtype != found.dtype:
            raise ValueError(
                f"out: expected {found.shape} {found.dtype}, found {out.shape} {out.dtype}"
            )
        out[...] = found
        return out

    def require_view(self, view: int) -> int:
        """Refuse a view that the store does not have."""
        if not 0 <= view < self.layout.num_views:
            raise StoreError(
                self.folder.path,
                "no such view",
                expected=f"0 to {self.layout.num_views - 1}",
                found=view,
            )
        return view

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
