"""The pages of a student and of two runs, and their tables; the templates have the words."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from ltd_pipe.evaluation import results
from ltd_pipe.evaluation.results import AttackRow, Metrics, Score, eps_text
from ltd_pipe.evaluation.statistics import BINS
from ltd_pipe.report import figures, runs, verdict
from ltd_pipe.report.facts import judge_pair, judge_student, masking_text
from ltd_pipe.report.pictures import picture_side
from ltd_pipe.report.runs import Evaluation, norm_text, number_text, percent_text

if TYPE_CHECKING:
    from ltd_pipe.evaluation.results import ClassScore
    from ltd_pipe.evaluation.statistics import ConfidenceBin, Paired
    from ltd_pipe.report.facts import Facts, PairFacts
    from ltd_pipe.report.runs import Run

# Classes in the table of these: those of the lowest robust accuracy.
_MOST_CLASSES = 20
_STEPS = {"apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}


# ---------------------------------------------------------------- the pages


def render_page(facts: Facts) -> str:
    """The report as HTML that needs no other file; the same facts give the same text."""
    judged, evaluations = judge_student(facts), facts.evaluations
    return _render(
        "page.html.j2",
        facts=facts,
        metrics=facts.evaluation.metrics,
        class_names=facts.student.facts.class_names,
        verdict=judged,
        contests=contests(facts, judged),
        masking=masking_text(facts.audit),
        results=results_table(facts),
        classes=class_table(facts),
        by_eps=_of_one_norm(evaluations),
        curves=[run for run in (facts.student, facts.baseline) if run and run.curves],
        calibration=_reliability(evaluations),
        bin_table=bin_table(evaluations),
        parameters=parameter_table(facts),
        versions=version_table(facts),
    )


def render_pair(facts: PairFacts) -> str:
    """The comparison as HTML that needs no other file; the same facts give the same text."""
    sides, judged = (facts.a, facts.b), judge_pair(facts)
    return _render(
        "pair.html.j2",
        facts=facts,
        sides=sides,
        verdict=judged,
        rows=paired_rows(facts, judged),
        by_eps=_of_one_norm({side.letter: side.evaluation for side in sides}),
        curves=[side.run for side in sides if side.run and side.run.curves],
        settings=unequal_settings(facts),
    )


def _of_one_norm(evaluations: dict[str, Evaluation]) -> dict[str, Evaluation]:
    """Those that have a curve by eps in the first one's norm: radii of two norms share no axis."""
    norm = next(iter(evaluations.values())).metrics.norm
    return {k: one for k, one in evaluations.items() if one.by_eps and one.metrics.norm == norm}


def _render(template: str, **content: Any) -> str:
    """Render one of the templates beside this file, with the style that all have."""
    environment = _environment()
    style = environment.loader.get_source(environment, "page.css")[0]  # type: ignore[union-attr]
    return environment.get_template(template).render(style=Markup(style), **content)  # noqa: S704


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        # Class names and titles are the user's: all are escaped but what is marked as ours.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Each function NAME_text is the filter NAME.
    words = vars(results) | vars(runs) | vars(verdict)
    environment.filters |= {
        name.removesuffix("_text"): each for name, each in words.items() if name.endswith("_text")
    }
    environment.filters |= {
        "log": math.log,
        "thousands": "{:,}".format,
        "squeeze": lambda text: Markup(re.sub(r"[ \n]+", " ", text.strip())),  # noqa: S704  it was
    }
    environment.globals |= {
        "bins": BINS,
        "curve_attack": figures.CURVE_ATTACK,
        **{name: each for name, each in vars(figures).items() if name.startswith("draw_")},
        "not_recorded": runs.NOT_RECORDED,
        "picture_side": picture_side,
    }
    return environment


# ---------------------------------------------------------------- tables of results


@dataclass(frozen=True)
class Contest:
    """One accuracy of student and baseline; `paired` is None where they were not compared."""

    title: str
    student: Score
    baseline: Score | None = None
    paired: Paired | None = None

    @property
    def axis(self) -> tuple[float, float]:
        """Ends of an axis that holds all intervals: fractions, whole steps of 5 %."""
        scores = [score for score in (self.student, self.baseline) if score is not None]
        low = math.floor(20 * min(score.low for score in scores) - 0.2) / 20
        high = math.ceil(20 * max(score.high for score in scores) + 0.2) / 20
        return max(low, 0.0), min(high, 1.0)

    @property
    def outcome(self) -> int | None:
        """1 where the student is better, -1 the baseline, 0 where no difference is shown."""
        return None if self.paired is None else verdict.outcome(self.paired)


def contests(facts: Facts, judged: verdict.Verdict) -> dict[str, Contest]:
    """Robust and clean accuracy, as they stand at the top of the page."""
    student, found = verdict.Model("the student", facts.evaluation), {}
    for name, attack in (("Robust", judged.attack), ("Clean", "clean")):
        mine, theirs = facts.evaluation.score(attack), None
        paired = judged.comparison.paired.get(attack)
        if paired and facts.baseline_evaluation:
            theirs = facts.baseline_evaluation.score(attack)
        if mine is not None:
            found[name] = Contest(student.conditions(attack), mine, theirs, paired)
    return found


