"""Work that goes on behind its caller: in order, and never much of it waiting."""

from __future__ import annotations

import contextlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType

__all__ = ["Background"]


class Background:
    """Calls functions on threads of its own.

    What waits or runs is bounded, and so is the memory that it holds. After a call that fails
    no later one begins, and its error is raised where the caller next looks in. A block that
    is left, however it is left, waits for what was taken.

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            # The block's own error is the one to tell.
            with contextlib.suppress(Exception):
                self.finish()

    def do(self, function: Callable[..., object], *arguments: Any) -> None:
        """Take one call.

        Raises
        ------
        Exception
            Of an earlier call; this one is not taken.
        """
        while len(self._unfinished) >= self._waiting:
            self._unfinished.popleft().result()
        self._raise_error()
        if self._pool is None:
            # Not before there is work: a process that only looks has no threads.
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="background")
        self._unfinished.append(self._pool.submit(self._run, function, arguments))

    def _run(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self._error is not None:
            return
        try:
            function(*arguments)
        except BaseException as error:
            self._error = error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait for all calls, and end the threads.

        Raises
        ------
        Exception
            Of the first call that failed, now and whenever it is asked again.
        """
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._unfinished.clear()
        self._raise_error()
