"""How a store is laid out on disk: its files as zarr writes them, and its name by one rename."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import zarr
from numpy.typing import NDArray
from zarr.core.array_spec import ArrayConfig
from zarr.core.group import ConsolidatedMetadata, GroupMetadata
from zarr.storage import LocalStore, StorePath

from ltd_pipe.errors import WriteError
from ltd_pipe.labels.card import CARD, format_card
from ltd_pipe.labels.format import ATTRIBUTE, StoreAttributes
from ltd_pipe.labels.manifest import MANIFEST, format_manifest
from ltd_pipe.labels.softness import measure
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import flush_tree, replace_tree, write_text, writing

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer
    from zarr.core.metadata.v3 import ArrayV3Metadata

    from ltd_pipe.labels.layout import ArrayLayout

    # From the number of a chunk to its rows, or to a finished chunk file.
    ChunkSource: TypeAlias = Callable[[int], Path | NDArray[Any]]


class DurableStore(LocalStore):
    """A folder that zarr writes to: what is set is on disk, and its SHA-256 in `hashes`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hashes = dict[str, str]()

    async def set(self, key: str, value: Buffer) -> None:
        """Write one file."""
        if key.endswith("zarr.json"):
            # A text file ends with a line feed.
            value += value.from_bytes(b"\n")
        await super().set(key, value)
        await asyncio.to_thread(self._finish, key, value.as_buffer_like())

    def _finish(self, key: str, content: Any) -> None:
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

    def write_chunk(self, folder: str, layout: ArrayLayout, chunk: int, rows: NDArray[Any]) -> None:
        """Write one chunk file of the array in `folder` so that it is either whole or absent."""
        first, config = chunk * layout.rows, ArrayConfig.from_dict({"write_empty_chunks": True})
        array = zarr.AsyncArray(layout.metadata(), StorePath(self, folder), config)
        with writing(self.root / folder):
            zarr.Array(array)[first : first + len(rows)] = rows


def require_replaceable(target: Path, *, replace: bool) -> None:
    """Refuse to publish over what is there, unless it is a store and may be replaced.

    A folder of something else must never be lost to a slip of the keyboard.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not replace:
        raise WriteError(
            target, "exists already", remedy="Pass --force to replace it, or another --out."
        )
    if target.is_symlink() or not all((target / it).is_file() for it in ("zarr.json", MANIFEST)):
        raise WriteError(
            target,
            "is no soft-label store, and --force replaces stores only",
            remedy="Choose another --out.",
        )


def write_store(
    target: Path,
    attributes: Callable[[], StoreAttributes],
    sources: Mapping[ArrayLayout, ChunkSource],
    *,
    replace: bool = False,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> str:
    """Lay out all files of a store in a folder beside it, and give that its name by one rename.

    Parameters
    ----------
    target : Path
        The store.
    attributes : callable
        Gives the StoreAttributes; called when all chunks are there.
    sources : dict of ArrayLayout to callable
        Gives the content of chunk number i: its rows, or a finished chunk file. Asked in order,
        unless there are several threads.
    replace : bool
        Replace a store that is there.
    threads : int
        Chunks in the making at a time, each on a thread of its own. More than there are cores
        pay, since much of the time goes to waiting for the disk.
    progress : callable, optional
        Called with the number of samples just laid out.
    check : callable, optional
        Called with the folder before it gets its name; raises where it should not.

    Returns
    -------
    str
        The store's identity.
    """
    require_replaceable(target, replace=replace)
    beside = target.with_name(f".{target.name}.part")
    # What a killed process has left.
    shutil.rmtree(beside, ignore_errors=True)
    try:
        store = DurableStore(beside)
        _write_chunks(store, sources, threads, progress)
        known = attributes()
        arrays = {array.name: array.metadata() for array in sources}
        consolidated = ConsolidatedMetadata(metadata={**arrays})
        group = GroupMetadata({ATTRIBUTE: known.to_json()}, consolidated_metadata=consolidated)
        with writing(beside):
            # One by one: after an error, zarr lets the others of a call go on in the background.
            nodes: dict[str, GroupMetadata | ArrayV3Metadata] = {"": group, **arrays}
            for name, node in nodes.items():
                deque(zarr.create_hierarchy(store=store, nodes={name: node}), maxlen=0)
        card = format_card(known, [*arrays], measure(beside, [*sources]))
        write_text(beside / CARD, card)
        hashes = store.hashes | {CARD: sha256_file(beside / CARD)}
        write_text(beside / MANIFEST, format_manifest(hashes))
        flush_tree(beside)
        identity = sha256_file(beside / MANIFEST)
        if check is not None:
            check(beside)
        require_replaceable(target, replace=replace)  # it may be there since
        replace_tree(beside, target)
    finally:
        # Gone already when all went well; made again in minutes when not.
        shutil.rmtree(beside, ignore_errors=True)
    return identity


def _write_chunks(
    store: DurableStore,
    sources: Mapping[ArrayLayout, ChunkSource],
    threads: int,
    progress: Callable[[int], None] | None,
) -> None:
    layout = next(iter(sources))

    def write(chunk: int) -> int:
        for array, source in sources.items():
            content = source(chunk)
            if isinstance(content, Path):
                with writing(store.root / array.chunk_name(chunk)):
                    store.link(content, array.chunk_name(chunk))
            else:
                store.write_chunk(array.name, array, chunk, content)
        return layout.rows_in(chunk)

    with ThreadPoolExecutor(threads, thread_name_prefix="build") as pool:
        try:
            for rows in (map if threads == 1 else pool.map)(write, range(layout.num_chunks)):
                if progress is not None:
                    progress(rows)
        finally:
            # After an error no further chunk begins.
            pool.shutdown(cancel_futures=True)
