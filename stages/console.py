"""Results on stdout, as lines or as JSON; progress and all else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from click.decorators import FC


def console() -> Console:
    """The console for all that is not a result."""
    return Console(stderr=True)


def is_main() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def tell(line: str) -> None:
    """One line for people, on stderr, from the first process."""
    if is_main():
        click.echo(line, err=True)


def json_option(text: str) -> Callable[[FC], FC]:
    """Add --json, which `say` looks at."""

    def keep(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[_JSON] = value

    return click.option("--json", is_flag=True, expose_value=False, callback=keep, help=text)


_JSON = "ltd_pipe.json"


def wants_json() -> bool:
    """Whether the running command has been given --json."""
    return bool(click.get_current_context().meta[_JSON])


def say(facts: Any, lines: Iterable[str], notes: Iterable[str] = (), **form: Any) -> None:
    """Print what came out: with --json the facts, else lines, and the notes on stderr."""
    if wants_json():
        click.echo(json.dumps(facts, **{"indent": 2} | form))
        return
    for line in lines:
        click.echo(line)
    for note in notes:
        tell(note)


class _Fitting(ProgressColumn):
    """A field of the task, cut off where the screen ends."""

    def __init__(self, field: str) -> None:
        # Rich narrows the columns that may wrap, and only these.
        super().__init__(Column(no_wrap=False))
        self._field = field

    def render(self, task: Task) -> Text:
        return Text(task.fields[self._field], no_wrap=True, overflow="ellipsis")


def bar() -> Progress:
    """What runs, a bar, and the time left; then what fits. No terminal: it stays silent."""
    screen, whole = console(), Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=12, table_column=Column(no_wrap=True, min_width=12)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("left", table_column=Column(no_wrap=True)),
        _Fitting("note"),
        console=screen,
        disable=not (screen.is_terminal and is_main()),
        transient=True,
        # Results alone go there, afterwards. Colorama, which DVC brings, would keep Rich's stand-in
        # and reset its colours through it at exit: an empty line and a stray "[0m".
        redirect_stdout=False,
    )


@contextlib.contextmanager
def stoppable(what: str) -> Iterator[None]:
    """End in order at Ctrl-C, or when a batch system or a closing terminal says so.

    The message says that it goes on with what is done, such as `labelled`.
    """

    def stop(number: int, frame: Any) -> None:
        del frame
        name = signal.Signals(number).name
        why = "Interrupted" if number == signal.SIGINT else f"Stopped by {name}"
        raise KeyboardInterrupt(f"{why}. Run it again: what is {what} is kept.")

    # As in training; what nohup has made ignored stays so.
    also = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    numbers = [number for number in also if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Say on a terminal what is under way where no bar can: nothing is counted yet."""
    if not (is_main() and console().is_terminal):
        yield
        return
    with console().status(f"{what} …"):
        yield


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
        disable=not (screen.is_terminal and is_main()),
        transient=True,
    ) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Ticker:
    """Tells what is under way: a bar each with the time left, or lines where there is no bar.

    Names that begin alike up to a comma, as `attack 5 of 8, PGD-50 start 2 of 5`, are one thing,
    and so are the starts of an attack. Where the screen is full, finished bars make room.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, _Task] = {}

    def __call__(self, name: str, done: int, left: int) -> None:
        """Take the images just done, and at most how many are to come."""
        task, progress = self._task(name), self._progress
        task.done += done
        progress.update(task.bar, description=name, completed=task.done, total=task.done + left)
        late = time.monotonic() - task.told > _SECONDS_BETWEEN_LINES
        if progress.disable and done and late:
            task.told = time.monotonic()
            seconds = (task.told - task.began) / task.done * left
            tell(f"{name}: {task.done:,} done, {seconds / 60:.0f} min left")

    def finished(self, name: str, accuracy: float) -> None:
        """Take the accuracy that an attack leaves."""
        note = f"accuracy {accuracy:.1%}"
        task = self._task(name, quiet=True)
        self._progress.update(
            task.bar, description=name, completed=task.done, total=task.done, note=note
        )
        if self._progress.disable:
            tell(f"{name}: {note}")

    def _task(self, name: str, *, quiet: bool = False) -> _Task:
        key = re.sub(r" start \d+", "", name.partition(",")[0])
        if key not in self._tasks:
            if self._progress.disable and not quiet:
                tell(f"{name} …")
            number = self._progress.add_task(name, total=None, note="")
            now = time.monotonic()
            self._tasks[key] = _Task(number, began=now, told=now)
            self._make_room()
        return self._tasks[key]

    def _make_room(self) -> None:
        # Rich cuts off the end of what is taller than the screen: what runs now.
        shown = [task for task in self._progress.tasks if task.visible]
        shown.sort(key=lambda task: not task.finished)
        for task in shown[: -max(self._progress.console.height - 2, 1)]:
            self._progress.update(task.id, visible=False)


# Where there is no bar.
_SECONDS_BETWEEN_LINES = 60.0


@dataclass
class _Task:
    bar: TaskID
    began: float
    told: float
    done: int = 0
