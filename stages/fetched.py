"""A store that an option names by folder or by URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.console import transfer

if TYPE_CHECKING:
    from ltd_pipe.sharing.location import Location

__all__ = ["fetch_to_cache", "local_folder"]


def local_folder(named: str) -> Path:
    """The folder of a store; one that is elsewhere is fetched into the cache first.

    Raises
    ------
    LtdPipeError
        When it cannot be fetched.
    """
    from ltd_pipe.sharing.location import is_url, parse_location

    return fetch_to_cache(parse_location(named)) if is_url(named) else Path(named)


def fetch_to_cache(location: Location, **settings: Any) -> Path:
    """`cache.cached_store` with progress on the screen."""
    from ltd_pipe.sharing.cache import cached_store

    with transfer(f"fetch {location}") as progress:
        return cached_store(
            location,
            progress=progress,
            waiting=lambda line: click.echo(line, err=True),
            **settings,
        )
