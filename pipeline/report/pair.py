"""Two runs on one page: their evaluations, and what is left of their training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltd_pipe.evaluation.results import evaluation_beside
from ltd_pipe.report.page import (
    Parameter,
    curve_figures,
    eps_figure,
    parameter_rows,
    render,
)
from ltd_pipe.report.runs import Evaluation, Run, read_evaluation, read_run
from ltd_pipe.report.verdict import Model, Verdict, judge

if TYPE_CHECKING:
    from ltd_pipe.evaluation.results import Score
    from ltd_pipe.evaluation.statistics import Paired

_CHECKPOINT = "model.safetensors"


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    letter: str  # A or B: what it is called on the page
    name: str  # as the user named it
    evaluation: Evaluation
    run: Run | None  # None where no checkpoint lies beside the evaluation


@dataclass(frozen=True)
class PairFacts:
    """What is known of two runs; `missing` says what the page lacks and why."""

    title: str
    a: Side
    b: Side
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
    a, b, missing = _side("A", *first), _side("B", *second), []
    for side in (a, b):
        beside = f"of {side.letter} (no {{}} beside {side.name})."
        if side.run is None:
            missing.append(f"Training curves and settings {beside.format(_CHECKPOINT)}")
        if not side.evaluation.by_eps:
            missing.append(f"Robust accuracy by ε {beside.format('by_eps.json')}")
    return PairFacts(title, a, b, tuple(missing))


def _side(letter: str, name: str, metrics: Path) -> Side:
    evaluation, run = read_evaluation(metrics, evaluation_beside(metrics)), None
    # `student` beside metrics.json, `NAME` beside NAME-metrics.json, or all in one folder.
    model = metrics.name.removesuffix(".json").removesuffix("metrics").rstrip("-") or "student"
    for folder in (metrics.parent / model, metrics.parent):
        if run is None and (folder / _CHECKPOINT).is_file():
            run = read_run(folder, letter)
            evaluation = run.check_evaluation(evaluation, metrics)
    return Side(letter, name, evaluation, run)


def judge_pair(facts: PairFacts) -> Verdict:
    """Compare B with A."""
    verdict = judge(*(Model(side.letter, side.evaluation) for side in (facts.b, facts.a)))
    if facts.a.run is None or facts.b.run is None or facts.a.run.sha256 != facts.b.run.sha256:
        return verdict
    return replace(verdict, caveats=(*verdict.caveats, "Both are the same checkpoint."))


def render_pair(facts: PairFacts) -> str:
    """The comparison as HTML that needs no other file; the same facts give the same text."""
    sides, verdict = (facts.a, facts.b), judge_pair(facts)
    return render(
        "pair.html.j2",
        facts=facts,
        sides=sides,
        verdict=verdict,
        rows=paired_rows(facts, verdict),
        by_eps=eps_figure({side.letter: side.evaluation for side in sides}),
        curves=curve_figures([side.run for side in sides if side.run]),
        settings=unequal_settings(facts),
    )


@dataclass(frozen=True)
class PairedRow:
    """One attack of the table; None where nothing was measured, or compared."""

    title: str
    a: Score | None
    b: Score | None
    paired: Paired | None


def paired_rows(facts: PairFacts, verdict: Verdict) -> list[PairedRow]:
    """Clean accuracy and each attack of either run, in the order they ran."""
    a, b = facts.a.evaluation, facts.b.evaluation
    paired = {key.replace("-", "_"): one for key, one in verdict.comparison.paired.items()}
    return [
        PairedRow(
            (b if key in b.scores else a).attack_name(key).replace("_", " "),
            a.score(key),
            b.score(key),
            paired.get(key),
        )
        for key in b.scores | a.scores
    ]


def unequal_settings(facts: PairFacts) -> list[Parameter] | None:
    """The settings in which the two were trained differently; None where they are not known."""
    if facts.a.run is None or facts.b.run is None:
        return None
    rows = parameter_rows([_settings(facts.a.run), _settings(facts.b.run)], (True, True))
    # That they differ is what the table is of: no row needs a mark.
    return [replace(row, differs=False) for row in rows if row.differs]


def _settings(run: Run) -> dict[str, Any]:
    facts = run.facts
    return {
        "architecture": facts.architecture,
        **facts.params,
        "seed": facts.seed,
        "checkpoint's temperature": facts.temperature,
        "training images": facts.data.fingerprint[:12] if facts.data else None,
        "soft-label store": facts.labels.identity[:12] if facts.labels else None,
        **{f"{name}, version": version for name, version in facts.software.items()},
    }
