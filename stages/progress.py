"""Progress on stderr: results go to stdout."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["bar", "console", "counter", "ticker", "transfer"]


def console() -> Console:
    """The console for all that is not a result."""
    return Console(stderr=True)


def bar() -> Progress:
    """A progress bar with time left; where stderr is no terminal it stays silent."""
    screen = console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen,
        disable=not screen.is_terminal,
        transient=True,
    )


@contextlib.contextmanager
def counter(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar that counts items: the block calls what it gets with the number just done."""
    with bar() as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done: progress.advance(task, done)


@contextlib.contextmanager
def transfer(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes: the block calls what it gets with those that are there and with all."""
    screen = console()
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        *columns,
        console=screen,
        disable=not screen.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def ticker(progress: Progress) -> Callable[[str, int], None]:
    """A function to be called with an attack's name and the images just done: a bar for each."""
    tasks: dict[str, TaskID] = {}

    def tick(name: str, done: int) -> None:
        if name not in tasks:
            # Where there is no bar, a line per attack tells that something is happening.
            if progress.disable:
                click.echo(f"{name} …", err=True)
            tasks[name] = progress.add_task(name, total=None, note="")
        progress.advance(tasks[name], done)

    return tick
