"""What is done of an evaluation, on disk: a file for each attack, a line for each batch.

A process may die at any byte. A line counts when it is whole, which its checksum tells; what
comes after one that is not is computed again. So nothing has to wait for the disk.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

from pipeline.publish import writing

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.provenance import StateRecord

__all__ = ["Ledger"]


class Ledger:
    """Records of batches, in the order in which they were computed.

    Parameters
    ----------
    folder : Path or None
        Named by all that decides the records, so that an equal one continues. None: nothing is
        kept.
    record : StateRecord, optional
        Kept beside them.
    """

    def __init__(self, folder: Path | None, record: StateRecord | None = None) -> None:
        self.folder, self._record = folder, record

    def read(self, name: str) -> list[dict[str, Any]]:
        """The whole records of one attack; a torn end is cut off, so that more can follow."""
        if self.folder is None or not self._file(name).exists():
            return []
        content = self._file(name).read_bytes()
        records, sound = [], 0
        for line in content.splitlines(keepends=True):
            record = _parsed(line)
            if record is None:
                break
            records.append(record)
            sound += len(line)
        if sound < len(content):
            with self._file(name).open("r+b") as handle:
                handle.truncate(sound)
        return records

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Keep one more record.

        Raises
        ------
        WriteError
            When the disk refuses.
        """
        if self.folder is None:
            return
        text = json.dumps(record, allow_nan=False).encode()
        with writing(self._file(name)):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._record is not None:
                self._record.write()
            with self._file(name).open("ab") as handle:
                handle.write(b"%08x %s\n" % (zlib.crc32(text), text))

    def _file(self, name: str) -> Path:
        assert self.folder is not None  # noqa: S101  both callers have looked
        return self.folder / f"{name}.jsonl"


def _parsed(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record
