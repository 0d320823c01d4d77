"""Work that goes on behind its caller: in order, and never much of it waiting."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self


class Background:
    """Calls functions on threads of its own; as a context, it waits for all of them.

    What waits or runs is bounded, and so is the memory that it holds. After a call that fails
    no later one begins, and its error is raised where the caller next looks in.

    Parameters
    ----------
    threads : int
        With one of them, calls run in the order in which they were given.
    waiting : int
        Calls that may be unfinished; the next one waits for the oldest.
    """

    def __init__(self, *, threads: int, waiting: int) -> None:
        self._threads, self._waiting = threads, waiting
        self._pool: ThreadPoolExecutor | None = None
        self._unfinished: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # The block's own error is the one to tell.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.finish()

    def do(self, function: Callable[..., object], *arguments: Any) -> None:
        """Take one call, unless an earlier one has failed, whose error is raised."""
        while len(self._unfinished) >= self._waiting:
            self._unfinished.popleft().result()
        if self._error is not None:
            raise self._error
        if self._pool is None:
            # Not before there is work: a process that only looks has no threads.
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="background")
        self._unfinished.append(self._pool.submit(self._run, function, arguments))

    def _run(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self._error is None:
            try:
                function(*arguments)
            except BaseException as error:
                self._error = error

    def finish(self) -> None:
        """Wait for all calls, end the threads, and raise the error of a call that failed."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._unfinished.clear()
        if self._error is not None:
            raise self._error
