"""Reading a soft-label store: checked when opened, gathered at the speed of memory."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from ltd_pipe.errors import JoinError, ParamsError, StateError, StoreError
from ltd_pipe.labels.format import parse_metadata, row_sum_tolerance, to_float16, to_float32
from ltd_pipe.labels.join import (
    ImagesLike,
    ManifestLike,
    find_rows,
    remedy,
    require_classes,
    require_same_data,
    require_same_images,
    require_shape,
)
from ltd_pipe.labels.manifest import FileHashes, StoreFolder
from ltd_pipe.labels.softmax import expand, soften
from ltd_pipe.labels.softness import LabelSummary, Softness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ltd_pipe.labels.format import ArrayLayout, StoreAttributes


# --- Files of equal length, mapped into one stretch of memory, so that all rows are one array.
#
# A store's rows lie in many files. One mapping of each would cost a step in Python per file and
# batch; side by side in one reserved range of addresses they are one strided array, and NumPy
# gathers rows from all of them in one call. Of 400,000 × 1,000 float16 in 96 files, 512 random
# rows take 0.12 ms, from one flat `np.memmap` 0.10 ms (two cores, page cache warm, NumPy 2.4).


# Of <sys/mman.h>, the same on every Linux; Python's mmap module lacks them.
_MAP_FIXED, _MAP_NORESERVE, _MAP_FAILED = 0x10, 0x4000, 2**64 - 1
_PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class MappedArray:
    """Reserved addresses for `count` files; nothing is readable until it is mapped.

    Parameters
    ----------
    count : int
        Number of files.
    file_bytes : int
        Size of each.
    where : Path
        The store, for errors.

    Raises
    ------
    StoreError
        When the system has no room for so many or so large files.
    """

    def __init__(self, count: int, file_bytes: int, where: Path) -> None:
        self._where, self._bytes = where, file_bytes
        # Mappings begin at whole pages.
        self.stride = -(-file_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        size = count * self.stride
        self._start = self._call(
            None, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1
        )
        addresses = (ctypes.c_char * size).from_address(self._start)
        # Arrays keep these alive, not the Mapping: the addresses go with the last array.
        weakref.finalize(addresses, _libc.munmap, self._start, size)
        self._memory = np.frombuffer(memoryview(addresses), np.uint8)

    def map(self, number: int, path: Path) -> None:
        """Map one file read-only into its place."""
        # A pipe in its place would otherwise wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            # To touch memory behind the end of a file ends the process.
            if os.fstat(descriptor).st_size != self._bytes:
                raise StoreError(
                    self._where,
                    f"{path.name} changed while it was opened",
                    expected=f"{self._bytes} bytes",
                    found=os.fstat(descriptor).st_size,
                )
            place = self._start + number * self.stride
            flags = mmap.MAP_SHARED | _MAP_FIXED
            self._call(place, self._bytes, mmap.PROT_READ, flags, descriptor)
        finally:
            os.close(descriptor)

    def rows(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """All files as one array of shape (count, *shape), each beginning with `shape` numbers.

        Rows of files that were not mapped must not be touched: that ends the process.
        """
        steps = np.cumprod((dtype.itemsize, *shape[:0:-1]))[::-1].tolist()
        count = len(self._memory) // self.stride
        array: NDArray[Any] = np.ndarray(
            (count, *shape), dtype, self._memory, strides=(self.stride, *steps)
        )
        array.flags.writeable = False
        return array

    def content(self, number: int) -> NDArray[np.uint8]:
        """The bytes of one mapped file."""
        start = number * self.stride
        content: NDArray[np.uint8] = np.ndarray((self._bytes,), np.uint8, self._memory, start)
        content.flags.writeable = False
        return content

    def _call(self, place: int | None, size: int, protection: int, flags: int, file: int) -> int:
        address = _libc.mmap(place, size, protection, flags, file, 0)
        if address is None or address == _MAP_FAILED:
            code = ctypes.get_errno()
            raise StoreError(
                self._where,
                f"cannot be mapped into memory ({os.strerror(code)})",
                remedy="Raise vm.max_map_count, the number of mapped files of a process "
                "(sysctl vm.max_map_count)."
                if code == errno.ENOMEM
                else "",
            )
        return int(address)


# --- That soft labels are distributions, and the softmax of the logits beside them.


# At a time: float32 copies stay in the cache, and a chunk of any size costs no more memory.
_BLOCK_ELEMENTS = 2**19


def require_distributions(
    where: object, attributes: StoreAttributes, rows: Mapping[str, NDArray[Any]], first: int
) -> None:
    """Refuse rows that the format excludes, of which each number by itself was found good.

    Parameters
    ----------
    where : object
        The store, for the error.
    attributes : StoreAttributes
    rows : dict of str to ndarray of shape (n, ...)
        The same samples of each array of the store.
    first : int
        Number of the first sample, for the error.

    Raises
    ------
    StoreError
        Naming the first sample that is wrong.
    """
    widest = rows["soft_labels" if attributes.top_k is None else "topk_probs"]
    step = max(_BLOCK_ELEMENTS // int(np.prod(widest.shape[1:])), 1)
    for at in range(0, len(widest), step):
        block = {name: column[at : at + step] for name, column in rows.items()}
        if attributes.top_k is not None:
            _require_ranks(where, attributes, block, first + at)
            continue
        soft = to_float32(block["soft_labels"])
        _require_sums(where, attributes, soft, first + at)
        if "logits" in block:
            _require_softmax(where, attributes, soft, block["logits"], first + at)


def require_padding(where: object, name: str, padding: NDArray[Any], fill: NDArray[Any]) -> None:
    """Refuse a last chunk that hides something behind its rows.

    Parameters
    ----------
    where : object
        The store, for the error.
    name : str
        Of the chunk file.
    padding : ndarray of shape (n, ...)
        What follows the last sample.
    fill : ndarray of shape (1,)
        The fill value, in the padding's type.
    """
    same = np.isnan(padding) if fill.dtype.kind == "f" else padding == fill
    if not same.all():
        raise StoreError(
            where, f"{name}: padding", expected=f"the fill value {fill[0]}", found="others"
        )


def _sample(wrong: NDArray[np.bool_], first: int) -> tuple[str, tuple[int, ...]]:
    # The first wrong row: how the user knows it, and its place in the block.
    place = tuple(int(axis[0]) for axis in np.nonzero(wrong))
    view = f", view {place[1]}" if len(place) > 1 else ""
    return f"sample {first + place[0]}{view}", place


def _require_sums(
    where: object, attributes: StoreAttributes, soft: NDArray[np.float32], first: int
) -> None:
    sums = soft.sum(axis=-1, dtype=np.float64)
    tolerance = row_sum_tolerance(attributes.num_classes)
    wrong = np.asarray(abs(sums - 1.0) > tolerance)
    if wrong.any():
        sample, place = _sample(wrong, first)
        raise StoreError(
            where,
            f"{sample}: the soft label is no distribution",
            expected=f"sum 1 ± {tolerance:.2g}",
            found=f"{sums[place]:.6f}",
        )


def _require_ranks(
    where: object, attributes: StoreAttributes, block: Mapping[str, NDArray[Any]], first: int
) -> None:
    indices, probs = block["topk_indices"], to_float32(block["topk_probs"])
    sums = probs.sum(axis=-1, dtype=np.float64)
    tolerance = row_sum_tolerance(attributes.num_classes)
    # With all K classes stored there is no rest.
    least = 1.0 - tolerance if probs.shape[-1] == attributes.num_classes else 0.0
    wrong: NDArray[np.bool_] = np.asarray((sums > 1.0 + tolerance) | (sums < least))
    if wrong.any():
        sample, place = _sample(wrong, first)
        raise StoreError(
            where,
            f"{sample}: the soft label is no distribution",
            expected=f"sum at most 1 + {tolerance:.2g}",
            found=f"{sums[place]:.6f}",
        )
    ordered = np.sort(indices, axis=-1)
    faults = {
        "probabilities rise with rank": np.diff(probs, axis=-1) > 0,
        "a class twice": ordered[..., 1:] == ordered[..., :-1],
    }
    for what, fault in faults.items():
        if fault.any():
            sample, _ = _sample(np.asarray(fault.any(axis=-1)), first)
            raise StoreError(where, f"{sample}: {what}")


def _require_softmax(
    where: object,
    attributes: StoreAttributes,
    soft: NDArray[np.float32],
    logits: NDArray[np.float16],
    first: int,
) -> None:
    expected = soften(logits, attributes.temperature)
    # One step of float16: half of one is its rounding, the rest is for another machine's exp.
    outside = abs(soft - expected) > expected * 2.0**-10 + 2.0**-24
    wrong = np.asarray(outside.any(axis=-1))
    if wrong.any():
        sample, place = _sample(wrong, first)
        worst = int(np.argmax(abs(soft[place] - expected[place])))
        raise StoreError(
            where,
            f"{sample}: soft_labels are not softmax(logits / temperature)",
            expected=f"{expected[place][worst]:.6f} for class {worst}",
            found=f"{soft[place][worst]:.6f}",
        )


# --- Which row of a store belongs to which sample: found by the image's hash, then remembered.


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


# --- Part 3 of 8: which chunks of a store a process fills.


@dataclass(frozen=True)
class Part:
    """One of `count` shares of the chunks, equal but for one chunk.

    Attributes
    ----------
    number : int
        From 1 to `count`.
    count : int
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `3/8`.

        Raises
        ------
        ParamsError
            When it is no such thing.
        """
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
    """Wait until other processes have written all chunks.

    Parameters
    ----------
    absent : callable
        Gives the chunks that are not there yet.
    stall_s : float
        Seconds without a new chunk after which the others are taken for dead.

    Raises
    ------
    StateError
        When they are.
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


