"""Some rows or arrays of a store elsewhere, of which only the chunks that hold them are fetched."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from ltd_pipe.labels.derive import kept_arrays, require_same_places, rows_of_range, subset
from ltd_pipe.labels.manifest import FileHashes, StoreFolder
from ltd_pipe.labels.reader import SoftLabels, StoredArray
from ltd_pipe.publish import exclusive
from ltd_pipe.sharing.pull import Tally, new_state, save_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ltd_pipe.sharing.pull import Progress
    from ltd_pipe.sharing.remote import RemoteStore, Survey

__all__ = ["pull_excerpt"]

_ALWAYS = ("labels", "sample_hash")


def pull_excerpt(
    remote: RemoteStore,
    target: Path,
    rows: tuple[int | None, int | None],
    arrays: Sequence[str] | None = None,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> str:
    """Fetch a part of a store as a store of its own: the one that `subset` would give.

    All labels and sample hashes come, and of the other arrays the chunks with these rows. Each
    is compared with the store's own manifest before a row of it is used. Interrupted, it goes
    on when it is called again.

    Parameters
    ----------
    remote : RemoteStore
    target : Path
    rows : tuple of int or None
        The first row and the one after the last; None: from the start, to the end.
    arrays : sequence of str, optional
        Which arrays to keep; by default all.
    replace : bool
        Replace a store that is there.
    progress : callable, optional
        Called with the bytes of the chunks that are there, and of those that are needed.

    Returns
    -------
    str
        The new store's identity.

    Raises
    ------
    ParamsError, StoreError
        When the store has no such rows or arrays, or a byte is not what the manifest says.
    MissingError, TransferError, WriteError
        As `pull_store`.
    """
    survey = remote.survey()
    with exclusive(target):
        state = new_state(target, remote.identity, _bytes(survey, _ALWAYS, survey.num_chunks))
        save_files(state, survey.small)
        all_chunks = range(survey.num_chunks)
        remote.fetch(survey.chunks(_ALWAYS, all_chunks), state, lambda _: None)
        source = _Excerpt(state, survey)
        chosen = rows_of_range(source, *rows)
        names = kept_arrays(source, arrays)
        require_same_places(source, chosen)
        length = source.arrays["labels"].layout.rows
        needed = range(chosen[0] // length, chosen[-1] // length + 1)
        total = _bytes(survey, names, len(needed))
        new_state(target, remote.identity, _bytes(survey, _ALWAYS, survey.num_chunks) + total)
        remote.fetch(survey.chunks(names, needed), state, Tally(total, progress))
    identity = subset(source, chosen, arrays=names).write(target, replace=replace)
    shutil.rmtree(state, ignore_errors=True)
    return identity


def _bytes(survey: Survey, names: Iterable[str], chunks: int) -> int:
    return sum(chunks * survey.layouts[name].file_bytes for name in names)


class _Excerpt(SoftLabels):
    # A store of which some chunks are not there; touching one of those is an error.

    def __init__(self, path: Path, survey: Survey) -> None:
        folder = StoreFolder(path)
        self.path = path
        self.hashes = FileHashes(folder)
        self.identity, self.attributes = self.hashes.identity, survey.attributes
        self.arrays = {
            name: StoredArray(folder, layout, self.hashes, partial=True)
            for name, layout in survey.layouts.items()
        }
        self.labels = self.arrays["labels"].read()
        self.sample_hash = self.arrays["sample_hash"].read()
