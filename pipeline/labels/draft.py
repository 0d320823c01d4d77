"""A store in the making: rows become durable chunk by chunk and survive an interruption."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.errors import StateError, StoreError
from pipeline.labels.arrays import write_chunk
from pipeline.labels.folder import StoreFolder
from pipeline.labels.stored import StoredArray, map_chunk
from pipeline.publish import require_free, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.labels.arrays import ArrayLayout

__all__ = ["Draft"]

_KEY = "draft.json"


class Draft:
    """Columns of equal length, written in order, in a folder of their own.

    Parameters
    ----------
    path : Path
        The folder; one that an interrupted run has left is continued.
    key : dict
        Plain values that decide the content; a folder of another key is refused.
    columns : dict of str to ArrayLayout
        All with the same rows per chunk.

    Raises
    ------
    StateError
        When the folder holds another draft.
    WriteError
        When the disk cannot hold all of it.

    Attributes
    ----------
    rows_done : int
        Rows in whole chunks on disk: where to go on.
    """

    def __init__(
        self, path: Path, key: Mapping[str, Any], columns: Mapping[str, ArrayLayout]
    ) -> None:
        self.path, self.columns = path, dict(columns)
        self._any = next(iter(columns.values()))
        if (path / _KEY).exists():
            self._require_key(key)
        else:
            write_json(path / _KEY, key)
        self._chunks_done = self._count_whole_chunks()
        missing = self._any.num_chunks - self._chunks_done
        require_free(path, missing * sum(layout.file_bytes for layout in columns.values()))
        self._pending = {name: layout.empty_chunk() for name, layout in columns.items()}
        self._filled = 0

    def _require_key(self, key: Mapping[str, Any]) -> None:
        remedy = f"Remove the folder {self.path} to start again."
        try:
            found = json.loads((self.path / _KEY).read_text(encoding="utf-8"))
        except ValueError as error:
            raise StateError(self.path, f"{_KEY} is damaged", remedy=remedy) from error
        if found == json.loads(json.dumps(key)):
            return
        different = [name for name in key if found.get(name) != key[name]]
        raise StateError(
            self.path,
            f"holds the draft of other labels (differs in {', '.join(different) or 'version'})",
            remedy=remedy,
        )

    def _count_whole_chunks(self) -> int:
        # Checked by their checksums, since a power cut can leave blocks of zeros.
        for chunk in range(self._any.num_chunks):
            if not all(self._is_whole(column, chunk) for column in self.columns):
                return chunk
        return self._any.num_chunks

    def _is_whole(self, column: str, chunk: int) -> bool:
        try:
            map_chunk(StoreFolder(self.path / column), self.columns[column], chunk)
        except (StoreError, FileNotFoundError):
            return False
        return True

    @property
    def rows_done(self) -> int:
        """Rows in whole chunks on disk: where to go on."""
        return min(self._chunks_done * self._any.rows, self._any.num_samples)

    @property
    def rows_taken(self) -> int:
        """Rows on disk and in memory."""
        return self.rows_done + self._filled

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Take the next rows, equally many of each column; whole chunks go to disk."""
        taken, count = 0, len(next(iter(rows.values())))
        while taken < count:
            room = self._any.rows_in(self._chunks_done) - self._filled
            step = min(room, count - taken)
            for name, buffer in self._pending.items():
                buffer[self._filled : self._filled + step] = rows[name][taken : taken + step]
            taken, self._filled = taken + step, self._filled + step
            if step == room:
                self._write_pending()

    def _write_pending(self) -> None:
        for name, layout in self.columns.items():
            rows = self._pending[name][: self._filled]
            write_chunk(self.path / name, layout, self._chunks_done, rows)
        self._chunks_done, self._filled = self._chunks_done + 1, 0

    def column(self, name: str) -> StoredArray:
        """A finished column, to read."""
        return StoredArray(StoreFolder(self.path / name), self.columns[name])

    def chunk_path(self, name: str, chunk: int) -> Path:
        """The file of one chunk."""
        return self.path / name / self.columns[name].chunk_name(chunk)
