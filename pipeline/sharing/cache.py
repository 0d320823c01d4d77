"""Stores from elsewhere, kept on this machine under their identity."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ltd_pipe.errors import BusyError, StoreError
from ltd_pipe.labels.manifest import MANIFEST
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.publish import exclusive
from ltd_pipe.sharing.location import local_location
from ltd_pipe.sharing.pull import pull_store
from ltd_pipe.sharing.remote import RemoteStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from ltd_pipe.sharing.location import Location
    from ltd_pipe.sharing.patience import Patience
    from ltd_pipe.sharing.pull import Progress

__all__ = ["cache_folder", "cached_store", "find_cached", "open_nearest"]

_IDENTITY_DIGITS = 64
_LOOK_AGAIN_S = 0.2


def cache_folder() -> Path:
    """Where fetched stores are kept: `ltd-pipe/stores` in the user's cache."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    root = Path(named) if named.startswith("/") else Path.home() / ".cache"
    return root / "ltd-pipe" / "stores"


def find_cached(identity: str) -> Path | None:
    """The store of an identity when it is in the cache, whole as far as opening it tells.

    One that was damaged there is removed, since it can be fetched again.
    """
    folder = cache_folder() / identity
    if len(identity) != _IDENTITY_DIGITS or not (folder / MANIFEST).is_file():
        return None
    try:
        if SoftLabels.open(folder).identity == identity:
            return folder
    except StoreError:
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


def cached_store(
    location: Location,
    *,
    patience: Patience | None = None,
    jobs: int = 8,
    force: bool = False,
    progress: Progress | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Path:
    """The folder of a store that is elsewhere, fetched unless it is in the cache.

    Of a store that is in the cache only the manifest is fetched, and not even that when the
    location names the whole identity. Processes that want the same store at the same time wait
    for the one that fetches it.

    Parameters
    ----------
    location : Location
    patience : Patience, optional
    jobs : int
        Files that are fetched at the same time.
    force : bool
        Fetch it again.
    progress : callable, optional
        See `pull_store`.
    waiting : callable, optional
        Called once with a sentence when another process is fetching it.

    Returns
    -------
    Path
        Never to be written to.

    Raises
    ------
    LtdPipeError
        As `pull_store`.
    """
    if not force and (found := find_cached(location.identity)) is not None:
        return found
    with RemoteStore(location, patience, jobs) as remote:
        target = cache_folder() / remote.identity
        while True:
            if not force and (found := find_cached(remote.identity)) is not None:
                return found
            try:
                with exclusive(target):
                    if force or find_cached(remote.identity) is None:
                        pull_store(remote, target, progress)
                    return target
            except BusyError as error:
                if waiting is not None:
                    waiting(f"{error.what}; waiting for it")
                    waiting = None
                time.sleep(_LOOK_AGAIN_S)


def open_nearest(
    location: Location, patience: Patience | None = None, jobs: int = 8, *, force: bool = False
) -> RemoteStore:
    """The store at a location, read from the cache when it is there and `force` is false."""
    if not force and (found := find_cached(location.identity)) is not None:
        return RemoteStore(local_location(found, location.identity), patience, jobs)
    remote = RemoteStore(location, patience, jobs)
    if not force and (found := find_cached(remote.identity)) is not None:
        remote.close()
        return RemoteStore(local_location(found, remote.identity), patience, jobs)
    return remote
