"""Rows of a store in the making: durable chunk by chunk, so that they survive an interruption."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.array_spec import ArrayConfig
from zarr.storage import LocalStore, StorePath

from ltd_pipe.errors import MissingError, ParamsError, StateError, StoreError
from ltd_pipe.labels.manifest import StoreFolder
from ltd_pipe.labels.reader import StoredArray
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import require_free, write_json, writing
from ltd_pipe.text import differences

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

    from ltd_pipe.labels.layout import ArrayLayout


# --- Files as zarr writes them, which also survive a power cut.


class DurableStore(LocalStore):
    """A folder that zarr writes to: what is set is on disk, and its SHA-256 in `hashes`."""

    def __init__(self, root: Path, *, hashed: bool = True) -> None:
        super().__init__(root)
        self._hashed, self.hashes = hashed, dict[str, str]()

    async def set(self, key: str, value: Buffer) -> None:
        """Write one file."""
        if key.endswith("zarr.json"):
            # A text file ends with a line feed.
            value += value.from_bytes(b"\n")
        await super().set(key, value)
        await asyncio.to_thread(self._finish, key, value.as_buffer_like())

    def _finish(self, key: str, content: Any) -> None:
        if self._hashed:
            self.hashes[key] = hashlib.sha256(content).hexdigest()
        with (self.root / key).open("rb") as handle:
            os.fsync(handle.fileno())

    def link(self, source: Path, key: str) -> None:
        """Give a finished file a second name, or a copy on another file system."""
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        with target.open("rb") as handle:
            os.fsync(handle.fileno())
        self.hashes[key] = sha256_file(target)

    def array(self, folder: str, layout: ArrayLayout) -> zarr.Array[Any]:
        """The array whose chunk files lie in `folder`; each of them is written."""
        config = ArrayConfig.from_dict({"write_empty_chunks": True})
        return zarr.Array(zarr.AsyncArray(layout.metadata(), StorePath(self, folder), config))

    def write_chunk(self, folder: str, layout: ArrayLayout, chunk: int, rows: NDArray[Any]) -> None:
        """Write one chunk file so that it is either whole or absent."""
        first = chunk * layout.rows
        with writing(self.root / folder):
            self.array(folder, layout)[first : first + len(rows)] = rows


# --- Part 3 of 8: which chunks of a store a process fills.


@dataclass(frozen=True)
class Part:
    """One of `count` shares of the chunks, equal but for one chunk; `number` is 1 to `count`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `3/8`; anything else is a ParamsError."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ParamsError("--part", "expected one such as 3/8, the third of eight", found=text)
        return cls(int(match[1]), int(match[2]))

    def split(self, rank: int, ranks: int) -> Part:
        """The share of one of several processes that fill this part together."""
        return Part((self.number - 1) * ranks + rank + 1, self.count * ranks)

    def chunks(self, num_chunks: int) -> range:
        """The chunks of this part; none where there are more parts than chunks."""
        first, last = (num_chunks * at // self.count for at in (self.number - 1, self.number))
        return range(first, last)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Part(1, 1)
# A chunk has at most 8,192 images.
_STALL_S = 3600.0
_LOOK_S = 0.25


def wait_for_chunks(absent: Callable[[], list[int]], stall_s: float = _STALL_S) -> None:
    """Wait until other processes have written all chunks that `absent` gives.

    After `stall_s` seconds without a new one the others are taken for dead: a StateError.
    """
    missing, since = absent(), time.monotonic()
    while missing:
        time.sleep(_LOOK_S)
        found = absent()
        if len(found) < len(missing):
            since = time.monotonic()
        elif time.monotonic() - since > stall_s:
            raise StateError(
                "label",
                f"no other process has written a chunk for {stall_s:.0f} s",
                found=f"{len(found)} missing, the first is {found[0]}",
                remedy="Run it again: what is done is kept.",
            )
        missing = found


# --- Work that goes on behind its caller: in order, and never much of it waiting.


class Background:
    """Calls functions on threads of its own; as a context, it waits for all of them.

    What waits or runs is bounded, and so is the memory that it holds. After a call that fails
    no later one begins, and its error is raised where the caller next looks in.

    Parameters
    ----------
    threads : int
        With one of them, calls run in the order in which they were given.
    waiting : int
        Calls that may be unfinished; the next one waits for the oldest.
    """

    def __init__(self, *, threads: int, waiting: int) -> None:
        self._threads, self._waiting = threads, waiting
        self._pool: ThreadPoolExecutor | None = None
        self._unfinished: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # The block's own error is the one to tell.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.finish()

    def do(self, function: Callable[..., object], *arguments: Any) -> None:
        """Take one call, unless an earlier one has failed, whose error is raised."""
        while len(self._unfinished) >= self._waiting:
            self._unfinished.popleft().result()
        if self._error is not None:
            raise self._error
        if self._pool is None:
            # Not before there is work: a process that only looks has no threads.
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="background")
        self._unfinished.append(self._pool.submit(self._run, function, arguments))

    def _run(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self._error is None:
            try:
                function(*arguments)
            except BaseException as error:
                self._error = error

    def finish(self) -> None:
        """Wait for all calls, end the threads, and raise the error of a call that failed."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._unfinished.clear()
        if self._error is not None:
            raise self._error


# --- Rows become durable chunk by chunk and survive an interruption.


_KEY = "draft.json"
# Chunks that are being written while the next one fills up.
_BEHIND = 2


class StagedColumns:
    """Columns of equal length in a folder of their own, whose rows are taken in order.

    Chunks are written behind the caller. Which ones are there is told by the files alone: any
    number of processes may fill different chunks of one folder, and know nothing of each other.
    What an interrupted run has left is continued; `key` is what decides the content, in plain
    values, and a folder of another key is refused.
    """

    def __init__(
        self,
        path: Path,
        key: Mapping[str, Any],
        columns: Mapping[str, ArrayLayout],
        chunks: range,
    ) -> None:
        self.path, self.columns = path, dict(columns)
        self._layout = columns["labels"]
        self._claim(json.loads(json.dumps(key)))
        self._files = DurableStore(path, hashed=False)
        missing = [chunk for chunk in chunks if not self._is_whole(chunk)]
        size = sum(layout.file_bytes for layout in columns.values())
        require_free(path, len(missing) * size)
        rows = [
            chunk * self._layout.rows + np.arange(self._layout.rows_in(chunk)) for chunk in missing
        ]
        self._order = np.concatenate([np.arange(0), *rows])
        self._taken = self._filled = 0
        self._buffers = self._new_buffers()
        self._behind = Background(threads=_BEHIND, waiting=_BEHIND)

    def _claim(self, key: Mapping[str, Any]) -> None:
        if not (self.path / _KEY).exists():
            # Linked, not renamed: of several processes that begin at once, one decides.
            beside = self.path / f".{_KEY}.{os.getpid()}-{os.urandom(4).hex()}"
            write_json(beside, key)
            with writing(self.path / _KEY):
                try:
                    os.link(beside, self.path / _KEY)
                except FileExistsError:
                    pass
                except OSError:
                    # A file system without hard links.
                    beside.replace(self.path / _KEY)
                beside.unlink(missing_ok=True)
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
            for name in self.columns:
                self.column(name, partial=True).chunk(chunk)
        except (StoreError, MissingError):
            return False
        return True

    def _new_buffers(self) -> dict[str, NDArray[Any]]:
        return {name: np.empty(it.chunk_shape, it.dtype) for name, it in self.columns.items()}

    @property
    def rows_left(self) -> NDArray[np.int64]:
        """The rows to append, in this order: those of chunks that are not whole on disk."""
        return self._order[self._taken :]

    def flush(self) -> None:
        """Wait until all whole chunks are on disk, or raise the WriteError of one that is not."""
        self._behind.finish()

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Take the next rows, equally many of each column; whole chunks go to disk."""
        done, count = 0, len(rows["labels"])
        while done < count:
            chunk = int(self._order[self._taken]) // self._layout.rows
            room = self._layout.rows_in(chunk) - self._filled
            step = min(room, count - done)
            for name, buffer in self._buffers.items():
                buffer[self._filled : self._filled + step] = rows[name][done : done + step]
            done, self._filled, self._taken = done + step, self._filled + step, self._taken + step
            if step == room:
                self._behind.do(self._write, chunk, self._buffers, self._filled)
                self._buffers, self._filled = self._new_buffers(), 0

    def _write(self, chunk: int, buffers: Mapping[str, NDArray[Any]], count: int) -> None:
        for name, layout in self.columns.items():
            folder = f"{name}/{layout.name}"
            self._files.write_chunk(folder, layout, chunk, buffers[name][:count])

    def absent(self, chunks: range) -> list[int]:
        """Which chunks lack a file; the bytes are not read."""
        return [
            chunk
            for chunk in chunks
            if not all(self.chunk_path(name, chunk).exists() for name in self.columns)
        ]

    def column(self, name: str, *, partial: bool = False) -> StoredArray:
        """A column to read, whole or as far as it is there."""
        return StoredArray(StoreFolder(self.path / name), self.columns[name], partial=partial)

    def chunk_path(self, name: str, chunk: int) -> Path:
        """The file of one chunk."""
        return self.path / name / self.columns[name].chunk_name(chunk)
