"""Times of things done in turns, and their ratios within each turn."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

__all__ = ["Call", "Clock", "Comparison", "Rounds", "Spread", "interleave"]

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
    cpu : dict of str to list of float
        As `seconds`, of the processors, of programs that were started too: what a way costs
        however busy the machine is.
    """

    what: str
    baseline: str
    seconds: dict[str, list[float]]
    amount: float
    unit: str
    cpu: dict[str, list[float]]

    def ratio(self, way: str) -> Spread:
        """Time of a way over the baseline's in the same round."""
        pairs = zip(self.seconds[way], self.seconds[self.baseline], strict=True)
        return Spread.of([ours / theirs for ours, theirs in pairs])

    def to_json(self) -> dict[str, Any]:
        """Everything but the single rounds."""
        ways = {
            way: {
                "seconds": vars(Spread.of(seconds)),
                "cpu_seconds": vars(Spread.of(self.cpu[way])),
                "ratio": vars(self.ratio(way)),
            }
            for way, seconds in self.seconds.items()
        }
        return {
            "what": self.what,
            "baseline": self.baseline,
            "amount": self.amount,
            "unit": self.unit,
            "ways": ways,
        }


class Clock:
    """Collects the seconds of ways, round by round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def time(self, way: str, call: Callable[[], object]) -> None:
        """Call, and add what it took."""
        cpu, begin = _cpu_seconds(), time.perf_counter()
        call()
        self.seconds.setdefault(way, []).append(time.perf_counter() - begin)
        self.cpu.setdefault(way, []).append(_cpu_seconds() - cpu)

    def comparison(self, what: str, baseline: str, amount: float, unit: str) -> Comparison:
        """What was collected."""
        return Comparison(what, baseline, self.seconds, amount, unit, self.cpu)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def interleave(ways: Mapping[str, Call], rounds: Rounds) -> Clock:
    """Time several ways in turns, so that whatever else the machine does hits all of them.

    Parameters
    ----------
    ways : dict of str to callable
        Each is called with the round's number, once before the clock runs.
    rounds : Rounds

    Returns
    -------
    Clock
    """
    clock = Clock()
    for call in ways.values():
        call(0)
    end = time.perf_counter() + rounds.seconds
    for number in range(rounds.most):
        if number >= rounds.least and time.perf_counter() > end:
            break
        # Another one begins each time: nobody always finds the caches as the same one left them.
        turn = number % len(ways)
        for way in [*ways][turn:] + [*ways][:turn]:
            clock.time(way, partial(ways[way], number))
    return clock