@dataclass(frozen=True)
class Row:
    """One measure."""

    title: str
    note: str
    # One per model: an accuracy, another number, or None where it was not measured.
    cells: list[Score | str | None]
    # Or `part` for a step of the attack above it, `bound` for all attacks together.
    kind: str = "main"


def results_table(facts: Facts) -> tuple[list[str], list[Row]]:
    """Names of the models, and a row for each measure that one of them has."""
    measured = list(facts.evaluations.values())
    models = {run.name: facts.evaluations.get(run.name) or _own_numbers(run) for run in facts.runs}
    metrics = [one.metrics for one in measured]
    threat = _alternatives(sorted(f"{norm_text(m.norm)}, ε = {eps_text(m.eps)}" for m in metrics))
    version = _alternatives(sorted(filter(None, (m.autoattack_version for m in metrics))))
    sets = [m.corruptions for m in metrics if m.corruptions]
    corrupted = [f"mean of {one.sets:,} sets of {one.n:,} images" for one in sets]
    # Models that were attacked in unequal ways are not put under the name of one.
    names: dict[str, list[str]] = {}
    for one in (one for m in metrics for one in m.attacks):
        if one.filed not in ("clean", "pgd", "autoattack", "all_attacks"):
            names.setdefault(one.key, []).append(one.name)
    error = "expected_calibration_error"
    pgd = _alternatives(one.attack_name("pgd") for one in measured)
    steps = dict.fromkeys(step for m in metrics for step in m.autoattack)
    rows = [
        ("Clean", "no attack", "clean", "main"),
        *((_alternatives(found), threat, key, "main") for key, found in names.items()),
        (pgd, threat, "pgd", "main"),
        ("AutoAttack", "; ".join(filter(None, (threat, version))), "autoattack", "main"),
        *((f"after {_STEPS.get(step, step)}", "", step, "part") for step in steps),
        ("Corrupted images", _alternatives(["no attack", *corrupted]), "corruption", "main"),
        ("Calibration error", "expected, on clean images; lower is better", error, "main"),
        ("under attack", "", f"{error}_under_attack", "part"),
        ("Test images", "", "n", "main"),
        # What a determined attacker leaves is below all of them.
        ("All attacks together", threat, "all-attacks", "bound"),
    ]
    table = [
        Row(title, note, [_cell(one, what) if one else None for one in models.values()], kind)
        for title, note, what, kind in rows
    ]
    return list(models), [row for row in table if any(row.cells)]


def _alternatives(texts: Iterable[str | None]) -> str:
    """What is said of several models, in one text."""
    return " / ".join(dict.fromkeys(filter(None, texts)))


def _cell(one: Evaluation, what: str) -> Score | str | None:
    """An evaluation's accuracy under an attack or after a step of AutoAttack, error, or images."""
    metrics = one.metrics
    if what == "n":
        return f"{metrics.n:,}"
    if what in metrics.autoattack:
        return Score.of(metrics.autoattack[what], metrics.n)
    if what.startswith("expected_"):
        error = getattr(metrics, what)
        return None if error is None else percent_text(error, metrics.n)
    return one.score(what)


def _own_numbers(run: Run) -> Evaluation | None:
    """What a checkpoint says of its accuracy, where that was not evaluated."""
    known = run.facts
    if known.n is None or known.clean_accuracy is None:
        return None
    found = Score.of(known.clean_accuracy, known.n)
    clean = AttackRow(
        key="clean", name="clean", n=found.n, accuracy=found.value, low=found.low, high=found.high
    )
    metrics = Metrics(
        n=known.n,
        # No attack was run: these say nothing.
        norm="linf",
        eps=1,
        attacks=(clean,),
        expected_calibration_error=known.expected_calibration_error,
        checkpoint_sha256=run.sha256,
    )
    return Evaluation(metrics)


def class_table(facts: Facts) -> tuple[list[str], list[Row]]:
    """Titles of the columns, and the accuracy of each class, the lowest under attack first."""
    models = {name: one.by_class for name, one in facts.evaluations.items() if one.by_class}
    if "student" not in models:
        return [], []
    # One attack for all: unequal ones have no order.
    there = set.intersection(*(set(row) for one in models.values() for row in one.values()))
    attacks = [key for key in ("all-attacks", "autoattack", "pgd") if key in there]
    keys = ["clean", *attacks[:1]]
    named = {row.key: row.name for row in facts.evaluation.metrics.attacks}

    def worst(scores: dict[str, ClassScore]) -> float:
        accuracy = scores[keys[-1]].accuracy
        return 2 if accuracy is None else accuracy

    rows = []
    for name, scores in sorted(models["student"].items(), key=lambda item: worst(item[1])):
        found = [one.get(name, {}).get(key) for one in models.values() for key in keys]
        n, cells = scores["clean"].n, [one.score if one else None for one in found]
        rows.append(Row(name, f"{n:,} image{'s' * (n != 1)}", [*cells]))
    titles = [f"{model}, {named.get(key, key)}" for model in models for key in keys]
    return titles, rows[:_MOST_CLASSES]


