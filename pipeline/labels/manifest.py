"""MANIFEST.sha256: every file of a store with its hash, as `sha256sum` writes it."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import MissingError, StoreError, refuse_pointer

MANIFEST = "MANIFEST.sha256"
# Where `ssh-keygen -Y sign` puts the signature of the manifest; it may be there or not.
SIGNATURE = "MANIFEST.sha256.sig"
# One by an RSA key of 16,384 bits, the largest that ssh-keygen makes, has 6 KiB.
MAX_SIGNATURE_BYTES = 2**14
# A million chunk files; also what a hostile store can make us read.
MAX_MANIFEST_BYTES = 2**27
_MAX_LINE = 64 + 2 + 1024
# Of a chunk, or of a file that the format does not know, such as a README.
_MAX_FILE_BYTES = 2**28 + 4
# Names with other characters would be escaped by sha256sum, and could mislead a reader.
_LINE = re.compile(
    r"([0-9a-f]{64})  ([A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*)"
)


def format_manifest(hashes: Mapping[str, str]) -> str:
    """One line per file, sorted by the bytes of the name."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def read_manifest(folder: StoreFolder) -> bytes:
    """The manifest as it is written."""
    if not any((folder.path / name).exists() for name in (MANIFEST, "zarr.json")):
        raise StoreError(
            folder.path,
            f"is no soft-label store: it holds neither zarr.json nor {MANIFEST}",
            remedy="Name the store's own folder, such as data/labels.zarr.",
        )
    return folder.read(MANIFEST, MAX_MANIFEST_BYTES)


def read_signature(folder: StoreFolder) -> bytes:
    """The signature file as it is written; `ltd_pipe.labels.signature` reads and verifies it."""
    return folder.read(SIGNATURE, MAX_SIGNATURE_BYTES)


def parse_manifest(text: bytes, where: object) -> dict[str, str]:
    """Name to SHA-256 of each line of a manifest, of a size that the caller has bounded.

    Refused are lines that are not as `sha256sum` writes them, and names that are more than
    letters, digits and `._-` between slashes, not sorted, or there twice.
    """
    hashes: dict[str, str] = {}
    last = ""
    # A file that was cut short would lack its last line feed.
    if text and not text.endswith(b"\n"):
        raise StoreError(where, f"{MANIFEST} does not end with a line feed")
    if text.find(b"\r\n", 0, _MAX_LINE) >= 0:
        raise StoreError(
            where,
            f"{MANIFEST} has the line ends of Windows: git or a copy changed the store's files",
            remedy="Put '*.zarr/** -text' into .gitattributes, or copy byte for byte, and fetch it "
            "again.",
        )
    # One line at a time: all of them as Python's texts would be ten times the file.
    for number, raw in enumerate(io.BytesIO(text), 1):
        # No path is longer, and a pattern would take long to see that.
        line = raw[: min(len(raw) - 1, _MAX_LINE + 1)].decode("ascii", errors="replace")
        match = _LINE.fullmatch(line) if len(line) <= _MAX_LINE else None
        if match is None or match[2] <= last or match[2] in (MANIFEST, SIGNATURE):
            raise StoreError(
                where,
                f"{MANIFEST}: line {number}",
                expected="a hash, two spaces and a plain relative name, sorted",
                found=repr(line)[:120],
            )
        last = match[2]
        hashes[last] = match[1]
    return hashes


def damaged(
    where: object,
    name: str,
    how: str = "is damaged",
    *,
    expected: object = None,
    found: object = None,
) -> StoreError:
    """A file that is not as it was written: whoever wrote it has to give it again."""
    remedy = "Fetch or make the store again."
    return StoreError(where, f"{name} {how}", expected=expected, found=found, remedy=remedy)


class FileHashes(dict[str, str]):
    """Name to SHA-256 of every file of a store but the manifest itself and its signature.

    Attributes
    ----------
    identity : str
        SHA-256 of the manifest: what the store is, wherever it lies.
    """

    def __init__(self, folder: StoreFolder) -> None:
        text = read_manifest(folder)
        super().__init__(parse_manifest(text, folder.path))
        self.identity = hashlib.sha256(text).hexdigest()
        self._folder = folder

    def require_listed(self, names: Iterable[str]) -> None:
        """Refuse a store whose manifest does not cover a file that will be used."""
        for name in names:
            if name not in self:
                raise StoreError(self._folder.path, f"{name} is not listed in {MANIFEST}")

    def read(self, name: str, limit: int) -> bytes:
        """A small listed file's bytes, which are those that were hashed."""
        self.require_listed([name])
        content = self._folder.read(name, limit)
        self._require_hash(name, hashlib.sha256(content).hexdigest())
        return content

    def verify(self, name: str) -> None:
        """Refuse a file whose bytes are not those that were hashed."""
        with self._folder.open(name, _MAX_FILE_BYTES, exact=False) as handle:
            self._require_hash(name, hashlib.file_digest(handle, "sha256").hexdigest())

    def verify_content(self, name: str, content: NDArray[Any]) -> None:
        """Refuse bytes that are not those that were hashed."""
        self._require_hash(name, hashlib.sha256(content.data).hexdigest())

    def _require_hash(self, name: str, found: str) -> None:
        if found != self[name]:
            expected = f"SHA-256 {self[name][:12]}…"
            raise damaged(self._folder.path, name, expected=expected, found=f"{found[:12]}…")


