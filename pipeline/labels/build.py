"""Laying out a store's files in a folder that nobody reads yet."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.labels.arrays import write_chunk
from pipeline.labels.card import write_card
from pipeline.labels.format import ATTRIBUTE
from pipeline.labels.manifest import MANIFEST, format_manifest
from pipeline.provenance import sha256_file
from pipeline.publish import staged, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.labels.arrays import ArrayLayout
    from pipeline.labels.format import StoreAttributes

__all__ = ["build_store"]


def build_store(
    folder: Path,
    attributes: Callable[[], StoreAttributes],
    sources: Mapping[ArrayLayout, Callable[[int], Path | NDArray[Any]]],
    progress: Callable[[int], None] | None = None,
) -> str:
    """Lay out all files of a store.

    Parameters
    ----------
    folder : Path
        An absent or empty folder.
    attributes : callable
        Gives the StoreAttributes; called when all chunks are there.
    sources : dict of ArrayLayout to callable
        Gives the content of chunk number i: its rows, or a finished chunk file.
    progress : callable, optional
        Called with the number of samples just laid out.

    Returns
    -------
    str
        The store's identity.
    """
    layout = next(iter(sources))
    for chunk in range(layout.num_chunks):
        for array, source in sources.items():
            content = source(chunk)
            if isinstance(content, Path):
                _link_chunk(content, folder / array.chunk_name(chunk))
            else:
                write_chunk(folder, array, chunk, content)
        if progress is not None:
            progress(layout.rows_in(chunk))
    known, layouts = attributes(), list(sources)
    _write_metadata(folder, known, layouts)
    write_card(folder, known, layouts)
    return _write_manifest(folder)


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


def _link_chunk(source: Path, target: Path) -> None:
    # A second name, or a copy on another file system: the draft stays whole, so that an
    # interrupted publication is simply done again.
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    except OSError:
        with staged(target) as beside:
            shutil.copyfile(source, beside)


def _write_manifest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    write_text(folder / MANIFEST, format_manifest(hashes))
    return sha256_file(folder / MANIFEST)
