"""A store elsewhere: its manifest first, its metadata next, its chunks when they are wanted."""

from __future__ import annotations

import bisect
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ltd_pipe.errors import MissingError, StoreError, TransferError
from ltd_pipe.labels.format import parse_metadata
from ltd_pipe.labels.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE,
    parse_manifest,
)
from ltd_pipe.sharing.crew import run_tasks
from ltd_pipe.sharing.patience import Patience
from ltd_pipe.sharing.source import open_source
from ltd_pipe.sharing.transfer import Wanted, fetch_file, fetch_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from ltd_pipe.labels.format import ArrayLayout, StoreAttributes
    from ltd_pipe.sharing.crew import Pulse, Task
    from ltd_pipe.sharing.location import Location

__all__ = ["RemoteStore", "Survey"]

# Beside what the format implies: README.md, LICENSE, and what else a publisher may add.
_MAX_EXTRA_FILES = 16
_MAX_EXTRA_BYTES = 4 * 2**20
_MAX_NAME = 200
_ARMOUR = b"-----BEGIN SSH SIGNATURE-----"


@dataclass(frozen=True)
class Survey:
    """What is known of a store before its chunks come.

    Attributes
    ----------
    attributes : StoreAttributes
    layouts : dict of str to ArrayLayout
    hashes : dict of str to str
        The manifest.
    small : dict of str to bytes
        All files but the chunks, with the manifest and, if there is one, its signature.
    """

    attributes: StoreAttributes
    layouts: dict[str, ArrayLayout]
    hashes: dict[str, str]
    small: dict[str, bytes]

    @property
    def num_chunks(self) -> int:
        """Of each array."""
        return self.layouts["labels"].num_chunks

    def chunks(self, names: Iterable[str], numbers: Iterable[int]) -> Iterator[Wanted]:
        """Chunk files of some arrays, those of the same samples one after the other."""
        layouts = [self.layouts[name] for name in names]
        for number in numbers:
            for layout in layouts:
                name = layout.chunk_name(number)
                yield Wanted(name, layout.file_bytes, self.hashes[name])


