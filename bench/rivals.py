"""Other ways of keeping the same columns: each writes them durably, and gathers rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h5py
import lmdb
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

if TYPE_CHECKING:
    from pathlib import Path

    from answers import Answers

__all__ = [
    "READ",
    "RIVALS",
    "WRITTEN",
    "Gather",
    "Rival",
    "files_of",
    "gather_flat",
    "gather_zarr",
    "remove",
]

Gather = Callable[[NDArray[np.int64]], list[NDArray[Any]]]

# As our own chunks.
_BLOCK_BYTES, _BLOCK_ROWS = 8 * 2**20, 8192
# What a random access to a shard reads at least.
_INNER_BYTES = 2**16


def gather_flat(answers: Answers) -> Gather:
    """From one flat np.memmap per column: what nothing with checks can beat."""
    columns = [answers.column(name) for name in answers.rows]
    return lambda index: [column[index] for column in columns]


def gather_zarr(path: Path, answers: Answers) -> Gather:
    """From a Zarr group, by zarr-python itself; ours is one."""
    group = zarr.open_group(path, mode="r")
    arrays: list[Any] = [group[name] for name in answers.rows]
    return lambda index: [np.asarray(array.oindex[index]) for array in arrays]


def files_of(path: Path) -> list[Path]:
    """A file, or all files in a folder."""
    return [found for found in path.rglob("*") if found.is_file()] if path.is_dir() else [path]


def remove(path: Path) -> None:
    """Remove a file or a folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    # As durable as our own writer, which asks the disk after each file.
    for name in files_of(path):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rows_of(size: int, answers: Answers) -> int:
    # Rows whose widest column takes so many bytes.
    labels = answers.size
    widest = labels.row_bytes if labels.top_k is None else labels.row_bytes // 2
    return min(size // widest, _BLOCK_ROWS, labels.num_samples)


class Rival:
    """A format; `name` and `settings` are what the tables say of it."""

    name: str
    settings: str

    def write(self, path: Path, answers: Answers) -> None:
        """Write all columns to a path that does not exist, and wait for the disk."""
        raise NotImplementedError

    def gather(self, path: Path, answers: Answers) -> Gather:
        """Open what was written, to gather rows of labels."""
        raise NotImplementedError


class ZarrChunks(Rival):
    """zarr-python with our own layout."""

    name, settings = "zarr-python", "chunks of about 8 MiB, crc32c, not compressed"

    def write(self, path: Path, answers: Answers) -> None:
        """See `Rival`."""
        group = zarr.create_group(path)
        rows, grid = self._grid(answers)
        for name in answers.names:
            column = answers.column(name)
            array: Any = group.create_array(
                name,
                shape=column.shape,
                dtype=column.dtype,
                compressors=[Crc32cCodec()],
                **{key: (length, *column.shape[1:]) for key, length in grid.items()},
            )
            # Whole chunks: parts of one would be read again first.
            for block in answers.blocks(rows):
                array[block] = column[block]
        _flush(path)

    def _grid(self, answers: Answers) -> tuple[int, dict[str, int]]:
        rows = _rows_of(_BLOCK_BYTES, answers)
        return rows, {"chunks": rows}

    def gather(self, path: Path, answers: Answers) -> Gather:
        """See `Rival`."""
        return gather_zarr(path, answers)


class ZarrShards(ZarrChunks):
    """zarr-python's answer to random access: small chunks within a file."""

    name = "zarr's oindex, sharded"
    settings = "inner chunks of about 64 KiB in shards of about 8 MiB, crc32c"

    def _grid(self, answers: Answers) -> tuple[int, dict[str, int]]:
        inner = _rows_of(_INNER_BYTES, answers)
        rows = _rows_of(_BLOCK_BYTES, answers) // inner * inner
        return rows, {"chunks": inner, "shards": rows}


class Hdf5Contiguous(Rival):
    """HDF5 with rows side by side."""

    name, settings = "HDF5, contiguous", "h5py, index sorted first, as h5py wants it"
    _options: dict[str, Any] = {}  # noqa: RUF012  (a constant)

    def write(self, path: Path, answers: Answers) -> None:
        """See `Rival`."""
        with h5py.File(path, "w") as file:
            for name in answers.names:
                column = answers.column(name)
                array = file.create_dataset(name, column.shape, column.dtype, **self._options)
                for block in answers.blocks():
                    array[block] = column[block]
        _flush(path)

    def gather(self, path: Path, answers: Answers) -> Gather:
        """See `Rival`."""
        file = h5py.File(path, "r")
        arrays = [file[name] for name in answers.rows]

        def gather(index: NDArray[np.int64]) -> list[NDArray[Any]]:
            order = np.argsort(index)
            back = np.argsort(order)
            return [array[index[order]][back] for array in arrays]

        return gather


class Hdf5Chunked(Hdf5Contiguous):
    """HDF5 as it is used most: with chunks that h5py chooses."""

    name, settings = "HDF5, chunked", "h5py, chunks as h5py chooses them, index sorted first"
    _options = {"chunks": True}  # noqa: RUF012


class Lmdb(Rival):
    """LMDB, one record per sample."""

    name, settings = "LMDB", "one value per sample, key of 8 bytes, appended in order"

    def write(self, path: Path, answers: Answers) -> None:
        """See `Rival`."""
        columns = [answers.column(name) for name in answers.names]
        # A page of 4 KiB may hold a single record.
        room = max(2 * answers.size.sample_bytes, 8192) * answers.size.num_samples + 2**28
        with lmdb.open(str(path), map_size=room, subdir=False, lock=False, sync=False) as base:
            for block in answers.blocks():
                parts = [
                    column[block].view(np.uint8).reshape(block.stop - block.start, -1)
                    for column in columns
                ]
                with base.begin(write=True) as transaction:
                    for number, record in enumerate(np.hstack(parts), block.start):
                        key = number.to_bytes(8, "big")
                        transaction.put(key, record.data, append=True)
            base.sync(True)

    def gather(self, path: Path, answers: Answers) -> Gather:
        """See `Rival`."""
        base = lmdb.open(str(path), readonly=True, subdir=False, lock=False, readahead=False)
        columns = [answers.column(name) for name in answers.rows]
        kinds = [(column.dtype, column.shape[1]) for column in columns]

        def gather(index: NDArray[np.int64]) -> list[NDArray[Any]]:
            found = [np.empty((len(index), width), dtype) for dtype, width in kinds]
            with base.begin(buffers=True) as transaction:
                for row, number in enumerate(index.tolist()):
                    record = transaction.get(number.to_bytes(8, "big"))
                    start = 0
                    for part, (dtype, width) in zip(found, kinds, strict=True):
                        part[row] = np.frombuffer(record, dtype, width, start)
                        start += width * dtype.itemsize
            return found

        return gather


# Ours is read through zarr as it is, and shards are there to be read from.
READ: tuple[Rival, ...] = (ZarrShards(), Hdf5Contiguous(), Hdf5Chunked(), Lmdb())
WRITTEN: tuple[Rival, ...] = (ZarrChunks(), Hdf5Contiguous(), Hdf5Chunked(), Lmdb())
RIVALS: tuple[Rival, ...] = (WRITTEN[0], *READ)
