"""Laying out a store's files in a folder that nobody reads yet."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.labels.arrays import chunk_bytes
from pipeline.labels.card import write_card
from pipeline.labels.format import ATTRIBUTE
from pipeline.labels.manifest import MANIFEST, format_manifest
from pipeline.provenance import sha256_file
from pipeline.publish import flush_tree, write_text, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.labels.arrays import ArrayLayout
    from pipeline.labels.format import StoreAttributes

__all__ = ["build_store"]

_COPIED_BYTES = 2**20


def build_store(
    folder: Path,
    attributes: Callable[[], StoreAttributes],
    sources: Mapping[ArrayLayout, Callable[[int], Path | NDArray[Any]]],
    progress: Callable[[int], None] | None = None,
    threads: int = 1,
) -> str:
    """Lay out all files of a store.

    Parameters
    ----------
    folder : Path
        An absent or empty folder.
    attributes : callable
        Gives the StoreAttributes; called when all chunks are there.
    sources : dict of ArrayLayout to callable
        Gives the content of chunk number i: its rows, or a finished chunk file. Asked in order,
        unless there are several threads.
    progress : callable, optional
        Called with the number of samples just laid out.
    threads : int
        Chunks in the making at a time, each on a thread of its own. More than there are cores
        pay, since much of the time goes to waiting for the disk.

    Returns
    -------
    str
        The store's identity.
    """
    layout, hashes = next(iter(sources)), dict[str, str]()
    chunks, build = range(layout.num_chunks), partial(_build_chunk, folder, sources)
    with ThreadPoolExecutor(threads, thread_name_prefix="build") as pool:
        try:
            for chunk, found in enumerate((map if threads == 1 else pool.map)(build, chunks)):
                hashes |= found
                if progress is not None:
                    progress(layout.rows_in(chunk))
        finally:
            # After an error no further chunk begins.
            pool.shutdown(cancel_futures=True)
    known, layouts = attributes(), list(sources)
    _write_metadata(folder, known, layouts)
    write_card(folder, known, layouts)
    identity = _write_manifest(folder, hashes)
    flush_tree(folder)
    return identity


def _build_chunk(
    folder: Path,
    sources: Mapping[ArrayLayout, Callable[[int], Path | NDArray[Any]]],
    chunk: int,
) -> dict[str, str]:
    # SHA-256 by file name.
    hashes = {}
    for array, source in sources.items():
        name, content = array.chunk_name(chunk), source(chunk)
        with writing(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                _link(content, folder / name)
                hashes[name] = sha256_file(folder / name)
            else:
                hashes[name] = _write(folder / name, *chunk_bytes(array, content))
    return hashes


def _write(target: Path, *parts: memoryview | bytes) -> str:
    # Under its own name at once: nobody looks into this folder before it is finished.
    digest = hashlib.sha256()
    with target.open("wb") as handle:
        for part in parts:
            handle.write(part)
            digest.update(part)
        handle.flush()
        os.fsync(handle.fileno())
    return digest.hexdigest()


def _write_metadata(
    folder: Path, attributes: StoreAttributes, layouts: Sequence[ArrayLayout]
) -> None:
    # Of the group, with consolidated metadata, and of each array.
    arrays = {layout.name: layout.to_json() for layout in sorted(layouts, key=lambda a: a.name)}
    group = {
        "attributes": {ATTRIBUTE: attributes.to_json()},
        "zarr_format": 3,
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": arrays,
        },
        "node_type": "group",
    }
    for name, metadata in arrays.items():
        _write_json(folder / name / "zarr.json", metadata)
    _write_json(folder / "zarr.json", group)


def _write_json(target: Path, content: Any) -> None:
    # ASCII, so that no reader's locale matters.
    write_text(target, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=True) + "\n")


def _link(source: Path, target: Path) -> None:
    # A second name, or a copy on another file system: the draft stays whole, so that an
    # interrupted publication is simply done again.
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as content, target.open("wb") as handle:
            shutil.copyfileobj(content, handle, _COPIED_BYTES)
            handle.flush()
            os.fsync(handle.fileno())


def _write_manifest(folder: Path, hashes: Mapping[str, str]) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    listed = {name: hashes.get(name) or sha256_file(folder / name) for name in names}
    write_text(folder / MANIFEST, format_manifest(listed))
    return sha256_file(folder / MANIFEST)
