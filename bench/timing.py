"""Times of things done in turns, and their ratios within each turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Call", "Comparison", "Rounds", "Spread", "interleave"]

Call = Callable[[int], object]


@dataclass(frozen=True)
class Rounds:
    """How often to measure: until `seconds` are over, but `least` to `most` times."""

    least: int
    most: int
    seconds: float


@dataclass(frozen=True)
class Spread:
    """Some numbers in short: their median, quartiles, minimum and how many they were."""

    median: float
    low: float
    high: float
    least: float
    n: int

    @classmethod
    def of(cls, numbers: list[float]) -> Spread:
        """Summarise numbers."""
        if len(numbers) < 2:
            return cls(numbers[0], numbers[0], numbers[0], numbers[0], 1)
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high, min(numbers), len(numbers))


@dataclass(frozen=True)
class Comparison:
    """Several ways of doing the same, measured in turns.

    Attributes
    ----------
    what : str
        What was done.
    baseline : str
        Which of the ways the ratios are against.
    seconds : dict of str to list of float
        By way, one number per round.
    amount : float
        Of work in one round.
    unit : str
        Of that amount.
    """

    what: str
    baseline: str
    seconds: dict[str, list[float]]
    amount: float
    unit: str

    def ratio(self, way: str) -> Spread:
        """Time of a way over the baseline's in the same round."""
        pairs = zip(self.seconds[way], self.seconds[self.baseline], strict=True)
        return Spread.of([ours / theirs for ours, theirs in pairs])

    def to_json(self) -> dict[str, Any]:
        """Everything but the single rounds."""
        ways = {
            way: {"seconds": vars(Spread.of(seconds)), "ratio": vars(self.ratio(way))}
            for way, seconds in self.seconds.items()
        }
        return {
            "what": self.what,
            "baseline": self.baseline,
            "amount": self.amount,
            "unit": self.unit,
            "ways": ways,
        }


def interleave(ways: Mapping[str, Call], rounds: Rounds) -> dict[str, list[float]]:
    """Time several ways in turns, so that whatever else the machine does hits all of them.

    Parameters
    ----------
    ways : dict of str to callable
        Each is called with the round's number, once before the clock runs.
    rounds : Rounds

    Returns
    -------
    dict of str to list of float
        Seconds per round.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for call in ways.values():
        call(0)
    end = time.perf_counter() + rounds.seconds
    for number in range(rounds.most):
        if number >= rounds.least and time.perf_counter() > end:
            break
        # Another one begins each time: nobody always finds the caches as the same one left them.
        turn = number % len(ways)
        order = [*ways][turn:] + [*ways][:turn]
        for way in order:
            begin = time.perf_counter()
            ways[way](number)
            seconds[way].append(time.perf_counter() - begin)
    return seconds