# --- That a store's files are those of its manifest: none missing, none changed, none besides.


def verify_listing(folder: StoreFolder, hashes: FileHashes, chunks: AbstractSet[str]) -> None:
    """Refuse the first file that is not listed, missing or changed; of `chunks` only the names."""
    for found in _walk(folder, list(hashes)):
        if found == SIGNATURE:
            # It cannot be listed, being made of the list; who signed is another's question.
            read_signature(folder)
        elif found not in hashes and found != MANIFEST:
            raise StoreError(
                folder.path,
                f"{ascii(found)[1:-1][:200]} is not listed in {MANIFEST}",
                remedy="It is not the store's: remove it. File managers leave .DS_Store, ._NAME or "
                "Thumbs.db.",
            )
    for name in hashes:
        if name not in chunks:
            hashes.verify(name)


def _walk(folder: StoreFolder, listed: list[str]) -> Iterator[str]:
    # Names as they come from the disk; of a folder in which nothing is listed its own, so that
    # nobody can make us walk through millions of them. Links are not followed.
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(folder.locate(inside)) as entries:
                for entry in entries:
                    name = inside + entry.name
                    if entry.is_dir(follow_symlinks=False) and _holds_any(f"{name}/", listed):
                        waiting.append(f"{name}/")
                    else:
                        yield name
        except OSError as error:
            raise StoreError(
                folder.path, f"{inside or 'the folder'} cannot be listed ({error.strerror})"
            ) from error


def _holds_any(prefix: str, listed: list[str]) -> bool:
    # In a sorted list, what begins with a prefix comes at its place.
    place = bisect_left(listed, prefix)
    return place < len(listed) and listed[place].startswith(prefix)


# --- Files of a store, opened with suspicion: bounded, regular, and truly inside its folder.


class StoreFolder:
    """A folder that may come from anyone; it may be a symbolic link, what is in it may not.

    Names are relative to it, with `/`; they come from the format, or `parse_manifest` has
    checked them. What is missing, no regular file or too large is a StoreError.
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
        """Size in bytes of a regular file that is no link and lies behind none."""
        full = f"{self._root}/{name}"
        try:
            status = os.lstat(full)
        except OSError as error:
            how = f"is missing or unreadable ({error.strerror})"
            raise damaged(self.path, name, how) from error
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

    def locate(self, name: str) -> Path:
        """The file of that name, wherever the process stands by now."""
        return Path(self._root, name)

    def require_size(self, name: str, size: int, *, exact: bool = True) -> None:
        """Refuse a file that is missing, or has not `size` bytes; or more than these."""
        found = self.size(name)
        if found > size or (exact and found < size):
            refuse_pointer(self.locate(name), self.path, StoreError, name)
            if exact:
                raise damaged(self.path, name, expected=f"{size} bytes", found=found)
            expected = f"at most {size} bytes"
            raise StoreError(self.path, f"{name} is too large", expected=expected, found=found)

    def open(self, name: str, size: int, *, exact: bool = True) -> BufferedReader:
        """Open a file that `require_size` takes for reading, without ever waiting for one."""
        self.require_size(name, size, exact=exact)
        # It may be another file by now: a link would lead elsewhere, a pipe wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            handle = os.fdopen(os.open(self.locate(name), flags), "rb")
        except OSError as error:
            how = f"is missing or unreadable ({error.strerror})"
            raise damaged(self.path, name, how) from error
        status = os.fstat(handle.fileno())
        too_short = exact and status.st_size < size
        if not stat.S_ISREG(status.st_mode) or status.st_size > size or too_short:
            handle.close()
            raise StoreError(self.path, f"{name} changed while it was opened")
        return handle

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a small file; one of more than `limit` bytes is refused unread."""
        with self.open(name, limit, exact=False) as handle:
            size = os.fstat(handle.fileno()).st_size
            content = handle.read(size + 1)
        if len(content) != size:
            raise StoreError(self.path, f"{name} changed while it was read")
        refuse_pointer(content, self.path, StoreError, name)
        return content

    def map(self, name: str, size: int) -> NDArray[np.uint8]:
        """The bytes of a file of exactly `size` bytes, mapped read-only, not read."""
        with self.open(name, size) as handle:
            mapped = np.memmap(handle, dtype=np.uint8, mode="r", shape=(size,))
        # A plain view: each slice of a memmap costs microseconds of bookkeeping.
        return mapped.view(np.ndarray)
