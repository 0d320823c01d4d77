"""MANIFEST.sha256: every file of a store with its hash, as `sha256sum` writes it."""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING, Any

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from pipeline.labels.folder import StoreFolder

__all__ = [
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "MAX_SIGNATURE_BYTES",
    "SIGNATURE",
    "FileHashes",
    "format_manifest",
    "parse_manifest",
    "read_manifest",
    "read_signature",
]

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
    """The signature file as it is written; `pipeline.sharing.signature` reads and verifies it.

    Raises
    ------
    StoreError
        When it is missing, too large, or no regular file.
    """
    return folder.read(SIGNATURE, MAX_SIGNATURE_BYTES)


def parse_manifest(text: bytes, where: object) -> dict[str, str]:
    """Name to SHA-256 of each line of a manifest.

    Parameters
    ----------
    text : bytes
        Of a size that the caller has bounded.
    where : object
        The store, for the error.

    Raises
    ------
    StoreError
        When a line is not as `sha256sum` writes it, or a name is more than letters, digits and
        `._-` between slashes, is not sorted, or occurs twice.
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
        self._folder.require_at_most(name, _MAX_FILE_BYTES)
        with self._folder.open(name) as handle:
            self._require_hash(name, hashlib.file_digest(handle, "sha256").hexdigest())

    def verify_content(self, name: str, content: NDArray[Any]) -> None:
        """Refuse bytes that are not those that were hashed."""
        self._require_hash(name, hashlib.sha256(content.data).hexdigest())

    def _require_hash(self, name: str, found: str) -> None:
        if found != self[name]:
            raise StoreError(
                self._folder.path,
                f"{name} is damaged",
                expected=f"SHA-256 {self[name][:12]}…",
                found=f"{found[:12]}…",
                remedy="Fetch or make the store again.",
            )
