"""Ctrl-C, SIGTERM and their kin end a run between two steps, after a snapshot."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["Interrupted", "StopRequest", "listen"]


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved."""


class StopRequest:
    """Whether the user asked the run to stop.

    Parameters
    ----------
    patient : bool
        Take a second request for the first one, passed on by another process.
    told : callable, optional
        Called at the first one, in the signal's handler.
    """

    def __init__(self, *, patient: bool = False, told: Callable[[], None] | None = None) -> None:
        self.received, self._patient, self._told = False, patient, told
        self._at_once = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; the second one stops at once."""
        del number, frame
        if self.received and not self._patient:
            raise KeyboardInterrupt
        if not self.received and self._told is not None:
            self._told()
        self.received = True
        if self._at_once:
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Do not wait for the end of the block, which leaves nothing half done.

        Raises
        ------
        Interrupted
        """
        if self._patient:  # the others would wait for this process
            yield
            return
        if self.received:
            raise Interrupted
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextlib.contextmanager
def listen(
    *, patient: bool = False, told: Callable[[], None] | None = None
) -> Iterator[StopRequest]:
    """Turn what asks a process to end into a request that the block looks at when it is ready.

    SIGHUP comes when a terminal or an ssh session is closed, SIGUSR1 from batch systems. Where they
    are ignored, as under nohup, they stay so.

    Parameters
    ----------
    patient, told
        See `StopRequest`.
    """
    request = StopRequest(patient=patient, told=told)
    numbers = [signal.SIGINT, signal.SIGTERM]
    also = (signal.SIGHUP, signal.SIGUSR1)
    numbers += [number for number in also if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, request) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
