"""How long to wait for a server, and how often to ask it again."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["InterruptedTransferError", "Patience"]

# Above it, an attempt that failed has brought us forward and is not counted.
PROGRESS_BYTES = 2**20


@dataclass(frozen=True)
class Patience:
    """Limits of one file's transfer.

    Attributes
    ----------
    stall_s : float
        Seconds without a byte after which an attempt has failed.
    attempts : int
        Attempts for a file, not counting those that brought at least 1 MiB.
    pause_s : float
        Seconds before the second attempt; doubled each time, up to `longest_pause_s`.
    longest_pause_s : float
        Also the longest time that a server may ask us to wait.
    min_bytes_per_s : int
        An attempt may take `stall_s` and its bytes at this rate, so that a server that sends
        one byte now and then does not hold us for ever.
    """

    stall_s: float = 30.0
    attempts: int = 5
    pause_s: float = 0.5
    longest_pause_s: float = 120.0
    min_bytes_per_s: int = 8 * 2**10

    def pause(self, failures: int, retry_after_s: float | None) -> float:
        """Seconds to wait after so many failures; a server that says when is believed."""
        if retry_after_s is not None:
            return retry_after_s
        # Spread out, so that parallel transfers that failed together do not return together.
        spread = 0.75 + random.random() / 2  # noqa: S311
        return min(self.pause_s * 2.0 ** (failures - 1) * spread, self.longest_pause_s)

    def allowance(self, size: int) -> float:
        """Seconds in which so many bytes have to arrive."""
        return self.stall_s + size / self.min_bytes_per_s


class InterruptedTransferError(Exception):
    """An attempt failed in a way that another one may mend; never leaves this package.

    Parameters
    ----------
    reason : str
        For the user, without a URL.
    retry_after_s : float, optional
        When the server wants to be asked again.
    from_start : bool
        Parts of the file cannot be had: the next attempt has to fetch all of it.
    """

    def __init__(
        self, reason: str, retry_after_s: float | None = None, *, from_start: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_s, self.from_start = reason, retry_after_s, from_start
