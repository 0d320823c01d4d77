"""One check of an audit: how often something happened that should not, and what that can show."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from pipeline.evaluation.accuracy import wilson_interval

__all__ = ["FEW_IMAGES", "SLACK", "Finding"]

# With so many, a check with a limit of 5 % fails from 10 % on; with fewer it sees even less.
FEW_IMAGES = 100
# The limit of what an attack that works may miss, as a share of the images.
SLACK = 0.02


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes
    ----------
    name : str
    count, n : int
        On how many of so many images it happened.
    limit : float
        The share may truly be so high.
    meaning : str
        What happened, and what a failure means.
    """

    name: str
    count: int
    n: int
    limit: float
    meaning: str

    @property
    def share(self) -> float:
        """Of the images."""
        return self.count / self.n

    @property
    def low(self) -> float:
        """The lower end of the share's 95 % interval (Wilson)."""
        return wilson_interval(self.count, self.n)[0]

    @property
    def fails_from(self) -> float:
        """The smallest share that fails with so many images: what the check can see."""
        lows = range(self.n + 1)
        first = bisect_right(lows, self.limit, key=lambda count: wilson_interval(count, self.n)[0])
        return first / self.n

    @property
    def passed(self) -> bool:
        """Whether the share may be within its limit."""
        return self.low <= self.limit
