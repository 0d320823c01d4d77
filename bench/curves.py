"""Loss curves of two training loops from the same initial weights, over several seeds."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["compare_curves", "curve_lines"]

# Enough of a curve to see its shape.
_BLOCKS = 15


def compare_curves(
    loops: Callable[[int], dict[str, Callable[[], float]]], steps: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """Train every loop for some steps, and compare the ends of their curves.

    Parameters
    ----------
    loops : callable
        Of a seed: by name, two functions that take a step and return its loss. Their initial
        weights are the same.
    steps : int
        Three at least.
    seeds : sequence of int
        They decide initial weights, order, augmentation and starts of the attack.

    Returns
    -------
    dict
        Under `ways` the `last_third` of each curve by seed, its mean and standard deviation over
        seeds, and the `curve` in blocks of steps; under `difference` the first way's end less
        the second's, likewise, with the mean's `standard_error`.
    """
    curves: dict[str, list[list[float]]] = {}
    for seed in seeds:
        for way, step in loops(seed).items():
            curves.setdefault(way, []).append([step() for _ in range(steps)])
    ends = {
        way: [statistics.fmean(losses[-(steps // 3) :]) for losses in of_seeds]
        for way, of_seeds in curves.items()
    }
    first, second = ends.values()
    difference = _spread([a - b for a, b in zip(first, second, strict=True)])
    return {
        "steps": steps,
        "seeds": list(seeds),
        "ways": {
            way: {"last_third": _spread(ends[way]), "curve": [_blocks(run) for run in of_seeds]}
            for way, of_seeds in curves.items()
        },
        "difference": difference | {"standard_error": difference["deviation"] / len(seeds) ** 0.5},
    }


def curve_lines(curves: dict[str, Any]) -> str:
    """A table of the curves' ends, and their difference."""
    rows = [
        [way, f"{of_way['last_third']['mean']:.4f}", f"{of_way['last_third']['deviation']:.4f}"]
        for way, of_way in curves["ways"].items()
    ]
    difference = curves["difference"]
    return (
        f"{table(['way', 'mean loss, last third', 'deviation over seeds'], rows)}\n\n"
        f"Difference {difference['mean']:+.4f}, standard error "
        f"{difference['standard_error']:.4f}: {curves['steps']} steps, "
        f"n = {len(curves['seeds'])} seeds"
    )


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "by_seed": values}


def _blocks(losses: list[float]) -> list[float]:
    size = max(len(losses) // _BLOCKS, 1)
    starts = range(0, len(losses) - size + 1, size)
    return [round(statistics.fmean(losses[at : at + size]), 4) for at in starts]
