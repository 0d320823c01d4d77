"""Two runs to be compared on one page: their evaluations, and what is left of their training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ltd_pipe.evaluation.results import evaluation_beside, read_by_eps
from ltd_pipe.report.compare import Comparison, EvaluatedRun, compare, read_run
from ltd_pipe.report.facts import Parameter, parameter_rows
from ltd_pipe.report.figures import EpsSeries
from ltd_pipe.report.page import epoch_figures, eps_figure, render
from ltd_pipe.report.runs import Run, interval_text, percent_text
from ltd_pipe.report.runs import read_run as read_trained
from ltd_pipe.report.verdict import judge_pair, p_text, points_text, signed_text

if TYPE_CHECKING:
    from pathlib import Path

    from ltd_pipe.evaluation.results import EpsPoint, Score
    from ltd_pipe.evaluation.statistics import Paired

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


# --- The page of two runs: facts in, one HTML text out.


@dataclass(frozen=True)
class PairedRow:
    """One attack of the table; texts are empty where nothing was measured or compared.

    Attributes
    ----------
    title : str
    a, b : tuple of str
        Accuracy, and its interval.
    difference, interval : str
        B less A, in points.
    alone : str
        Images on which only B, and only A, is right.
    p : str
    """

    title: str
    a: tuple[str, str]
    b: tuple[str, str]
    difference: str = ""
    interval: str = ""
    alone: str = ""
    p: str = ""


def render_pair(facts: PairFacts) -> str:
    """Render the comparison.

    Parameters
    ----------
    facts : PairFacts

    Returns
    -------
    str
        HTML that needs no other file and no network; the same facts give the same text.
    """
    content = {
        "facts": facts,
        "verdict": judge_pair(facts),
        "sides": (facts.a, facts.b),
        "rows": paired_rows(facts),
        "figures": _figures(facts),
        "settings": setting_rows(facts),
    }
    return render("pair.html.j2", content)


def paired_rows(facts: PairFacts) -> tuple[PairedRow, ...]:
    """Clean accuracy and each attack of either run, in the order they ran."""
    keys = [key for side in (facts.b, facts.a) for key in side.evaluated.measured.scores]
    paired = {key.replace("-", "_"): one for key, one in facts.comparison.paired.items()}
    return tuple(_row(facts, key, paired.get(key)) for key in dict.fromkeys(keys))


def _row(facts: PairFacts, key: str, paired: Paired | None) -> PairedRow:
    side = facts.b if key in facts.b.evaluated.measured.scores else facts.a
    title = "clean" if key == "clean" else side.attack_name(key).replace("_", " ")
    a, b = _cell(facts.a.score(key)), _cell(facts.b.score(key))
    if paired is None:
        return PairedRow(title, a, b)
    return PairedRow(
        title,
        a,
        b,
        difference=points_text(paired),
        interval=f"{signed_text(paired.low)} to {signed_text(paired.high)}",
        alone=f"{paired.gained:,} and {paired.lost:,}",
        p=p_text(paired.p).removeprefix("p = ").removeprefix("p "),
    )


def _cell(score: Score | None) -> tuple[str, str]:
    if score is None:
        return "", ""
    return percent_text(score.value, score.n), interval_text(score.low, score.high, score.n)


def _figures(facts: PairFacts) -> list[Any]:
    sides = (facts.a, facts.b)
    series = [_by_eps(side) for side in sides if side.by_eps]
    figures = [eps_figure(series, facts.a.evaluated.measured.n)]
    figures += epoch_figures([side.run for side in sides if side.run is not None])
    return [figure for figure in figures if figure is not None]


def _by_eps(side: Side) -> EpsSeries:
    eps = side.evaluated.measured.eps
    return EpsSeries(side.letter, side.by_eps, eps, side.score("autoattack"))


def setting_rows(facts: PairFacts) -> tuple[Parameter, ...] | None:
    """The settings in which the two were trained differently; None where they are not known."""
    if facts.a.run is None or facts.b.run is None:
        return None
    settings = [_settings(run) for run in (facts.a.run, facts.b.run)]
    rows = parameter_rows(settings, (True, True))
    # That they differ is what the table is of: no row needs a mark.
    return tuple(replace(row, differs=False) for row in rows if row.differs)


def _settings(run: Run) -> dict[str, Any]:
    facts = run.facts
    found: dict[str, Any] = {"architecture": facts.architecture, **facts.params}
    found |= {"seed": facts.seed, "checkpoint's temperature": facts.temperature}
    found["training images"] = facts.data.fingerprint[:12] if facts.data else None
    found["soft-label store"] = facts.labels.identity[:12] if facts.labels else None
    return found | {f"{name}, version": version for name, version in facts.software.items()}
