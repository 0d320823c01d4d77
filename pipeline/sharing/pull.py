"""Fetching a whole store into a folder that nobody reads before it is whole."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING

from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.publish import replace_tree, require_free, staged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ltd_pipe.sharing.remote import RemoteStore

    # Called with the bytes that are there and with the bytes there will be.
    Progress = Callable[[int, int], None]

__all__ = ["Tally", "new_state", "pull_store", "save_files"]


class Tally:
    """Adds up what several threads have done.

    Parameters
    ----------
    total : int
        Bytes there will be.
    progress : callable, optional
        Called with the bytes that are there and with the total.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._done, self._lock = 0, threading.Lock()

    def __call__(self, size: int) -> None:
        """Count a file."""
        with self._lock:
            self._done += size
            if self._progress is not None:
                self._progress(self._done, self._total)


def pull_store(remote: RemoteStore, target: Path, progress: Progress | None = None) -> None:
    """Fetch a store, verify it while it comes, and give it its name by one rename.

    Interrupted, it goes on when it is called again: files that are whole by their SHA-256 are
    kept. Two processes on one target are kept apart by the caller, with `publish.exclusive`.

    Parameters
    ----------
    remote : RemoteStore
    target : Path
        What stands there is replaced at the end.
    progress : callable, optional
        Called with the bytes of the chunks that are there, and of all.

    Raises
    ------
    StoreError
        When a byte is not what the manifest says, or the whole is no store.
    MissingError, TransferError
        When a file cannot be had. What is whole is kept for the next time.
    WriteError
        When the disk refuses, or cannot hold it.
    """
    survey = remote.survey()
    total = sum(layout.num_chunks * layout.file_bytes for layout in survey.layouts.values())
    state = new_state(target, remote.identity, total)
    save_files(state, survey.small)
    numbers = range(survey.num_chunks)
    remote.fetch(survey.chunks(survey.layouts, numbers), state, Tally(total, progress))
    # As its reader will; the hash of each file says that it is the publisher's, not that it is
    # a store.
    SoftLabels.open(state)
    replace_tree(state, target)


def new_state(target: Path, identity: str, size: int) -> Path:
    """The folder beside the target in which it is put together; an interrupted one is kept.

    Raises
    ------
    WriteError
        When the disk cannot hold `size` bytes, less those that are there.
    """
    state = target.with_name(f".{target.name}.{identity[:16]}.pull")
    for other in target.parent.glob(f".{target.name}.*.pull"):
        if other != state:
            shutil.rmtree(other, ignore_errors=True)
    there = sum(path.stat().st_size for path in state.rglob("*") if path.is_file())
    require_free(target.parent, max(size - there, 0))
    return state


def save_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files that were verified in memory."""
    for name, content in files.items():
        with staged(folder / name) as beside:
            beside.write_bytes(content)
