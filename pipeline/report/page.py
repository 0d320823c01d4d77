"""The page: facts in, one HTML text out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from ltd_pipe.evaluation.results import Score, eps_text
from ltd_pipe.evaluation.statistics import BINS
from ltd_pipe.report.facts import Parameter, parameter_table, sources, version_table
from ltd_pipe.report.figures import (
    EpsSeries,
    Series,
    attacked_pictures,
    draw_curves,
    draw_eps,
    draw_histogram,
    draw_loss_surface,
    magnification_text,
    soft_pictures,
)
from ltd_pipe.report.reliability import draw_reliability
from ltd_pipe.report.runs import CURVE_ATTACK, interval_text, norm_text, number_text, percent_text
from ltd_pipe.report.verdict import judge_student

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ltd_pipe.evaluation.results import ClassScore
    from ltd_pipe.evaluation.statistics import ConfidenceBin
    from ltd_pipe.report.facts import Facts
    from ltd_pipe.report.runs import Run, Scores


# --- Templates to one HTML text, with nothing beside it.


def render(template: str, content: dict[str, Any]) -> str:
    """Render one of the templates beside this file, with the style that all have.

    Parameters
    ----------
    template : str
        File name.
    content : dict
        What the template shows.
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
    return environment.get_template(template).render(style=style, **content)


# --- The page's drawings, each with a caption that stands for it where it cannot be seen.


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
        EpsSeries(
            run.name, scores.by_eps, scores.metrics.eps, scores.metrics.score("autoattack_accuracy")
        )
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


def _bins_of(measured: dict[str, Scores], name: str) -> dict[str, tuple[ConfidenceBin, ...]]:
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


def _bin_text(one: ConfidenceBin | None) -> str:
    if one is None:
        return ""
    return f"{one.count:,} images, {percent_text(one.accuracy, 1)} right"


def _ours(svg: str) -> Markup:
    # Drawn by us from numbers alone: no text of the user's is in a figure.
    return Markup(svg)  # noqa: S704


# --- The table of results: measures down, models across.


# Classes in the table of these: those of the lowest robust accuracy.
_MOST_CLASSES = 20

