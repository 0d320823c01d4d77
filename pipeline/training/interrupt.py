"""Ctrl-C, SIGTERM and their kin end a run between two steps, after a snapshot."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.received, self._patient = False, patient

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; the second one stops at once."""
        del number, frame
        if self.received and not self._patient:
            raise KeyboardInterrupt
        self.received = True


@contextlib.contextmanager
def listen(*, patient: bool = False) -> Iterator[StopRequest]:
    """Turn what asks a process to end into a request that the block looks at when it is ready.

    SIGHUP comes when a terminal or an ssh session is closed, SIGUSR1 from batch systems. Where they
    are ignored, as under nohup, they stay so.

    Parameters
    ----------
    patient : bool
        See `StopRequest`.
    """
    request = StopRequest(patient=patient)
    numbers = [signal.SIGINT, signal.SIGTERM]
    also = (signal.SIGHUP, signal.SIGUSR1)
    numbers += [number for number in also if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, request) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
