"""Part 3 of 8: which chunks of a store a process fills."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ParamsError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WHOLE", "Part", "wait_for_chunks"]


@dataclass(frozen=True)
class Part:
    """One of `count` shares of the chunks, equal but for one chunk.

    Attributes
    ----------
    number : int
        From 1 to `count`.
    count : int
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `3/8`.

        Raises
        ------
        ParamsError
            When it is no such thing.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ParamsError("--part", "expected one such as 3/8, the third of eight", found=text)
        return cls(int(match[1]), int(match[2]))

    def split(self, rank: int, ranks: int) -> Part:
        """The share of one of several processes that fill this part together."""
        return Part((self.number - 1) * ranks + rank + 1, self.count * ranks)

    def chunks(self, num_chunks: int) -> range:
        """The chunks of this part; none where there are more parts than chunks."""
        first, last = (num_chunks * at // self.count for at in (self.number - 1, self.number))
        return range(first, last)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Part(1, 1)
# A chunk has at most 8,192 images.
_STALL_S = 3600.0
_LOOK_S = 0.25


def wait_for_chunks(absent: Callable[[], list[int]], stall_s: float = _STALL_S) -> None:
    """Wait until other processes have written all chunks.

    Parameters
    ----------
    absent : callable
        Gives the chunks that are not there yet.
    stall_s : float
        Seconds without a new chunk after which the others are taken for dead.

    Raises
    ------
    StateError
        When they are.
    """
    missing, since = absent(), time.monotonic()
    while missing:
        time.sleep(_LOOK_S)
        found = absent()
        if len(found) < len(missing):
            since = time.monotonic()
        elif time.monotonic() - since > stall_s:
            raise StateError(
                "label",
                f"no other process has written a chunk for {stall_s:.0f} s",
                found=f"{len(found)} missing, the first is {found[0]}",
                remedy="Run it again: what is done is kept.",
            )
        missing = found