_ATTACKS = {"apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}


@dataclass(frozen=True)
class Cell:
    """A number and its interval; both empty where it was not measured."""

    number: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """One measure.

    Attributes
    ----------
    title, note : str
    cells : tuple of Cell
        One per model.
    kind : str
        `main`, `part` for a step of the attack above it, or `bound` for all attacks together.
    """

    title: str
    note: str
    cells: tuple[Cell, ...]
    kind: str = "main"


@dataclass(frozen=True)
class _Column:
    run: Run
    scores: Scores | None


def results_table(facts: Facts) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """The table's columns and rows.

    Returns
    -------
    tuple
        Names of the models, and the rows; a measure that no model has is left out.
    """
    columns = [_Column(facts.student, facts.scores)]
    if facts.baseline is not None:
        columns.append(_Column(facts.baseline, facts.baseline_scores))
    if facts.teacher is not None:
        columns.append(_Column(facts.teacher, None))
    rows = [
        Row("Clean", "no attack", tuple(_clean(column) for column in columns)),
        *_attacked(columns),
        Row(
            "Corrupted images",
            _corruption_note(columns),
            tuple(
                _cell(c.scores.metrics.score("corruption_accuracy") if c.scores else None)
                for c in columns
            ),
        ),
        Row(
            "Calibration error",
            "expected, on clean images; lower is better",
            tuple(_calibration(column) for column in columns),
        ),
        Row(
            "under attack",
            "",
            tuple(_calibration_under_attack(column) for column in columns),
            kind="part",
        ),
        Row("Test images", "", tuple(Cell(f"{n:,}" if (n := _n(c)) else "") for c in columns)),
        # What a determined attacker leaves is below all of them.
        Row("All attacks together", _threats(columns), _attack(columns, _TOGETHER), kind="bound"),
    ]
    found = [row for row in rows if any(cell.number for cell in row.cells)]
    return tuple(column.run.name for column in columns), tuple(found)


def class_table(facts: Facts) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Accuracy of each class, the lowest under attack first; at most 20 classes.

    Returns
    -------
    tuple
        Titles of the columns, clean and under attack for each model, and the rows; both empty
        where the student's evaluation has none.
    """
    every = {"student": facts.scores, "baseline": facts.baseline_scores}
    models = {name: one.by_class for name, one in every.items() if one is not None and one.by_class}
    if "student" not in models:
        return (), ()
    order = ("all-attacks", "autoattack", "pgd")
    # One attack for all: unequal ones have no order.
    there = [set.intersection(*(set(row) for row in one.values())) for one in models.values()]
    attack = next((key for key in order if all(key in keys for keys in there)), None)
    keys = ("clean", *filter(None, [attack]))
    named = {row.key: row.name for row in facts.scores.metrics.attacks}
    titles = {"clean": "clean", attack: named.get(str(attack), str(attack))}

    def worst(row: dict[str, ClassScore]) -> float:
        accuracy = row[keys[-1]].accuracy
        return 2 if accuracy is None else accuracy

    names = sorted(models["student"], key=lambda name: worst(models["student"][name]))
    rows = []
    for name in names[:_MOST_CLASSES]:
        found = [one.get(name, {}).get(key) for one in models.values() for key in keys]
        n = models["student"][name]["clean"].n
        cells = tuple(_cell(one.score if one else None) for one in found)
        rows.append(Row(name, f"{n:,} image{'s' * (n != 1)}", cells))
    return tuple(f"{model}, {titles[key]}" for model in models for key in keys), tuple(rows)


def _n(column: _Column) -> int | None:
    return column.scores.metrics.n if column.scores is not None else column.run.facts.n


def _cell(score: Score | None) -> Cell:
    if score is None:
        return Cell()
    return Cell(percent_text(score.value, score.n), interval_text(score.low, score.high, score.n))


def _clean(column: _Column) -> Cell:
    facts = column.run.facts
    if column.scores is not None:
        return _cell(column.scores.metrics.score("clean_accuracy"))
    if facts.clean_accuracy is None or facts.n is None:
        return Cell()
    return _cell(Score.of(facts.clean_accuracy, facts.n))


def _corruption_note(columns: list[_Column]) -> str:
    sets = [c.scores.metrics.corruptions for c in columns if c.scores is not None]
    notes = [f"mean of {one.sets:,} sets of {one.n:,} images" for one in sets if one is not None]
    return " / ".join(["no attack", *dict.fromkeys(notes)])


def _calibration(column: _Column) -> Cell:
    scores, n = column.scores, _n(column)
    error = (
        scores.metrics.expected_calibration_error
        if scores is not None
        else column.run.facts.expected_calibration_error
    )
    return Cell(percent_text(error, n)) if error is not None and n is not None else Cell()


def _calibration_under_attack(column: _Column) -> Cell:
    if column.scores is None:
        return Cell()
    metrics = column.scores.metrics
    error = metrics.expected_calibration_error_under_attack
    return Cell() if error is None else Cell(percent_text(error, metrics.n))


def _attacked(columns: list[_Column]) -> list[Row]:
    def cells(name: str) -> tuple[Cell, ...]:
        return tuple(_cell(c.scores.metrics.score(name) if c.scores else None) for c in columns)

    at = _threats(columns)
    versions = {c.scores.metrics.autoattack_version for c in columns if c.scores is not None}
    version = " / ".join(sorted(filter(None, versions)))
    rows = [Row(name, at, _attack(columns, key)) for key, name in _more_attacks(columns).items()]
    rows += [
        Row(_pgd_names(columns), at, cells("pgd_accuracy")),
        Row("AutoAttack", "; ".join(filter(None, (at, version))), cells("autoattack_accuracy")),
    ]
    names = [name for c in columns if c.scores is not None for name in c.scores.metrics.autoattack]
    # A dict keeps the order in which the attacks ran.
    for name in dict.fromkeys(names):
        title = f"after {_ATTACKS.get(name, name)}"
        rows.append(Row(title, "", tuple(_after(c, name) for c in columns), kind="part"))
    return rows


def _attack(columns: list[_Column], key: str) -> tuple[Cell, ...]:
    return tuple(_cell(c.scores.attack(key) if c.scores else None) for c in columns)


def _threats(columns: list[_Column]) -> str:
    return " / ".join(sorted({_threat(c.scores) for c in columns if c.scores is not None}))


# They have rows of their own.
_TOGETHER = "all-attacks"
_OWN_ROWS = {"clean", "pgd", "autoattack", _TOGETHER}


def _more_attacks(columns: list[_Column]) -> dict[str, str]:
    """Names of the other attacks by their keys, in the order in which they ran."""
    found = [row for c in columns if c.scores is not None for row in c.scores.metrics.attacks]
    names: dict[str, dict[str, None]] = {}
    for row in found:
        if row.key not in _OWN_ROWS:
            names.setdefault(row.key, {})[row.name] = None
    return {key: " / ".join(each) for key, each in names.items()}


def _pgd_names(columns: list[_Column]) -> str:
    # Models that were attacked by unequal PGDs are not put under the name of one.
    return " / ".join(dict.fromkeys(c.scores.pgd_name for c in columns if c.scores is not None))


def _threat(scores: Scores) -> str:
    return f"{norm_text(scores.metrics.norm)}, ε = {eps_text(scores.metrics.eps)}"


def _after(column: _Column, attack: str) -> Cell:
    metrics = column.scores.metrics if column.scores is not None else None
    if metrics is None or attack not in metrics.autoattack:
        return Cell()
    return _cell(Score.of(metrics.autoattack[attack], metrics.n))


# --- The page: facts in, one HTML text out.


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
