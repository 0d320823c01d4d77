"""The page: facts in, one HTML text out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.report.captioned import (
    bin_table,
    calibration_figures,
    curve_figures,
    histogram_figure,
    surface_figure,
)
from pipeline.report.gallery import attacked_pictures, magnification_text, soft_pictures
from pipeline.report.origin import parameter_table, sources, version_table
from pipeline.report.rendering import render
from pipeline.report.scores import CURVE_ATTACK
from pipeline.report.table import class_table, results_table
from pipeline.report.verdict import judge_student

if TYPE_CHECKING:
    from pipeline.report.facts import Facts

__all__ = ["render_page"]


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
    return render("page.html.j2", _content(facts))


def _not_measured(facts: Facts) -> dict[str, str]:
    """What each evaluation says that it left out, by the model's name."""
    every = {"student": facts.scores, "baseline": facts.baseline_scores}
    found = {name: one.metrics.not_measured for name, one in every.items() if one is not None}
    return {name: ", ".join(lacks) for name, lacks in found.items() if lacks}


def _made(facts: Facts) -> str:
    """How the student came about, as far as its run says so."""
    run, params = facts.student, facts.student.facts.params
    commit = run.timing.commit if run.timing else None
    told = {
        "objective": params.get("objective"),
        "epochs": params.get("epochs"),
        "commit": commit,
    }
    parts = (
        f"{value} epochs" if what == "epochs" else f"{what} {value}"
        for what, value in told.items()
        if value is not None
    )
    return ", ".join(parts)


def _content(facts: Facts) -> dict[str, Any]:
    names, rows = results_table(facts)
    class_names = facts.student.facts.class_names
    eps = facts.scores.metrics.eps
    labels = facts.labels
    return {
        "facts": facts,
        "verdict": judge_student(facts),
        "made": _made(facts),
        "models": names,
        "rows": rows,
        "classes": class_table(facts),
        "not_measured": _not_measured(facts),
        "figures": curve_figures(facts),
        "calibration": calibration_figures(facts),
        "bins": bin_table(facts),
        "surface": surface_figure(facts),
        "uniform_entropy": math.log(len(class_names)),
        "histogram": histogram_figure(facts),
        "soft": soft_pictures(labels.ambiguous, class_names) if labels else (),
        "contradicted": soft_pictures(labels.contradicted, class_names) if labels else (),
        "attacked": attacked_pictures(facts.examples, class_names, eps) if facts.examples else (),
        "curve_attack": CURVE_ATTACK,
        "magnification": magnification_text(eps),
        "sources": sources(facts),
        "parameters": parameter_table(facts),
        "versions": version_table(facts),
    }
