"""Files of equal length, mapped into one stretch of memory, so that all rows are one array.

A store's rows lie in many files. One mapping of each would cost a step in Python per file and
batch; side by side in one reserved range of addresses they are one strided array, and NumPy
gathers rows from all of them in one call. Of 400,000 × 1,000 float16 in 96 files, 512 random
rows take 0.12 ms, from one flat `np.memmap` 0.10 ms (two cores, page cache warm, NumPy 2.4).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Mapping"]

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


class Mapping:
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