@dataclass(frozen=True)
class PairedRow:
    """One attack of two runs; None where nothing was measured, or compared."""

    title: str
    a: Score | None
    b: Score | None
    paired: Paired | None


def paired_rows(facts: PairFacts, judged: verdict.Verdict) -> list[PairedRow]:
    """Clean accuracy and each attack of either run, in the order they ran."""
    a, b = facts.a.evaluation, facts.b.evaluation
    paired = {key.replace("-", "_"): one for key, one in judged.comparison.paired.items()}
    return [
        PairedRow(
            (b if key in b.scores else a).attack_name(key).replace("_", " "),
            a.score(key),
            b.score(key),
            paired.get(key),
        )
        for key in b.scores | a.scores
    ]


# ---------------------------------------------------------------- tables of settings


@dataclass(frozen=True)
class Parameter:
    """A parameter of several models: a text for each, and whether they differ unexpectedly."""

    name: str
    values: tuple[str, ...]
    differs: bool = False


def _table(
    columns: Mapping[str, Mapping[str, str]], names: Iterable[str], alike: Sequence[str] = ()
) -> tuple[list[str], list[Parameter]]:
    """Columns, and a row for each name; those columns that are `alike` should not differ."""
    return list(columns), [
        Parameter(
            name,
            tuple(column.get(name, "") for column in columns.values()),
            len({columns[which].get(name, "") for which in alike}) > 1,
        )
        for name in names
    ]


def _reliability(
    models: Mapping[str, Evaluation],
) -> dict[str, dict[str, tuple[ConfidenceBin, ...]]]:
    """Bins by the names of reliability.json and the models that have them."""
    return {
        condition: {
            name: getattr(one.reliability, condition)
            for name, one in models.items()
            if one.reliability
        }
        for condition in ("clean", "under_attack")
    }


def bin_table(models: Mapping[str, Evaluation]) -> tuple[list[str], list[Parameter]]:
    """The numbers behind the reliability diagrams: columns, and a row for each bin."""
    names = [f"{100 * k / BINS:.0f} to {100 * (k + 1) / BINS:.0f}\u00a0%" for k in range(BINS)]
    columns = {
        f"{model}, {condition.replace('_', ' ')}": {
            names[one.number]: f"{one.count:,} images, {percent_text(one.accuracy, 1)} right"
            for one in bins
        }
        for condition, found in _reliability(models).items()
        for model, bins in found.items()
    }
    return _table(columns, [name for name in names if any(name in one for one in columns.values())])


def parameter_table(facts: Facts) -> tuple[list[str], list[Parameter]]:
    """Names of the models, and every parameter that they were trained with."""
    params = {run.name: run.facts.params for run in facts.runs if run.facts.params}
    # The teacher is trained otherwise: only student and baseline are to be alike.
    return _parameters(params, [name for name in params if name != "teacher"])


def _parameters(
    params: Mapping[str, Mapping[str, Any]], alike: Sequence[str]
) -> tuple[list[str], list[Parameter]]:
    columns = {
        model: {name: _value_text(name, value) for name, value in one.items()}
        for model, one in params.items()
    }
    return _table(columns, sorted({name for one in params.values() for name in one}), alike)


def unequal_settings(facts: PairFacts) -> list[Parameter] | None:
    """The settings in which the two were trained differently; None where they are not known."""
    if facts.a.run is None or facts.b.run is None:
        return None
    _, rows = _parameters({"A": _settings(facts.a.run), "B": _settings(facts.b.run)}, "AB")
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


def _value_text(name: str, value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return eps_text(value) if name in ("eps", "step_size") else number_text(value)
        case list():
            return ", ".join(map(str, value))
    return str(value)


def version_table(facts: Facts) -> tuple[list[str], list[Parameter]]:
    """What wrote each result, and the versions of the software it ran with."""
    software = {run.name: run.facts.software for run in facts.runs}
    if facts.labels is not None:
        software["labels"] = facts.labels.attributes.software
    software["evaluation"] = facts.evaluation.settings.software
    order = ("teacher", "labels", "student", "baseline", "evaluation")
    used = {name: software[name] for name in order if software.get(name)}
    packages = dict.fromkeys(package for one in used.values() for package in one)
    if len(used) > 1 and all(one == used.get("student") for one in used.values()):
        # One column where all are equal, as they are when one machine ran everything.
        used = {", ".join(used): used["student"]}
    names, rows = _table(used, packages)
    return names, [replace(row, differs=len({*row.values} - {""}) > 1) for row in rows]
