"""Reading a soft-label store: checked when opened, gathered at the speed of memory."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.format import parse_metadata, to_float16
from ltd_pipe.labels.join import Joinable, require_rows
from ltd_pipe.labels.layout import SPARSE
from ltd_pipe.labels.manifest import FileHashes, StoreFolder, damaged
from ltd_pipe.labels.softmax import (
    expand,
    require_class_numbers,
    require_different_classes,
    require_numbers,
    require_sums_above_zero,
)
from ltd_pipe.labels.softness import LabelSummary, Softness
from ltd_pipe.threads import usable_cores

if TYPE_CHECKING:
    from ltd_pipe.labels.layout import ArrayLayout

# A store's rows lie in many files. One mapping of each would cost a step in Python per file and
# batch; side by side in one reserved range of addresses they are one strided array, and NumPy
# gathers rows from all of them in one call. Of 400,000 × 1,000 float16 in 96 files, 512 random
# rows take 0.12 ms, from one flat `np.memmap` 0.10 ms (two cores, page cache warm, NumPy 2.4).

# Of <sys/mman.h>, the same on every Linux; Python's mmap module lacks them.
_MAP_FIXED, _MAP_NORESERVE, _MAP_FAILED = 0x10, 0x4000, 2**64 - 1
_PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class MappedArray:
    """Files of equal size as one array; nothing is readable until it is mapped.

    Attributes
    ----------
    rows : ndarray of shape (count, *shape)
        Of each file the first numbers, as many as `shape` has, read-only. Rows of files that were
        not mapped must not be touched: that ends the process.
    """

    def __init__(
        self, count: int, file_bytes: int, shape: tuple[int, ...], dtype: np.dtype[Any], where: Path
    ) -> None:
        self._where, self._bytes = where, file_bytes
        # Mappings begin at whole pages.
        self._stride = -(-file_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        size = count * self._stride
        self._start = self._call(
            None, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1
        )
        addresses = (ctypes.c_char * size).from_address(self._start)
        # Arrays keep these alive, not the Mapping: the addresses go with the last array.
        weakref.finalize(addresses, _libc.munmap, self._start, size)
        self._memory = np.frombuffer(memoryview(addresses), np.uint8)
        self._memory.flags.writeable = False
        steps = np.cumprod((dtype.itemsize, *shape[:0:-1]))[::-1].tolist()
        self.rows: NDArray[Any] = np.ndarray(
            (count, *shape), dtype, self._memory, strides=(self._stride, *steps)
        )

    def map(self, number: int, file: IO[bytes]) -> NDArray[np.uint8]:
        """Map one file, of the right size, read-only into its place; its bytes."""
        first = number * self._stride
        flags = mmap.MAP_SHARED | _MAP_FIXED
        self._call(self._start + first, self._bytes, mmap.PROT_READ, flags, file.fileno())
        return self._memory[first : first + self._bytes]

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


# --- One array of a store, in memory-mapped chunks that are checked when first touched.


_MAX_THREADS = 8


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
        self._mapping = MappedArray(
            layout.num_chunks, layout.file_bytes, layout.chunk_shape, layout.dtype, folder.path
        )
        # Shape (chunks, rows, *row_shape). A row may be touched once its chunk is checked.
        self._rows = self._mapping.rows
        self._checked = np.zeros(layout.num_chunks, bool)

    def chunk(self, chunk: int) -> NDArray[Any]:
        """Rows of one chunk, read-only and without padding; they are checked the first time."""
        if not self._checked[chunk]:
            name = self.layout.chunk_name(chunk)
            with self.folder.open(name, self.layout.file_bytes) as file:
                content = self._mapping.map(chunk, file)
            self._sound(chunk, content)
            self._checked[chunk] = True
        rows: NDArray[Any] = self._rows[chunk, : self.layout.rows_in(chunk)]
        return rows

    def padded_chunk(self, chunk: int) -> NDArray[Any]:
        """Rows of one chunk and its padding, of shape (rows, *row_shape), mapped and checked anew.

        The memory goes with them.
        """
        content = self.folder.map(self.layout.chunk_name(chunk), self.layout.file_bytes)
        return self._sound(chunk, content)

    def _sound(self, chunk: int, content: NDArray[np.uint8]) -> NDArray[Any]:
        """Refuse a chunk file of other bytes, or with a number that no store has; its rows."""
        layout, where, name = self.layout, self.folder.path, self.layout.chunk_name(chunk)
        payload, stored = content[: layout.payload_bytes], content[layout.payload_bytes :]
        if google_crc32c.value(payload) != int.from_bytes(stored.tobytes(), "little"):
            raise damaged(where, name, "is damaged: its CRC-32C is wrong")
        if self._hashes is not None:
            self._hashes.verify_content(name, content)
        whole: NDArray[Any] = payload.view(layout.dtype).reshape(layout.chunk_shape)
        rows, first = whole[: layout.rows_in(chunk)], chunk * layout.rows
        if layout.dtype == np.float16:
            require_numbers(where, layout.name, rows, first)
            # A top-k row has a rest, unless k is K.
            if layout.name != "logits" and layout.row_shape[-1] == layout.num_classes:
                require_sums_above_zero(where, rows, layout.num_classes, first)
        elif layout.name in ("labels", "topk_indices"):
            require_class_numbers(where, layout.name, rows, layout.num_classes, first)
            if layout.name == "topk_indices":
                require_different_classes(where, rows, first)
        return whole

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
        count = min(usable_cores(), _MAX_THREADS, len(chunks))
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
        index = require_rows(self.folder.path, index, self.layout.num_samples)
        chunks, rows = np.divmod(index, self.layout.rows)
        new = chunks[~self._checked[chunks]]
        if len(new):
            self._check(np.unique(new).tolist())
        place: tuple[Any, ...] = (chunks, rows)
        if view is not None:
            self.require_view(view)
            place = (chunks, rows, view) if self.layout.num_views > 1 else place
        return _deliver(self._rows[place], out)

    def require_view(self, view: int) -> None:
        """Refuse a view that the store does not have."""
        if not 0 <= view < self.layout.num_views:
            expected = f"0 to {self.layout.num_views - 1}"
            raise StoreError(self.folder.path, "no such view", expected=expected, found=view)


def _deliver(found: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    if out is None:
        return found
    # Not left to NumPy, which would spread one row over all, or convert.
    if out.shape != found.shape or out.dtype != found.dtype:
        raise ValueError(
            f"out: expected {found.shape} {found.dtype}, found {out.shape} {out.dtype}"
        )
    out[...] = found
    return out


def require_memory(where: object, num_samples: int, size: int) -> None:
    """Refuse, by a StoreError, labels and hashes of more bytes than half of the memory."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > there // 2:
        raise StoreError(
            where,
            f"labels and hashes of {num_samples:,} samples do not fit in memory",
            expected=f"at most {there // 2**21:,} MiB",
            found=f"{size // 2**20:,} MiB",
        )


