"""Threads that transfer files side by side, under one eye that notices when one hangs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from ltd_pipe.errors import TransferError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Task = Callable[["Pulse"], None]

__all__ = ["Pulse", "StoppedError", "run_tasks"]

_LOOK_S = 0.1


class StoppedError(Exception):
    """Raised in a thread whose work is no longer wanted."""


class Pulse:
    """One thread's sign of life.

    Parameters
    ----------
    stop : threading.Event
        Set when the work of all threads is no longer wanted.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self.deadline = float("inf")

    def beat(self, allowance_s: float) -> None:
        """Say that the next sign comes within so many seconds; ends the thread if unwanted."""
        if self._stop.is_set():
            raise StoppedError
        self.deadline = time.monotonic() + allowance_s

    def rest(self, seconds: float) -> None:
        """Wait, but not longer than the work is wanted."""
        self.deadline = float("inf")
        if self._stop.wait(seconds):
            raise StoppedError


class _Crew:
    # What the threads and the one that waits for them share.

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.stop = threading.Event()
        self._tasks: Iterator[Task] = iter(tasks)
        self._lock = threading.Lock()
        self.failures: list[BaseException] = []

    def work(self, pulse: Pulse) -> None:
        try:
            while (task := self._next()) is not None and not self.stop.is_set():
                task(pulse)
                pulse.deadline = float("inf")
        except StoppedError:
            pass
        except BaseException as error:
            self.failures.append(error)
            self.stop.set()

    def _next(self) -> Task | None:
        with self._lock:
            return next(self._tasks, None)


def run_tasks(tasks: Iterable[Task], jobs: int, where: object) -> None:
    """Run tasks in several threads until all are done or one fails.

    The threads are daemons: one that hangs in a library's call, past the deadline that it gave
    itself, is left behind, and neither an error nor Ctrl-C waits for it.

    Parameters
    ----------
    tasks : iterable of callable
        Each is called with the Pulse of its thread. Taken one by one, never all in memory.
    jobs : int
        Threads.
    where : object
        The place that is read, for the error.

    Raises
    ------
    TransferError
        When a thread has missed its deadline.
    Exception
        The first that a task raised.
    """
    crew = _Crew(tasks)
    pulses = [Pulse(crew.stop) for _ in range(jobs)]
    threads = [threading.Thread(target=crew.work, args=(p,), daemon=True) for p in pulses]
    try:
        for thread in threads:
            thread.start()
        _wait(crew, threads, pulses, where)
    finally:
        crew.stop.set()
    if crew.failures:
        raise crew.failures[0]


def _wait(crew: _Crew, threads: list[threading.Thread], pulses: list[Pulse], where: object) -> None:
    # After a failure the others get a moment to end by themselves, not more.
    patience_s = float("inf")
    while any(thread.is_alive() for thread in threads) and time.monotonic() < patience_s:
        for thread in threads:
            thread.join(_LOOK_S / len(threads))
        now = time.monotonic()
        if crew.failures:
            patience_s = min(patience_s, now + 1.0)
        elif any(pulse.deadline < now for pulse in pulses):
            raise TransferError(
                where,
                "a transfer hangs",
                remedy="Run it again: what is whole is not fetched again.",
            )
