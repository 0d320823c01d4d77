"""That a store's files are those of its manifest: none missing, none changed, none besides."""

from __future__ import annotations

import os
from bisect import bisect_left
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.labels.manifest import MANIFEST, SIGNATURE, read_signature

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from pipeline.labels.folder import StoreFolder
    from pipeline.labels.manifest import FileHashes

__all__ = ["verify_listing"]


def verify_listing(folder: StoreFolder, hashes: FileHashes, chunks: AbstractSet[str]) -> None:
    """Check each file but the chunks.

    Parameters
    ----------
    folder : StoreFolder
    hashes : FileHashes
        Its manifest.
    chunks : set of str
        Names of chunk files, whose turn comes when their rows are checked too.

    Raises
    ------
    StoreError
        At the first file that is not listed, without looking at the others, or that is missing
        or changed.
    """
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
