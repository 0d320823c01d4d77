"""Two runs to be compared on one page: their evaluations, and what is left of their training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.compare.run import EvaluatedRun, read_run
from pipeline.compare.table import Comparison, compare
from pipeline.evaluation.places import evaluation_beside
from pipeline.report.runs import Run
from pipeline.report.runs import read_run as read_trained
from pipeline.report.scores import read_by_eps

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.report.scores import EpsPoint, Score

__all__ = ["PairFacts", "Side", "gather_pair"]

_MODEL = "model.safetensors"


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes
    ----------
    letter : str
        `A` or `B`: what it is called on the page.
    evaluated : EvaluatedRun
        With the name that the user gave it.
    by_eps : tuple of EpsPoint
        Rising in eps; empty where it was not measured.
    run : Run or None
        The training that its checkpoint tells of; None where that is not beside it.
    """

    letter: str
    evaluated: EvaluatedRun
    by_eps: tuple[EpsPoint, ...]
    run: Run | None

    def score(self, attack: str) -> Score | None:
        """An accuracy with its interval, by the attack's key."""
        return self.evaluated.measured.scores.get(attack.replace("-", "_"))

    def attack_name(self, attack: str) -> str:
        """What people call it, where the evaluation says so."""
        return self.evaluated.measured.names.get(attack.replace("-", "_"), attack)


@dataclass(frozen=True)
class PairFacts:
    """What is known of two runs.

    Attributes
    ----------
    title : str
    a, b : Side
    comparison : Comparison
        Of B with A.
    missing : tuple of str
        What the page lacks and why, in words.
    """

    title: str
    a: Side
    b: Side
    comparison: Comparison
    missing: tuple[str, ...]


def gather_pair(title: str, first: tuple[str, Path], second: tuple[str, Path]) -> PairFacts:
    """Read two runs.

    Parameters
    ----------
    title : str
    first, second : tuple of str and Path
        Each run as the user named it, and its metrics.json.

    Raises
    ------
    MissingError
        When an evaluation is not there.
    LtdPipeError
        When a file is damaged, or two of one run are of different checkpoints.
    """
    a, b = _side("A", *first), _side("B", *second)
    (comparison,) = compare([a.evaluated, b.evaluated])
    lacks = [
        f"{what} of {side.letter} (no {name} beside {side.evaluated.name})."
        for side in (a, b)
        for what, name, there in (
            ("Training curves and settings", _MODEL, side.run is not None),
            ("Robust accuracy by ε", "by_eps.json", bool(side.by_eps)),
        )
        if not there
    ]
    return PairFacts(title, a, b, comparison, tuple(lacks))


def _side(letter: str, name: str, metrics: Path) -> Side:
    evaluated, folder = read_run(name, metrics), evaluation_beside(metrics)
    return Side(letter, evaluated, read_by_eps(folder), _trained(letter, evaluated, metrics))


def _trained(letter: str, evaluated: EvaluatedRun, metrics: Path) -> Run | None:
    """The run whose checkpoint was measured, if it lies where the stages put it."""
    # `student` beside metrics.json, `NAME` beside NAME-metrics.json, or all in one folder.
    name = metrics.name.removesuffix(".json").removesuffix("metrics").rstrip("-") or "student"
    for folder in (metrics.parent / name, metrics.parent):
        if not (folder / _MODEL).is_file():
            continue
        run = read_trained(folder, letter, "ltd-pipe train")
        measured = evaluated.measured.checkpoint_sha256
        run.require_measured(measured, metrics, str(folder / _MODEL))
        return run
    return None
