"""Runs side by side: each against the first one, wherever they were measured alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.compare.mcnemar import Paired, pair
from pipeline.report.conditions import unlike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.compare.run import EvaluatedRun

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """A run against the first one.

    Attributes
    ----------
    run : EvaluatedRun
    paired : dict of str to Paired
        By attack, those that both were measured under in the same way.
    left_out : tuple of str
        What was not compared, and why.
    """

    run: EvaluatedRun
    paired: dict[str, Paired]
    left_out: tuple[str, ...]


def compare(runs: Sequence[EvaluatedRun]) -> list[Comparison]:
    """Compare each run with the first one.

    Parameters
    ----------
    runs : sequence of EvaluatedRun
        Two or more.

    Returns
    -------
    list of Comparison
        Of all but the first.
    """
    first, *others = runs
    return [_against(first, run) for run in others]


def _against(first: EvaluatedRun, run: EvaluatedRun) -> Comparison:
    mine, theirs = run.samples, first.samples
    if mine is None or theirs is None:
        lacking = [each.name for each in (first, run) if each.samples is None]
        return Comparison(run, {}, (f"no results by image of {' and '.join(lacking)}",))
    if not mine.of_the_same_images(theirs):
        return Comparison(run, {}, ("other test images",))
    paired, left_out = {}, []
    for attack in mine.correct:
        if attack not in theirs.correct:
            left_out.append(f"{attack}: not measured of {first.name}")
        elif reason := unlike(attack, run.measured.conditions, first.measured.conditions):
            left_out.append(f"{attack}: {reason}")
        else:
            paired[attack] = pair(mine.correct[attack], theirs.correct[attack])
    return Comparison(run, paired, tuple(left_out))