# --- One array of a store, in memory-mapped chunks that are checked when first touched.


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
        self._mapping = MappedArray(layout.num_chunks, layout.file_bytes, folder.path)
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


# --- Reading a soft-label store: checked when opened, gathered at the speed of memory.


_SPARSE = ("topk_indices", "topk_probs")


class SoftLabels:
    """An opened soft-label store; make one with `SoftLabels.open`.

    Attributes
    ----------
    path : Path
        As it was given.
    identity : str
        SHA-256 of the store's manifest.
    attributes : StoreAttributes
        What the store says about itself.
    labels : ndarray of shape (N,), dtype int32
        Ground truth, -1 where unknown.
    sample_hash : ndarray of shape (N,), dtype uint64
        Which image each row belongs to.
    arrays : dict of str to StoredArray
        By name: `soft_labels`, and `logits` when the store has them, or `topk_indices` and
        `topk_probs`; `labels` and `sample_hash`.
    hashes : FileHashes
        The manifest.
    """

    def __init__(self, folder: StoreFolder) -> None:
        self.path = folder.path
        self.hashes = FileHashes(folder)
        self.identity = self.hashes.identity
        self.attributes, layouts = parse_metadata(folder.path, self.hashes.read)
        self.arrays = {
            name: StoredArray(folder, layout, self.hashes) for name, layout in layouts.items()
        }
        for layout in layouts.values():
            self.hashes.require_listed(map(layout.chunk_name, range(layout.num_chunks)))
        self._require_memory(layouts["labels"], layouts["sample_hash"])
        self.labels: NDArray[np.int32] = self.arrays["labels"].read()
        self.sample_hash: NDArray[np.uint64] = self.arrays["sample_hash"].read()

    def _require_memory(self, *layouts: ArrayLayout) -> None:
        # Holes in files cost their maker nothing, and N is only bounded by what it costs us.
        needed = sum(layout.num_chunks * layout.payload_bytes for layout in layouts)
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > there // 2:
            raise StoreError(
                self.path,
                f"labels and hashes of {self.num_samples:,} samples do not fit in memory",
                expected=f"at most {there // 2**21:,} MiB",
                found=f"{needed // 2**20:,} MiB",
            )

    @classmethod
    def open(cls, path: Path) -> SoftLabels:
        """Open a store.

        Its metadata must be that of the format and have the hashes that its manifest lists,
        and all chunk files must be there in their size; the hashes and checksums of the chunks
        are checked when they are first touched. `ltd_pipe.labels.verify.verify_store` checks
        everything.

        Raises
        ------
        MissingError
            When there is nothing of that name.
        StoreError
            When it is no store, damaged, or of a version that we do not read.
        """
        return cls(StoreFolder(path))

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory maps do not travel: another process opens the store itself.
        return SoftLabels.open, (self.path.absolute(),)

    @property
    def num_samples(self) -> int:
        """N."""
        return self.attributes.num_samples

    @property
    def num_classes(self) -> int:
        """K."""
        return self.attributes.num_classes

    @property
    def num_views(self) -> int:
        """V: how many views of each image were labelled."""
        return self.attributes.views.count

    @property
    def top_k(self) -> int | None:
        """K of a store that has only each row's k largest probabilities; None: all of them."""
        return self.attributes.top_k.k if self.attributes.top_k else None

    @property
    def has_logits(self) -> bool:
        """Whether the teacher's logits are stored too."""
        return "logits" in self.arrays

    def gather(
        self,
        index: NDArray[np.integer[Any]],
        out: NDArray[np.float16] | None = None,
        *,
        view: int | None = None,
    ) -> NDArray[np.float16]:
        """Soft labels of some samples, as they are stored.

        Parameters
        ----------
        index : ndarray of shape (B,), any integers
            Rows of the store, in any order, repeats allowed. That they belong to the images at
            hand is what `join` checks.
        out : ndarray of shape (B, K) or (B, V, K), dtype float16, optional
            Written to and returned; may be the memory of a pinned tensor.
        view : int, optional
            Of which view; needed to get (B, K) of a store of several.

        Returns
        -------
        ndarray of shape (B, K), dtype float16
            (B, V, K) from a store of several views when none is named. Rows sum to one within
            float16 rounding: renormalise in float32. Of a top-k store, the rows with the rest
            spread; `gather_topk` is exact and smaller.

        Raises
        ------
        StoreError
            When a row or view does not exist, or is in a chunk that is damaged.
        """
        if self.top_k is None:
            return self.arrays["soft_labels"].gather(index, out, view)
        rows = to_float16(expand(*self.gather_topk(index, view=view), self.num_classes))
        if out is None:
            return rows
        if out.shape != rows.shape or out.dtype != rows.dtype:
            raise ValueError(f"out: expected {rows.shape} float16, found {out.shape} {out.dtype}")
        out[...] = rows
        return out

    def gather_topk(
        self, index: NDArray[np.integer[Any]], *, view: int | None = None
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.float16]]:
        """The largest probabilities of some samples and their classes; otherwise as `gather`.

        Returns
        -------
        tuple of ndarray of shape (B, k), dtype uint16 or uint32, and of float16
            (B, V, k) of several views. See `ltd_pipe.labels.softmax.spread`.

        Raises
        ------
        StoreError
            Also when the store has all probabilities.
        """
        if self.top_k is None:
            raise StoreError(self.path, "is no top-k store", remedy="Use gather.")
        indices, probs = (self.arrays[name].gather(index, None, view) for name in _SPARSE)
        return indices, probs

    def gather_logits(
        self,
        index: NDArray[np.integer[Any]],
        out: NDArray[np.float16] | None = None,
        *,
        view: int | None = None,
    ) -> NDArray[np.float16]:
        """The teacher's logits of some samples, as `gather`; for another temperature.

        Raises
        ------
        StoreError
            Also when the store has no logits.
        """
        self.require_logits()
        return self.arrays["logits"].gather(index, out, view)

    def require_logits(self) -> None:
        """Refuse a store that does not have them."""
        if not self.has_logits:
            raise StoreError(
                self.path,
                "has no logits",
                remedy="Label with label.logits true, one teacher and no top-k.",
            )

    def require_view(self, view: int) -> None:
        """Refuse a view that the store does not have."""
        self.arrays["labels"].require_view(view)

    def summary(self) -> LabelSummary:
        """Entropy, confidence and disagreement of all soft labels, chunk by chunk."""
        counts = Softness(self.num_classes)
        layout = self.arrays["labels"].layout
        for chunk in range(layout.num_chunks):
            counts.add(self.arrays["labels"].chunk(chunk), *self._stored(chunk))
        return counts.summary()

    def _stored(self, chunk: int) -> list[NDArray[Any]]:
        # The soft labels of one chunk: dense, or classes and probabilities.
        names = ("soft_labels",) if self.top_k is None else _SPARSE
        return [self.arrays[name].chunk(chunk) for name in names]

    def join(self, rows: NDArray[np.int64], sample_hash: NDArray[np.uint64], data: str) -> None:
        """Refuse to go on unless each row belongs to the image at hand.

        Parameters
        ----------
        rows : ndarray of shape (B,), dtype int64
            Rows that were or will be gathered.
        sample_hash : ndarray of shape (B,), dtype uint64
            Of the images, read from the data themselves.
        data : str
            How the user knows the data, such as the beton's path.

        Raises
        ------
        JoinError
            Naming the first sample that is another image.
        """
        rows = self.arrays["sample_hash"].require_rows(rows)
        if rows.shape != sample_hash.shape:
            raise ValueError(f"{len(rows)} rows and {len(sample_hash)} sample hashes")
        expected = self.sample_hash[rows]
        require_same_images(self.path, rows, expected, sample_hash, data)

    def require_data(
        self, manifest: ManifestLike, data: str, images: ImagesLike | None = None
    ) -> None:
        """Refuse a data set other than the labelled one in the same order, before the work.

        Parameters
        ----------
        manifest : Manifest
            Of the images.
        data : str
            How the user knows the data.
        images : Beton or FolderStream, optional
            With them the first sample that differs is named.

        Raises
        ------
        JoinError
            When classes, number of samples, or fingerprint differ.
        """
        rows = (self.sample_hash, self.labels)
        require_same_data(self.path, self.attributes, manifest, data, rows, images)

    def require_shape(self, shape: Sequence[int], data: str, *, any_size: bool = False) -> None:
        """Refuse images of another shape than the teacher saw; see `join.require_shape`."""
        require_shape(self.path, self.attributes, shape, data, any_size=any_size)

    def require_classes(self, class_names: Sequence[str], data: str) -> None:
        """Refuse data whose classes are not the columns; needed beside `rows_of`."""
        require_classes(self.path, self.attributes, class_names, data)

    def rows_of(
        self,
        sample_hash: NDArray[np.uint64],
        labels: NDArray[np.int32] | None = None,
        data: str = "the data",
    ) -> NDArray[np.int64]:
        """Find the rows of images that come in another order, or are only some of them.

        Parameters
        ----------
        sample_hash : ndarray of shape (n,), dtype uint64
            Of the images.
        labels : ndarray of shape (n,), dtype int32, optional
            Their classes, which must then be the store's.
        data : str
            How the user knows the data.

        Returns
        -------
        ndarray of shape (n,), dtype int64
            Of equal images any one's row.

        Raises
        ------
        JoinError
            Naming the first sample that has no row, or one of another class.
        """
        stored = (self.sample_hash, self.labels)
        return find_rows(self.path, stored, (sample_hash, labels), data)
