"""The table of results: measures down, models across."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.scores import Score
from pipeline.report.wording import eps_text, interval_text, norm_text, percent_text

if TYPE_CHECKING:
    from pipeline.report.facts import Facts
    from pipeline.report.runs import Run
    from pipeline.report.scores import ClassScore, Scores

__all__ = ["Cell", "Row", "class_table", "results_table"]

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
                _cell(c.scores.score("corruption_accuracy") if c.scores else None) for c in columns
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
        return _cell(column.scores.score("clean_accuracy"))
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
        return tuple(_cell(c.scores.score(name) if c.scores else None) for c in columns)

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
