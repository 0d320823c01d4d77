"""The page: facts in, one HTML text out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from pipeline.report.figures import EpsSeries, Series, draw_curves, draw_eps, draw_histogram
from pipeline.report.gallery import attacked_pictures, magnification_text, soft_pictures
from pipeline.report.origin import parameter_table, sources, version_table
from pipeline.report.scores import CURVE_ATTACK
from pipeline.report.table import results_table
from pipeline.report.verdict import judge
from pipeline.report.wording import eps_text, interval_text, norm_text, number_text, percent_text

if TYPE_CHECKING:
    from pipeline.report.facts import Facts
    from pipeline.report.runs import Run

__all__ = ["Figure", "render_page"]


@dataclass(frozen=True)
class Figure:
    """A drawing and what it shows, in words that stand for it where it cannot be seen."""

    svg: Markup
    title: str
    caption: str


def render_page(facts: Facts) -> str:
    """Render the report.

    Parameters
    ----------
    facts : Facts

    Returns
    -------
    str
        HTML that needs no other file and no network; the same facts give the same text.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        # Class names and titles are the user's: all are escaped but what is marked as ours.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent_text,
        "interval": interval_text,
        "eps": eps_text,
        "norm": norm_text,
        "number": number_text,
    }
    style = Markup((folder / "page.css").read_text(encoding="utf-8"))  # noqa: S704
    return environment.get_template("page.html.j2").render(style=style, **_content(facts))


def _content(facts: Facts) -> dict[str, Any]:
    names, rows = results_table(facts)
    class_names = facts.student.facts.class_names
    eps = facts.scores.metrics.eps
    labels = facts.labels
    return {
        "facts": facts,
        "verdict": judge(facts),
        "models": names,
        "rows": rows,
        "figures": _figures(facts),
        "uniform_entropy": math.log(len(class_names)),
        "histogram": _histogram(facts),
        "soft": soft_pictures(labels.ambiguous, class_names) if labels else (),
        "attacked": attacked_pictures(facts.examples, class_names, eps) if facts.examples else (),
        "curve_attack": CURVE_ATTACK,
        "magnification": magnification_text(eps),
        "sources": sources(facts),
        "parameters": parameter_table(facts),
        "versions": version_table(facts),
    }


def _figures(facts: Facts) -> list[Figure]:
    robust = _curves(facts, "validation/robust_accuracy", "robust accuracy, %")
    clean = _curves(facts, "validation/clean_accuracy", "clean accuracy, %")
    return [figure for figure in (_eps_figure(facts), robust, clean, _loss(facts)) if figure]


_RING = "The ring is the checkpoint that was kept."
_TITLES = {
    "validation/robust_accuracy": (
        "Robust accuracy while training",
        f"On the validation split, under the attack of training. {_RING}",
    ),
    "validation/clean_accuracy": (
        "Clean accuracy while training",
        f"On the validation split, without an attack. {_RING}",
    ),
    "train/loss": (
        "Loss while training",
        (
            "Mean over the epoch's training images under attack. Losses on different labels "
            "cannot be compared by height: a soft label's own entropy is part of its loss."
        ),
    ),
}


def _curves(facts: Facts, measure: str, label: str) -> Figure | None:
    runs = [run for run in (facts.student, facts.baseline) if run and measure in run.curves]
    if not runs:
        return None
    percent = measure.endswith("accuracy")
    series = [_series(run, measure, ring=percent) for run in runs]
    name = measure.replace("/", "-").replace("_", "-")
    svg = draw_curves(name, series, label=label, percent=percent)
    title, caption = _TITLES[measure]
    ends = "; ".join(_last(run, measure, percent=percent) for run in runs)
    return Figure(_ours(svg), title, f"{caption} Last epoch: {ends}.")


def _loss(facts: Facts) -> Figure | None:
    return _curves(facts, "train/loss", "loss")


def _series(run: Run, measure: str, *, ring: bool) -> Series:
    epoch = run.facts.epoch
    chosen = epoch + 1 if ring and epoch is not None else None
    return Series(run.name, run.curves[measure], chosen)


def _last(run: Run, measure: str, *, percent: bool) -> str:
    values = run.curves[measure].values
    if not len(values):
        return f"{run.name} none"
    return f"{run.name} {percent_text(values[-1], 1) if percent else number_text(values[-1])}"


def _eps_figure(facts: Facts) -> Figure | None:
    pairs = ((facts.student, facts.scores), (facts.baseline, facts.baseline_scores))
    series = [
        EpsSeries(
            run.name,
            scores.by_eps,
            scores.metrics.eps,
            scores.score("autoattack_accuracy"),
        )
        for run, scores in pairs
        if run is not None and scores is not None and scores.by_eps
    ]
    if not series:
        return None
    widest = series[0].points[-1]
    end = percent_text(widest.robust_accuracy, facts.scores.metrics.n)
    return Figure(
        _ours(draw_eps("by-eps", series)),
        "Robust accuracy by strength of the attack",
        f"{CURVE_ATTACK} with 95 % bands; diamonds are AutoAttack. At ε = "
        f"{eps_text(widest.eps)} the {series[0].run} keeps {end}. A sound "
        "evaluation falls to 0 % as ε grows.",
    )


def _histogram(facts: Facts) -> Figure | None:
    if facts.labels is None:
        return None
    summary, counts = facts.labels.summary, facts.labels.histogram
    sure = percent_text(int(counts[-2:].sum()) / max(int(counts.sum()), 1), 1)
    return Figure(
        _ours(draw_histogram("top-probability", counts, summary.mean_top_probability)),
        "How sure the teacher is",
        f"Training images by the largest probability of their soft label: {sure} are at 0.9 "
        "or above.",
    )


def _ours(svg: str) -> Markup:
    # Drawn by us from numbers alone: no text of the user's is in a figure.
    return Markup(svg)  # noqa: S704
