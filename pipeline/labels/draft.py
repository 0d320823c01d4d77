"""A store in the making: rows become durable chunk by chunk and survive an interruption."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.background import Background
from pipeline.differences import differences
from pipeline.errors import MissingError, StateError, StoreError
from pipeline.labels.arrays import write_chunk
from pipeline.labels.folder import StoreFolder
from pipeline.labels.stored import StoredArray, map_chunk
from pipeline.publish import require_free, write_json, writing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.labels.arrays import ArrayLayout

__all__ = ["Draft"]

_KEY = "draft.json"
# Chunks that are being written while the next one fills up.
_BEHIND = 2


class Draft:
    """Columns of equal length in a folder of their own, whose rows are taken in order.

    Chunks are written behind the caller. Which ones are there is told by the files alone: any
    number of processes may fill different chunks of one draft, and know nothing of each other.

    Parameters
    ----------
    path : Path
        The folder; one that an interrupted run has left is continued.
    key : dict
        Plain values that decide the content; a folder of another key is refused.
    columns : dict of str to ArrayLayout
        All with the same rows per chunk.
    chunks : range, optional
        Those to fill; all by default.

    Raises
    ------
    StateError
        When the folder holds another draft.
    WriteError
        When the disk cannot hold what is missing.
    """

    def __init__(
        self,
        path: Path,
        key: Mapping[str, Any],
        columns: Mapping[str, ArrayLayout],
        chunks: range | None = None,
    ) -> None:
        self.path, self.columns = path, dict(columns)
        self._any = next(iter(columns.values()))
        self._chunks = range(self._any.num_chunks) if chunks is None else chunks
        self._claim(key)
        self._missing = [chunk for chunk in self._chunks if not self._is_whole(chunk)]
        size = sum(layout.file_bytes for layout in columns.values())
        require_free(path, len(self._missing) * size)
        self._order = self._rows_of(self._missing)
        self._taken = self._filled = 0
        self._pending = self._buffers()
        self._behind = Background(threads=_BEHIND, waiting=_BEHIND)

    def _claim(self, key: Mapping[str, Any]) -> None:
        if not (self.path / _KEY).exists():
            # Linked, not renamed: of several processes that begin at once, one decides.
            beside = self.path / f".{_KEY}.{os.getpid()}-{os.urandom(4).hex()}"
            write_json(beside, key)
            with writing(self.path / _KEY):
                _name(beside, self.path / _KEY)
        self._require_key(json.loads(json.dumps(key)))

    def _require_key(self, key: Mapping[str, Any]) -> None:
        remedy = f"Remove the folder {self.path} to start again."
        try:
            found = json.loads((self.path / _KEY).read_text(encoding="utf-8"))
        except ValueError as error:
            raise StateError(self.path, f"{_KEY} is damaged", remedy=remedy) from error
        for name, expected, other in differences(key, found):
            raise StateError(
                self.path,
                f"holds the draft of other labels: {name}",
                expected=repr(expected)[:40],
                found=repr(other)[:40],
                remedy=remedy,
            )

    def _is_whole(self, chunk: int) -> bool:
        # By their checksums, since a power cut can leave blocks of zeros.
        try:
            for name, layout in self.columns.items():
                map_chunk(StoreFolder(self.path / name), layout, chunk)
        except (StoreError, MissingError):
            return False
        return True

    def _rows_of(self, chunks: list[int]) -> NDArray[np.int64]:
        rows = self._any.rows
        parts = [np.arange(at * rows, at * rows + self._any.rows_in(at)) for at in chunks]
        return np.concatenate(parts) if parts else np.arange(0)

    def _buffers(self) -> dict[str, NDArray[Any]]:
        return {
            name: np.empty(layout.chunk_shape, layout.dtype)
            for name, layout in self.columns.items()
        }

    @property
    def rows_left(self) -> NDArray[np.int64]:
        """The rows to append, in this order: those of chunks that are not whole on disk."""
        return self._order[self._taken :]

    def flush(self) -> None:
        """Wait until all whole chunks are on disk.

        Raises
        ------
        WriteError
            When one could not be written.
        """
        self._behind.finish()

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Take the next rows, equally many of each column; whole chunks go to disk.

        Raises
        ------
        WriteError
            When an earlier chunk could not be written.
        """
        done, count = 0, len(next(iter(rows.values())))
        while done < count:
            chunk = int(self._order[self._taken]) // self._any.rows
            room = self._any.rows_in(chunk) - self._filled
            step = min(room, count - done)
            for name, buffer in self._pending.items():
                buffer[self._filled : self._filled + step] = rows[name][done : done + step]
            done, self._filled, self._taken = done + step, self._filled + step, self._taken + step
            if step == room:
                self._behind.do(self._write, chunk, self._pending, self._filled)
                self._pending, self._filled = self._buffers(), 0

    def _write(self, chunk: int, columns: Mapping[str, NDArray[Any]], count: int) -> None:
        for name, layout in self.columns.items():
            rows = columns[name][:count]
            write_chunk(self.path / name, layout, chunk, rows, flush_name=False)

    def absent(self, chunks: range) -> list[int]:
        """Which chunks lack a file; the bytes are not read."""
        return [
            chunk
            for chunk in chunks
            if not all(self.chunk_path(name, chunk).exists() for name in self.columns)
        ]

    def column(self, name: str) -> StoredArray:
        """A finished column, to read."""
        return StoredArray(StoreFolder(self.path / name), self.columns[name])

    def chunk_path(self, name: str, chunk: int) -> Path:
        """The file of one chunk."""
        return self.path / name / self.columns[name].chunk_name(chunk)


def _name(beside: Path, target: Path) -> None:
    try:
        os.link(beside, target)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links.
        beside.replace(target)
    beside.unlink(missing_ok=True)
