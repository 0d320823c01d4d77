"""One file from its source: hashed while it comes, continued when it was interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ltd_pipe.errors import StoreError, TransferError
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import writing
from ltd_pipe.sharing.patience import PROGRESS_BYTES, InterruptedTransferError

if TYPE_CHECKING:
    from pathlib import Path

    from ltd_pipe.sharing.crew import Pulse
    from ltd_pipe.sharing.patience import Patience
    from ltd_pipe.sharing.source import Source

__all__ = ["Wanted", "fetch_file", "fetch_small"]

_HASH_BYTES = 2**20


@dataclass(frozen=True)
class Wanted:
    """A file of which size and SHA-256 are known before the first byte comes."""

    name: str
    size: int
    sha256: str


class _Retries:
    # Counts the attempts that brought nothing, and waits between them.

    def __init__(self, patience: Patience, pulse: Pulse, where: str) -> None:
        self._patience, self._pulse, self._where = patience, pulse, where
        self._failures = 0

    def failed(self, error: InterruptedTransferError, gained: int) -> None:
        """Wait before the next attempt, or raise TransferError when there were enough."""
        longest, asked = self._patience.longest_pause_s, error.retry_after_s
        self._failures = 1 if gained >= PROGRESS_BYTES else self._failures + 1
        if asked is not None and asked > longest:
            raise TransferError(
                self._where,
                f"{error.reason}, and the server asks to come back in {asked:.0f} s",
                remedy="Run it again then: what is whole is not fetched again.",
            ) from error
        if self._failures >= self._patience.attempts:
            raise TransferError(
                self._where,
                f"{error.reason}, in each of {self._failures} attempts",
                remedy="Run it again later: what is whole is not fetched again.",
            ) from error
        self._pulse.rest(self._patience.pause(self._failures, asked))


def fetch_small(source: Source, name: str, limit: int, pulse: Pulse, patience: Patience) -> bytes:
    """All bytes of a file of unknown size, in memory.

    Parameters
    ----------
    source : Source
    name : str
        Relative to the store.
    limit : int
        A file of more bytes is refused before they are kept.
    pulse : Pulse
    patience : Patience

    Raises
    ------
    StoreError
        When it is too large.
    MissingError, TransferError
        When it cannot be had.
    """
    where = f"{source.location}/{name}"
    retries = _Retries(patience, pulse, where)
    while True:
        content = bytearray()
        try:
            with source.open(name, pulse, offset=0, end=None, limit=limit) as body:
                for block in body.blocks:
                    content += block
                    if len(content) > limit:
                        raise StoreError(where, "is too large", expected=f"at most {limit} bytes")
            return bytes(content)
        except InterruptedTransferError as error:
            retries.failed(error, 0)


def fetch_file(
    source: Source, wanted: Wanted, folder: Path, pulse: Pulse, patience: Patience
) -> int:
    """Fetch one file to its place in a folder, unless it is there already.

    Parameters
    ----------
    source : Source
    wanted : Wanted
    folder : Path
        What is whole there is kept, by its hash; what was begun is continued.
    pulse : Pulse
    patience : Patience

    Returns
    -------
    int
        Bytes that came from the source.

    Raises
    ------
    StoreError
        When the source has other bytes than the manifest says.
    MissingError, TransferError
        When the file cannot be had.
    """
    target = folder / wanted.name
    if _is_whole(target, wanted):
        return 0
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        return _fetch(source, wanted, target, pulse, patience)


def _fetch(source: Source, wanted: Wanted, target: Path, pulse: Pulse, patience: Patience) -> int:
    where = f"{source.location}/{wanted.name}"
    with _Part(target.with_name(f".{target.name}.part"), wanted.size) as part:
        retries, mended = _Retries(patience, pulse, where), False
        while True:
            before = part.received
            try:
                _receive(source, wanted, part, pulse)
            except InterruptedTransferError as error:
                retries.failed(error, part.received - before)
                if error.from_start:
                    part.restart()
                continue
            if part.sha256 == wanted.sha256:
                part.publish(target)
                return part.received
            if mended:
                raise _damaged(where, wanted, part.sha256)
            # What was continued may have been another version, and a proxy's copy be damaged.
            mended = True
            part.restart()


def _is_whole(target: Path, wanted: Wanted) -> bool:
    with contextlib.suppress(OSError):
        if target.is_symlink() or target.stat().st_size != wanted.size:
            target.unlink()
        elif sha256_file(target) == wanted.sha256:
            return True
        else:
            target.unlink()
    return False


def _receive(source: Source, wanted: Wanted, part: _Part, pulse: Pulse) -> None:
    if part.length == wanted.size:
        return
    size = wanted.size
    with source.open(wanted.name, pulse, offset=part.length, end=size, limit=size) as body:
        if body.offset != part.length:
            part.restart()
        for block in body.blocks:
            if part.length + len(block) > size:
                raise StoreError(
                    f"{source.location}/{wanted.name}",
                    "is damaged at its source",
                    expected=f"{size} bytes",
                    found="more",
                    remedy="Nothing was published. Ask the publisher.",
                )
            part.append(block)
    if part.length < size:
        raise InterruptedTransferError(f"ended after {part.length} of {size} bytes")


def _damaged(where: str, wanted: Wanted, found: str) -> StoreError:
    return StoreError(
        where,
        "is not the file that its manifest lists",
        expected=f"SHA-256 {wanted.sha256[:12]}…",
        found=f"{found[:12]}…",
        remedy="It is damaged, or the store was replaced meanwhile. Nothing was published.",
    )


class _Part:
    # The beginning of a file, on disk, with the hash of what is there.

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        if path.is_symlink():
            path.unlink()
        self._handle = path.open("a+b")
        self._digest, self.length, self.received = hashlib.sha256(), 0, 0
        self._handle.seek(0)
        while block := self._handle.read(_HASH_BYTES):
            self._digest.update(block)
            self.length += len(block)
        if self.length > size:
            self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def append(self, block: bytes) -> None:
        self._handle.write(block)
        # At once, so that what came is there when this process is killed.
        self._handle.flush()
        self._digest.update(block)
        self.length += len(block)
        self.received += len(block)

    def restart(self) -> None:
        self._handle.seek(0)
        self._handle.truncate()
        self._digest, self.length = hashlib.sha256(), 0

    def publish(self, target: Path) -> None:
        # Or a power cut after the store got its name could leave zeros in it.
        os.fsync(self._handle.fileno())
        os.replace(self._path, target)
