"""The page of two runs: facts in, one HTML text out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.report.captioned import epoch_figures, eps_figure
from pipeline.report.figures import EpsSeries
from pipeline.report.origin import Parameter, parameter_rows
from pipeline.report.rendering import render
from pipeline.report.verdict import judge_pair, p_text, points_text, signed_text
from pipeline.report.wording import interval_text, percent_text

if TYPE_CHECKING:
    from pipeline.compare.mcnemar import Paired
    from pipeline.report.pair import PairFacts, Side
    from pipeline.report.runs import Run
    from pipeline.report.scores import Score

__all__ = ["PairedRow", "paired_rows", "render_pair", "setting_rows"]


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
