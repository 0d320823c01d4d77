"""Images per second of the training steps, and whether a snapshot is due."""

from __future__ import annotations

import time

__all__ = ["Clock"]

# Often enough for a screen, too rarely to hold a device up.
_READ_SECONDS = 0.5


class Clock:
    """Times a run.

    Parameters
    ----------
    minutes : float
        Between snapshots; 0: none are due by time.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes, self._images, self._seconds = minutes, 0, 0.0
        self._mark = self._last = self._read = time.monotonic()

    def count(self, images: int) -> None:
        """Images of a step that was just done."""
        now = time.monotonic()
        self._images += images
        self._seconds += now - self._mark
        self._mark = now

    def rate(self) -> float:
        """Images per second so far."""
        return self._images / max(self._seconds, 1e-9)

    def skip(self) -> None:
        """Leave what came since the last step (validation, a snapshot) out of the rate."""
        self._mark = time.monotonic()

    def is_time_to_read(self) -> bool:
        """Whether the screen has not been told anything for a while."""
        now = time.monotonic()
        if now - self._read < _READ_SECONDS:
            return False
        self._read = now
        return True

    def is_due(self) -> bool:
        """Whether the last snapshot is too long ago."""
        return self._minutes > 0 and time.monotonic() - self._last > 60 * self._minutes

    def restart(self) -> None:
        """A snapshot was just taken."""
        self._last = time.monotonic()
