"""The page's drawings, each with a caption that stands for it where it cannot be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from pipeline.report.figures import (
    EpsSeries,
    Series,
    draw_curves,
    draw_eps,
    draw_histogram,
    draw_loss_surface,
)
from pipeline.report.origin import Parameter
from pipeline.report.reliability import BINS, draw_reliability
from pipeline.report.scores import CURVE_ATTACK
from pipeline.report.wording import eps_text, interval_text, number_text, percent_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.report.facts import Facts
    from pipeline.report.reliability import Bin
    from pipeline.report.runs import Run
    from pipeline.report.scores import Scores

__all__ = [
    "Figure",
    "bin_table",
    "calibration_figures",
    "curve_figures",
    "epoch_figures",
    "eps_figure",
    "histogram_figure",
    "surface_figure",
]


@dataclass(frozen=True)
class Figure:
    """A drawing and what it shows, in words that stand for it where it cannot be seen."""

    svg: Markup
    title: str
    caption: str


def curve_figures(facts: Facts) -> list[Figure]:
    """Robust accuracy by eps, and the measures of training by epoch, as far as they are there."""
    runs = [run for run in (facts.student, facts.baseline) if run is not None]
    pairs = ((facts.student, facts.scores), (facts.baseline, facts.baseline_scores))
    measured = [
        EpsSeries(run.name, scores.by_eps, scores.metrics.eps, scores.score("autoattack_accuracy"))
        for run, scores in pairs
        if run is not None and scores is not None and scores.by_eps
    ]
    by_eps = eps_figure(measured, facts.scores.metrics.n)
    return [figure for figure in (by_eps, *epoch_figures(runs)) if figure]


def epoch_figures(runs: Sequence[Run]) -> list[Figure]:
    """The measures of training by epoch, of runs whose names are styles of `drawing`."""
    found = (_curves(runs, measure, label) for measure, label in _MEASURES.items())
    return [figure for figure in found if figure is not None]


_MEASURES = {
    "validation/robust_accuracy": "robust accuracy, %",
    "validation/clean_accuracy": "clean accuracy, %",
    "train/loss": "loss",
}
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


def _curves(every: Sequence[Run], measure: str, label: str) -> Figure | None:
    runs = [run for run in every if measure in run.curves]
    if not runs:
        return None
    percent = measure.endswith("accuracy")
    series = [_series(run, measure, ring=percent) for run in runs]
    name = measure.replace("/", "-").replace("_", "-")
    svg = draw_curves(name, series, label=label, percent=percent)
    title, caption = _TITLES[measure]
    ends = "; ".join(_last(run, measure, percent=percent) for run in runs)
    return Figure(_ours(svg), title, f"{caption} Last epoch: {ends}.")


def _series(run: Run, measure: str, *, ring: bool) -> Series:
    epoch = run.facts.epoch
    chosen = epoch + 1 if ring and epoch is not None else None
    return Series(run.name, run.curves[measure], chosen)


def _last(run: Run, measure: str, *, percent: bool) -> str:
    values = run.curves[measure].values
    if not len(values):
        return f"{run.name} none"
    return f"{run.name} {percent_text(values[-1], 1) if percent else number_text(values[-1])}"


def eps_figure(series: Sequence[EpsSeries], n: int) -> Figure | None:
    """Robust accuracy by eps of models.

    Parameters
    ----------
    series : sequence of EpsSeries
    n : int
        Images of the first one's evaluation; of older ones, whose curve does not say its own.
    """
    if not series:
        return None
    widest = series[0].points[-1]
    behind = widest.n or n
    end = percent_text(widest.robust_accuracy, behind)
    bounds = interval_text(widest.low, widest.high, behind)
    return Figure(
        _ours(draw_eps("by-eps", series)),
        "Robust accuracy by strength of the attack",
        f"{CURVE_ATTACK} with 95 % bands; diamonds are AutoAttack. At ε = "
        f"{eps_text(widest.eps)} {_article(series[0].run)} keeps {end} "
        f"(95 % interval {bounds}) of {behind:,} images. A sound evaluation falls to 0 % as ε "
        "grows.",
    )


def _article(run: str) -> str:
    return run if run in ("A", "B") else f"the {run}"


def histogram_figure(facts: Facts) -> Figure | None:
    """How sure the teacher is; None without soft labels."""
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


def surface_figure(facts: Facts) -> Figure | None:
    """The loss around some images; None without an audit that measured it."""
    audit = facts.audit
    surface = audit.loss_surface if audit is not None else None
    if audit is None or surface is None:
        return None
    return Figure(
        _ours(draw_loss_surface("loss-surface", surface, audit.eps)),
        f"The loss around {surface.n} images",
        f"The square is the ball of ε = {eps_text(audit.eps)}. A smooth slope, steeper along the "
        "gradient than along a random direction, is what attacks need; a plateau, or crags, is "
        "what masking looks like.",
    )


# By the names of reliability.json; the second is what the calibration error is called.
_CONDITIONS = {
    "clean": ("Confidence on clean images", "expected_calibration_error"),
    "under_attack": ("Confidence under attack", "expected_calibration_error_under_attack"),
}


def calibration_figures(facts: Facts) -> list[Figure]:
    """Reliability diagrams of student and baseline, clean and under attack."""
    measured = _measured(facts)
    return [
        Figure(
            _ours(draw_reliability(name.replace("_", "-"), _bins_of(measured, name))),
            title,
            _calibration_caption(name, error, measured),
        )
        for name, (title, error) in _CONDITIONS.items()
        if measured
    ]


def _measured(facts: Facts) -> dict[str, Scores]:
    pairs = {"student": facts.scores, "baseline": facts.baseline_scores}
    return {name: one for name, one in pairs.items() if one is not None and one.reliability}


def _bins_of(measured: dict[str, Scores], name: str) -> dict[str, tuple[Bin, ...]]:
    return {model: getattr(scores.reliability, name) for model, scores in measured.items()}


def _calibration_caption(name: str, error: str, measured: dict[str, Scores]) -> str:
    errors = {model: getattr(scores.metrics, error) for model, scores in measured.items()}
    told = [
        f"{model} {percent_text(value, measured[model].metrics.n)}"
        for model, value in errors.items()
        if value is not None
    ]
    attack = " / ".join(sorted({_first_start(scores) for scores in measured.values()}))
    condition = f"Under {attack}, on all images. " if name == "under_attack" else ""
    return f"{condition}Expected calibration error ({BINS} bins): {', '.join(told)}."


def _first_start(scores: Scores) -> str:
    # Without the number of restarts: the others do not reach all images.
    name = scores.pgd_name.partition(",")[0]
    return f"the first start of {name} at ε = {eps_text(scores.metrics.eps)}"


def bin_table(facts: Facts) -> tuple[tuple[str, ...], tuple[Parameter, ...]]:
    """The numbers behind the reliability diagrams: columns, and a row for each bin."""
    measured = _measured(facts)
    columns = {
        f"{model}, {name.replace('_', ' ')}": {one.number: one for one in bins}
        for name in _CONDITIONS
        for model, bins in _bins_of(measured, name).items()
    }
    found = sorted({number for column in columns.values() for number in column})
    rows = (
        Parameter(_range_text(k), tuple(_bin_text(c.get(k)) for c in columns.values()), False)
        for k in found
    )
    return tuple(columns), tuple(rows)


def _range_text(number: int) -> str:
    return f"{100 * number / BINS:.0f} to {100 * (number + 1) / BINS:.0f}\u00a0%"


def _bin_text(one: Bin | None) -> str:
    if one is None:
        return ""
    return f"{one.count:,} images, {percent_text(one.accuracy, 1)} right"


def _ours(svg: str) -> Markup:
    # Drawn by us from numbers alone: no text of the user's is in a figure.
    return Markup(svg)  # noqa: S704