class RemoteStore:
    """A store of which only the manifest was fetched; it ends with `with`.

    Parameters
    ----------
    location : Location
    patience : Patience
    jobs : int
        Files that are fetched at the same time.

    Raises
    ------
    LocationError
        When it is another store than the location says.
    MissingError, TransferError
        When there is no manifest, or it cannot be fetched.

    Attributes
    ----------
    identity : str
        SHA-256 of the manifest.
    """

    def __init__(self, location: Location, patience: Patience | None = None, jobs: int = 8) -> None:
        self.location, self._jobs = location, jobs
        self._patience = patience or Patience()
        self._source = open_source(location, self._patience, jobs)
        try:
            self._manifest = self._small(MANIFEST, MAX_MANIFEST_BYTES)
            self.identity = hashlib.sha256(self._manifest).hexdigest()
            location.require(self.identity)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._source.close()

    def survey(self) -> Survey:
        """Fetch everything but the chunks, and refuse a store that is not one.

        Raises
        ------
        StoreError
            When the metadata are not those of the format, or the manifest lists other files
            than they imply: found before its lines are parsed when there are too many.
        """
        small: dict[str, bytes] = {}

        def read(name: str, limit: int) -> bytes:
            small[name] = self._listed(name, limit)
            return small[name]

        attributes, layouts = parse_metadata(str(self.location), read)
        self._require_count(layouts)
        hashes = parse_manifest(self._manifest, self.location)
        extra = _require_names(hashes, set(small), layouts, self.location)
        for name in extra:
            small[name] = self._listed(name, _MAX_EXTRA_BYTES)
        small[MANIFEST] = self._manifest
        if (signature := self._signature()) is not None:
            small[SIGNATURE] = signature
        return Survey(attributes, layouts, hashes, small)

    def fetch(
        self, wanted: Iterable[Wanted], folder: Path, progress: Callable[[int], None]
    ) -> None:
        """Fetch files into a folder, several at a time; see `transfer.fetch_file`.

        Parameters
        ----------
        wanted : iterable of Wanted
        folder : Path
        progress : callable
            Called from several threads with the size of each file that is there.
        """

        def task(one: Wanted) -> Task:
            def run(pulse: Pulse) -> None:
                fetch_file(self._source, one, folder, pulse, self._patience)
                progress(one.size)

            return run

        run_tasks(map(task, wanted), self._jobs, self.location)

    def _small(self, name: str, limit: int) -> bytes:
        found: list[bytes] = []

        def task(pulse: Pulse) -> None:
            found.append(fetch_small(self._source, name, limit, pulse, self._patience))

        run_tasks([task], 1, self.location)
        return found[0]

    def _listed(self, name: str, limit: int) -> bytes:
        # Looked for in the text, since a hostile manifest is not yet worth parsing.
        pattern = rb"^([0-9a-f]{64})  " + re.escape(name.encode()) + rb"$"
        line = re.search(pattern, self._manifest, re.MULTILINE)
        if line is None:
            raise StoreError(self.location, f"{name} is not listed in {MANIFEST}")
        for _ in range(2):
            content = self._small(name, limit)
            found = hashlib.sha256(content).hexdigest()
            if found == line[1].decode():
                return content
        raise StoreError(
            f"{self.location}/{name}",
            "is not the file that its manifest lists",
            expected=f"SHA-256 {line[1].decode()[:12]}…",
            found=f"{found[:12]}…",
            remedy="It is damaged, or the store was replaced meanwhile. Nothing was published.",
        )

    def _signature(self) -> bytes | None:
        # None also where an object store refuses access to what is not there, or a web server
        # has a page for it: whoever could put nonsense there could leave it out as well.
        try:
            content = self._small(SIGNATURE, MAX_SIGNATURE_BYTES)
        except (MissingError, StoreError):
            return None
        except TransferError as error:
            if "access is refused" in error.what:
                return None
            raise
        return content if content.startswith(_ARMOUR) else None

    def _require_count(self, layouts: dict[str, ArrayLayout]) -> None:
        implied = 1 + sum(1 + layout.num_chunks for layout in layouts.values())
        listed = self._manifest.count(b"\n")
        if not implied <= listed <= implied + _MAX_EXTRA_FILES:
            raise StoreError(
                self.location,
                f"number of files in {MANIFEST}",
                expected=f"{implied} as the metadata imply, and at most {_MAX_EXTRA_FILES} others",
                found=listed,
            )


def _require_names(
    hashes: dict[str, str],
    metadata: set[str],
    layouts: dict[str, ArrayLayout],
    where: Location,
) -> list[str]:
    # The names that the format does not imply; all that it implies must be there.
    implied = set(metadata)
    for layout in layouts.values():
        for chunk in range(layout.num_chunks):
            name = layout.chunk_name(chunk)
            if name not in hashes:
                raise StoreError(where, f"{name} is not listed in {MANIFEST}")
            implied.add(name)
    extra = sorted(hashes.keys() - implied)
    if len(extra) > _MAX_EXTRA_FILES:
        raise StoreError(where, f"{MANIFEST} lists {len(extra)} files that are no part of a store")
    ordered = list(hashes)
    for name in extra:
        parts = name.split("/")
        folders = ["/".join(parts[:length]) for length in range(1, len(parts))]
        place = bisect.bisect_left(ordered, f"{name}/")
        below = place < len(ordered) and ordered[place].startswith(f"{name}/")
        if below or any(folder in hashes for folder in folders):
            raise StoreError(where, f"{name[:_MAX_NAME]} is listed as a file and as a folder")
        if len(name) > _MAX_NAME:
            raise StoreError(where, f"{name[:_MAX_NAME]}… is too long a name")
    return extra
