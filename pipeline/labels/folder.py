"""Files of a store, opened with suspicion: bounded, regular, and truly inside its folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import MissingError, StoreError, refuse_pointer

if TYPE_CHECKING:
    from io import BufferedReader

    from numpy.typing import NDArray

__all__ = ["StoreFolder"]


class StoreFolder:
    """A folder that may come from anyone.

    Parameters
    ----------
    path : Path
        The folder; it may itself be a symbolic link, what is in it may not.

    Raises
    ------
    MissingError
        When there is nothing of that name.
    StoreError
        When it is no folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise MissingError(
                path, "no such soft-label store", remedy="Make one with 'ltd-pipe label'."
            )
        if not path.is_dir():
            raise StoreError(path, "is a file, and a soft-label store is a folder")
        self.path = path
        self._root = os.path.realpath(path)

    def size(self, name: str) -> int:
        """Size in bytes of a regular file that is no link and lies behind none.

        Parameters
        ----------
        name : str
            Relative to the store, with `/`; derived from the format or checked by
            `pipeline.labels.manifest`.
        """
        full = f"{self._root}/{name}"
        try:
            status = os.lstat(full)
        except OSError as error:
            raise self._unreadable(name, error) from error
        if os.path.realpath(full) != full:
            raise StoreError(
                self.path,
                f"{name} is a symbolic link or lies behind one",
                remedy="Copy the store with its links resolved (cp -rL); for DVC, set "
                "cache.type to reflink,hardlink,copy.",
            )
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(self.path, f"{name} is not a regular file")
        return status.st_size

    def _unreadable(self, name: str, error: OSError) -> StoreError:
        return StoreError(
            self.path,
            f"{name} is missing or unreadable ({error.strerror})",
            remedy="Fetch or make the store again.",
        )

    def open(self, name: str) -> BufferedReader:
        """Open a regular file for reading, without ever waiting for one."""
        self.size(name)
        # It may be another file by now: a link would lead elsewhere, a pipe wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            handle = os.fdopen(os.open(self.locate(name), flags), "rb")
        except OSError as error:
            raise self._unreadable(name, error) from error
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            handle.close()
            raise StoreError(self.path, f"{name} is not a regular file")
        return handle

    def locate(self, name: str) -> Path:
        """The file of that name, wherever the process stands by now."""
        return Path(self._root, name)

    def require_size(self, name: str, expected: int) -> None:
        """Refuse a file that is missing or longer or shorter than `expected` bytes."""
        size = self.size(name)
        if size != expected:
            refuse_pointer(self.locate(name), self.path, StoreError, name)
            raise StoreError(
                self.path,
                f"{name} is damaged",
                expected=f"{expected} bytes",
                found=size,
                remedy="Fetch or make the store again.",
            )

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a small file; one of more than `limit` bytes is refused unread."""
        self.require_at_most(name, limit)
        with self.open(name) as handle:
            size = os.fstat(handle.fileno()).st_size
            content = handle.read(min(size, limit) + 1)
        if len(content) != size:
            raise StoreError(self.path, f"{name} changed while it was read")
        refuse_pointer(content, self.path, StoreError, name)
        return content

    def require_at_most(self, name: str, limit: int) -> None:
        """Refuse a file that is missing or longer than `limit` bytes."""
        size = self.size(name)
        if size > limit:
            raise StoreError(
                self.path, f"{name} is too large", expected=f"at most {limit} bytes", found=size
            )

    def map(self, name: str, size: int) -> NDArray[np.uint8]:
        """The bytes of a file of exactly `size` bytes, mapped read-only, not read."""
        self.require_size(name, size)
        with self.open(name) as handle:
            # To touch memory behind the end of a file ends the process.
            if os.fstat(handle.fileno()).st_size != size:
                raise StoreError(self.path, f"{name} changed while it was opened")
            mapped = np.memmap(handle, dtype=np.uint8, mode="r", shape=(size,))
        # A plain view: each slice of a memmap costs microseconds of bookkeeping.
        return mapped.view(np.ndarray)