# --- Reading a soft-label store: checked when opened, gathered at the speed of memory.


class SoftLabels(Joinable):
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
    folder : StoreFolder
    hashes : FileHashes
        The manifest.
    """

    def __init__(self, folder: StoreFolder, *, partial: bool = False) -> None:
        # Partial: some chunks are not there; touching one of those is an error.
        self.folder, self.path = folder, folder.path
        self.hashes = FileHashes(folder)
        self.identity = self.hashes.identity
        self.attributes, layouts = parse_metadata(folder.path, self.hashes.read)
        self.arrays = {
            name: StoredArray(folder, layout, self.hashes, partial=partial)
            for name, layout in layouts.items()
        }
        self.hashes.require_listed(self.chunk_names())
        # Holes in files cost their maker nothing, and N is only bounded by what it costs us.
        held = (layouts[name] for name in ("labels", "sample_hash"))
        require_memory(
            self.path, self.num_samples, sum(each.num_chunks * each.payload_bytes for each in held)
        )
        self.labels: NDArray[np.int32] = self.arrays["labels"].read()
        self.sample_hash: NDArray[np.uint64] = self.arrays["sample_hash"].read()

    @classmethod
    def open(cls, path: Path) -> SoftLabels:
        """Open a store.

        Its metadata must be that of the format and have the hashes that its manifest lists,
        and all chunk files must be there in their size; the hashes and checksums of the chunks
        are checked when they are first touched. `ltd_pipe.labels.verify.verify_store` checks
        everything.
        """
        return cls(StoreFolder(path))

    def chunk_names(self) -> Iterator[str]:
        """All chunk files."""
        for array in self.arrays.values():
            yield from map(array.layout.chunk_name, range(array.layout.num_chunks))

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
        return _deliver(rows, out)

    def gather_topk(
        self, index: NDArray[np.integer[Any]], *, view: int | None = None
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.float16]]:
        """The largest probabilities of some samples and their classes; otherwise as `gather`.

        Returns
        -------
        tuple of ndarray of shape (B, k), dtype uint16 or uint32, and of float16
            (B, V, k) of several views. See `ltd_pipe.labels.softmax.spread`.
        """
        if self.top_k is None:
            raise StoreError(self.path, "is no top-k store", remedy="Use gather.")
        indices, probs = (self.arrays[name].gather(index, None, view) for name in SPARSE)
        return indices, probs

    def gather_logits(
        self,
        index: NDArray[np.integer[Any]],
        out: NDArray[np.float16] | None = None,
        *,
        view: int | None = None,
    ) -> NDArray[np.float16]:
        """The teacher's logits of some samples, as `gather`; for another temperature."""
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
        softness = Softness(self.num_classes)
        names = ("labels", *(("soft_labels",) if self.top_k is None else SPARSE))
        for chunk in range(self.arrays["labels"].layout.num_chunks):
            softness.add(*(self.arrays[name].chunk(chunk) for name in names))
        return softness.summary()
