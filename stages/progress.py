"""Progress on stderr: results go to stdout."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
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

__all__ = ["bar", "console", "counter", "tell", "ticker", "transfer"]


def console() -> Console:
    """The console for all that is not a result."""
    return Console(stderr=True)


def tell(line: str) -> None:
    """One line for people, on stderr."""
    click.echo(line, err=True)


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


def ticker(progress: Progress) -> Callable[[str, int, int], None]:
    """Tells what is under way: a bar each with the time left, or lines where there is no bar.

    Returns
    -------
    callable
        To be called with a name, the images just done, and at most how many are to come.
    """
    tasks: dict[str, _Task] = {}

    def tick(name: str, done: int, left: int) -> None:
        if name not in tasks:
            if progress.disable:
                click.echo(f"{name} …", err=True)
            tasks[name] = _Task(progress.add_task(name, total=None, note=""), time.monotonic())
        task = tasks[name]
        task.done += done
        progress.update(task.bar, completed=task.done, total=task.done + left)
        if progress.disable and time.monotonic() - task.told > _SECONDS_BETWEEN_LINES:
            task.told = time.monotonic()
            seconds = (task.told - task.began) / task.done * left
            click.echo(f"{name}: {task.done:,} done, {seconds / 60:.0f} min left", err=True)

    return tick


# Where there is no bar.
_SECONDS_BETWEEN_LINES = 60.0


@dataclass
class _Task:
    bar: TaskID
    began: float
    told: float = 0.0
    done: int = 0

    def __post_init__(self) -> None:
        self.told = self.began
