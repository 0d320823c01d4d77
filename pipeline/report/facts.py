"""All that the page shows, read from the files of the earlier stages and held against itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ltd_pipe.errors import ResultError
from ltd_pipe.evaluation.results import eps_text, read_audit
from ltd_pipe.images.manifest import Manifest, manifest_path
from ltd_pipe.report.compare import Comparison, compare, evaluated
from ltd_pipe.report.figures import Examples, LabelFacts, read_examples, read_labels
from ltd_pipe.report.runs import (
    Run,
    Scores,
    duration_text,
    measured_of,
    norm_text,
    number_text,
    percent_text,
    read_run,
    read_scores,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ltd_pipe.evaluation.results import AttackSettings, Audit
    from ltd_pipe.params import ReportParams


# --- Provenance: what made the numbers, in full.


_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Source:
    """One thing that a number depends on.

    Attributes
    ----------
    title : str
    entries : tuple of (term, value)
    """

    title: str
    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter of several models.

    Attributes
    ----------
    name : str
    values : tuple of str
        One per model; empty where it has none such.
    differs : bool
        Models that should have been made alike differ in it.
    """

    name: str
    values: tuple[str, ...]
    differs: bool


def sources(facts: Facts) -> tuple[Source, ...]:
    """Data, teacher, labels, student, baseline and evaluation, as far as they are there."""
    found = [_data(facts), _labels_origin(facts)]
    found += [_model(run) for run in (facts.teacher, facts.student, facts.baseline) if run]
    found.append(_evaluation("Evaluation of the student", facts.scores))
    if facts.baseline_scores is not None:
        found.append(_evaluation("Evaluation of the baseline", facts.baseline_scores))
    if facts.audit is not None:
        found.append(_audit_origin(facts.audit))
    return tuple(source for source in found if source.entries)


def _data(facts: Facts) -> Source:
    names = facts.student.facts.class_names
    shape = "×".join(str(side) for side in facts.student.facts.shape)
    used = facts.student.facts.data
    entries = [("data set", used.dataset if used else _UNKNOWN)]
    entries.append(("fingerprint of the training images", used.fingerprint if used else _UNKNOWN))
    manifest = facts.manifest
    if manifest is not None:
        entries.append(("training images", f"{manifest.num_samples:,}"))
        held_out = percent_text(manifest.validation_fraction, 1)
        entries.append(("held out for validation", f"about {held_out}, chosen by their hashes"))
    entries.append(("image", f"{shape} (channels, height, width)"))
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    entries.append((f"{len(names)} classes", shown))
    test = facts.scores.settings.data_fingerprint
    entries.append(("fingerprint of the test images", test or _UNKNOWN))
    return Source("Data", tuple(entries))


def _labels_origin(facts: Facts) -> Source:
    if facts.labels is None:
        return Source("Soft labels", ())
    attributes = facts.labels.attributes
    entries = [
        ("identity of the store", facts.labels.identity),
        ("temperature", number_text(attributes.temperature)),
        ("labels", f"{attributes.num_samples:,} × {attributes.num_classes} classes"),
        ("data set", f"{attributes.dataset.name}, {attributes.dataset.split}"),
    ]
    entries += [(f"teacher {one.architecture}", one.sha256) for one in attributes.teachers]
    return Source("Soft labels", tuple(entries))


def _model(run: Run) -> Source:
    facts = run.facts
    entries = [
        ("architecture", facts.architecture),
        ("SHA-256 of model.safetensors", run.sha256),
        ("seed", _UNKNOWN if facts.seed is None else str(facts.seed)),
        ("temperature of the model", number_text(facts.temperature)),
    ]
    if facts.params.get("label_kind") is not None:
        entries.append(("labels", run.label_name))
    if facts.labels is not None:
        entries.append(("store it was trained on", facts.labels.identity))
    if facts.epoch is not None:
        # Checkpoints count epochs from zero, people from one.
        entries.append(("epoch of the checkpoint", _chosen(run)))
    collapse = facts.catastrophic_overfitting
    if collapse is not None:
        what = f"at epoch {collapse.epoch + 1}: PGD left {collapse.robust_accuracy:.1%} right"
        entries.append(("catastrophic overfitting", what))
    if run.timing is not None:
        entries.append(("time of training", duration_text(run.timing.seconds)))
        entries.append(("training speed", f"{run.timing.images_per_second:,.0f} images/s"))
    entries.append(("hardware", _hardware(facts.hardware)))
    return Source(run.name.capitalize(), tuple(entries))


def _chosen(run: Run) -> str:
    epochs = run.facts.params.get("epochs")
    number = (run.facts.epoch or 0) + 1
    return f"{number} of {epochs}" if epochs else str(number)


def _hardware(hardware: Mapping[str, Any]) -> str:
    parts = [
        f"{hardware['gpus']} × {hardware['gpu']}"
        if "gpu" in hardware and "gpus" in hardware
        else "",
        str(hardware.get("cpu", "")),
        f"{hardware['threads']} threads" if "threads" in hardware else "",
    ]
    return ", ".join(part for part in parts if part) or _UNKNOWN


def _evaluation(title: str, scores: Scores) -> Source:
    settings, metrics = scores.settings, scores.metrics
    radius = f"{eps_text(metrics.eps)}, {norm_text(metrics.norm)}"
    entries = [("test images", f"{metrics.n:,}"), ("ε", radius)]
    for attack in settings.attacks:
        step = "" if attack.step_size is None else f", step {eps_text(attack.step_size)}"
        entries.append((attack.name, f"{_steps(attack)}{step}"))
    if settings.autoattack_version is not None:
        entries.append(("AutoAttack", settings.autoattack_version))
    if settings.seed is not None:
        entries.append(("seed", str(settings.seed)))
    if settings.hardware:
        entries.append(("hardware", _hardware(settings.hardware)))
    return Source(title, tuple(entries))


def _audit_origin(audit: Audit) -> Source:
    radius = f"{eps_text(audit.eps)}, {norm_text(audit.norm)}"
    known = {
        "PGD": None if audit.steps is None else f"{audit.steps} steps",
        "PGD's restarts": audit.restarts,
        "queries of Square": None if audit.square_queries is None else f"{audit.square_queries:,}",
        "transfer from": ", ".join(audit.sources) or None,
        "seed": audit.seed,
    }
    entries = [(term, str(value)) for term, value in known.items() if value is not None]
    head = [("test images", f"{audit.n:,}"), ("ε", radius)]
    return Source("Audit of the student", (*head, *entries))


def _steps(attack: AttackSettings) -> str:
    counts = {"step": attack.steps, "restart": attack.restarts}
    return ", ".join(
        f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count
    )


def parameter_table(facts: Facts) -> tuple[tuple[str, ...], tuple[Parameter, ...]]:
    """Names of the models, and every parameter that they were trained with."""
    runs = [run for run in (facts.student, facts.baseline, facts.teacher) if run is not None]
    runs = [run for run in runs if run.facts.params]
    # The teacher is trained otherwise: only student and baseline are to be alike.
    alike = [run is not facts.teacher for run in runs]
    rows = parameter_rows([run.facts.params for run in runs], alike)
    return tuple(run.name for run in runs), rows


def parameter_rows(
    params: Sequence[Mapping[str, Any]], alike: Sequence[bool]
) -> tuple[Parameter, ...]:
    """A row for each parameter of some runs.

    Parameters
    ----------
    params : sequence of mapping
        By name, of each run.
    alike : sequence of bool
        Which runs should have been made alike.
    """
    rows = []
    for name in sorted({name for one in params for name in one}):
        values = tuple(_value(one, name) for one in params)
        same = {value for value, wanted in zip(values, alike, strict=True) if wanted}
        rows.append(Parameter(name, values, differs=len(same) > 1))
    return tuple(rows)


def _value(params: Mapping[str, Any], name: str) -> str:
    if name not in params:
        return ""
    value = params[name]
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("eps", "step_size") and isinstance(value, float):
        return eps_text(value)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return number_text(value) if isinstance(value, float) else str(value)


def version_table(facts: Facts) -> tuple[tuple[str, ...], tuple[Parameter, ...]]:
    """What wrote each result, and the versions of the software it ran with."""
    used: dict[str, Mapping[str, str]] = {}
    if facts.teacher is not None:
        used["teacher"] = facts.teacher.facts.software
    if facts.labels is not None:
        used["labels"] = facts.labels.attributes.software
    used["student"] = facts.student.facts.software
    if facts.baseline is not None:
        used["baseline"] = facts.baseline.facts.software
    used["evaluation"] = facts.scores.settings.software
    used = {name: software for name, software in used.items() if software}
    packages = dict.fromkeys(name for software in used.values() for name in software)
    rows = []
    for package in packages:
        versions = tuple(software.get(package, "") for software in used.values())
        rows.append(Parameter(package, versions, differs=len(set(versions) - {""}) > 1))
    return _merged(tuple(used), tuple(rows))


def _merged(
    names: tuple[str, ...], rows: tuple[Parameter, ...]
) -> tuple[tuple[str, ...], tuple[Parameter, ...]]:
    """One column where all are equal, as they are when one machine ran everything."""
    columns = list(zip(*(row.values for row in rows), strict=True))
    if len(set(columns)) != 1 or len(columns) < 2:
        return names, rows
    return (", ".join(names),), tuple(
        Parameter(row.name, row.values[:1], differs=False) for row in rows
    )


# --- What an audit for gradient masking comes to.


def masking_line(audit: Audit | None) -> str:
    """What the checks for gradient masking came to, in a few words."""
    if audit is None:
        return "not run"
    if audit.refused is not None:
        return "not possible"
    if audit.failed:
        return f"{audit.failed} of {len(audit.findings)} failed"
    return f"passed (all {len(audit.findings)}, on {audit.n:,} images)"


# --- All that the page shows, read from the files of the earlier stages and held against itself.


# Images whose soft labels are shown: two rows of the page on a wide screen, and a top ten.
_AMBIGUOUS, _CONTRADICTED = 6, 10


@dataclass(frozen=True)
class Places:
    """Where the files are; None, or a path that does not exist: left out, and the page says so.

    Attributes
    ----------
    student, metrics : Path
        The student's folder, and its metrics.json. These two must be there.
    evaluation : Path
        Folder of the student's by_eps.json, examples.npz and settings.json.
    baseline, baseline_metrics, baseline_evaluation : Path
        The same of the model that it is compared with.
    teacher : Path
        The teacher's folder.
    labels : Path
        The soft-label store.
    data : Path
        Beton of the training images.
    audit : Path
        The student's audit.json.
    """

    student: Path
    metrics: Path
    evaluation: Path | None = None
    baseline: Path | None = None
    baseline_metrics: Path | None = None
    baseline_evaluation: Path | None = None
    teacher: Path | None = None
    labels: Path | None = None
    data: Path | None = None
    audit: Path | None = None


@dataclass(frozen=True)
class Facts:
    """What is known; what is None was not there.

    Attributes
    ----------
    title : str
    student : Run
    scores : Scores
        Of the student.
    baseline : Run or None
    baseline_scores : Scores or None
    comparison : Comparison or None
        Of the student with the baseline, image by image.
    teacher : Run or None
    labels : LabelFacts or None
    manifest : Manifest or None
        Of the training images.
    examples : Examples or None
    audit : Audit or None
        Of the student.
    missing : tuple of str
        What the page lacks and why, in words.
    """

    title: str
    student: Run
    scores: Scores
    baseline: Run | None
    baseline_scores: Scores | None
    comparison: Comparison | None
    teacher: Run | None
    labels: LabelFacts | None
    manifest: Manifest | None
    examples: Examples | None
    audit: Audit | None
    missing: tuple[str, ...]


def gather_facts(places: Places, params: ReportParams) -> Facts:
    """Read everything that there is.

    Parameters
    ----------
    places : Places
    params : ReportParams

    Raises
    ------
    MissingError
        When the student or its metrics are not there.
    LtdPipeError
        When a file is damaged, or two of them are of different runs: a page that mixes runs
        is worse than none.
    """
    student = read_run(places.student, "student", "ltd-pipe train")
    scores = _scores(student, places.metrics, places.evaluation)
    teacher = _optional_run(places.teacher, "teacher", "ltd-pipe teacher")
    baseline = _optional_run(places.baseline, "baseline", "ltd-pipe train --label-kind onehot")
    baseline_scores = _baseline_scores(baseline, places)
    # The hardest to read comes after the cheap checks, since it decodes images.
    labels = _labels(student, teacher, places)
    if baseline is not None:
        _require_same_classes(student, baseline, places)
    facts = Facts(
        title=params.title,
        student=student,
        scores=scores,
        baseline=baseline,
        baseline_scores=baseline_scores,
        comparison=_compared(scores, baseline_scores, places),
        teacher=teacher,
        labels=labels,
        manifest=_manifest(places.data),
        examples=_examples(student, places, params.examples),
        audit=_audit(student, places.audit),
        missing=(),
    )
    return Facts(**vars(facts) | {"missing": tuple(_missing(facts, places))})


def _is_there(path: Path | None) -> bool:
    return path is not None and path.exists()


def _optional_run(folder: Path | None, name: str, command: str) -> Run | None:
    return read_run(folder, name, command) if folder is not None and folder.exists() else None


def _baseline_scores(baseline: Run | None, places: Places) -> Scores | None:
    metrics = places.baseline_metrics
    if baseline is None or metrics is None or not metrics.exists():
        return None
    return _scores(baseline, metrics, places.baseline_evaluation)


def _scores(run: Run, metrics: Path, evaluation: Path | None) -> Scores:
    found = read_scores(metrics, evaluation)
    run.require_measured(found.checkpoint_sha256, metrics, f"this {run.name}")
    warnings = run.facts.with_leak(found.metrics.warnings, found.settings, found.metrics.n)
    return replace(found, metrics=found.metrics.model_copy(update={"warnings": warnings}))


def _compared(mine: Scores, theirs: Scores | None, places: Places) -> Comparison | None:
    if theirs is None:
        return None
    baseline = evaluated("the baseline", measured_of(theirs), places.baseline_evaluation)
    student = evaluated("the student", measured_of(mine), places.evaluation)
    return compare([baseline, student])[0]


def _manifest(data: Path | None) -> Manifest | None:
    if data is None or not manifest_path(data).exists():
        return None
    return Manifest.beside(data)


def _examples(student: Run, places: Places, count: int | None) -> Examples | None:
    if places.evaluation is None or not (places.evaluation / "examples.npz").exists():
        return None
    path = places.evaluation / "examples.npz"
    found = read_examples(path, len(student.facts.class_names), count)
    return found if len(found) else None


def _audit(student: Run, path: Path | None) -> Audit | None:
    return read_audit(path, student.sha256) if path is not None and path.exists() else None


def _labels(student: Run, teacher: Run | None, places: Places) -> LabelFacts | None:
    if places.labels is None or not places.labels.exists():
        return None
    data = places.data if _is_there(places.data) else None
    labels = read_labels(places.labels, data, _AMBIGUOUS, _CONTRADICTED)
    used = student.facts.labels
    if used is not None and used.identity != labels.identity:
        raise ResultError(
            places.student,
            "the student was trained on another store: identity",
            expected=labels.identity[:12],
            found=used.identity[:12],
            remedy="Pass its store with --labels, or run 'ltd-pipe train' again.",
        )
    teachers = [teacher.sha256 for teacher in labels.attributes.teachers]
    if teacher is not None and teacher.sha256 not in teachers:
        raise ResultError(
            places.teacher,
            f"is not the teacher that {places.labels} was made with: SHA-256",
            expected=" or ".join(sha256[:12] for sha256 in teachers) or "none",
            found=teacher.sha256[:12],
            remedy="Pass that one's folder with --teacher, or run 'ltd-pipe label' again.",
        )
    return labels


def _require_same_classes(student: Run, baseline: Run, places: Places) -> None:
    if student.facts.class_names != baseline.facts.class_names:
        raise ResultError(
            places.baseline,
            "has other classes than the student",
            remedy="Pass a baseline of the same data with --baseline.",
        )


def _missing(facts: Facts, places: Places) -> list[str]:
    """What is not on the page, each with the reason."""
    lacks: list[tuple[bool, str]] = [
        (facts.baseline is None, f"A baseline to compare with (no {places.baseline})."),
        (
            facts.baseline is not None and facts.baseline_scores is None,
            f"The baseline's accuracy (no {places.baseline_metrics}).",
        ),
        *_unproved(facts, places),
        (
            facts.scores.metrics.autoattack_accuracy is None,
            "AutoAttack on the student: it was not run, and PGD alone is no claim of robustness.",
        ),
        (not facts.scores.by_eps, "Robust accuracy by ε (evaluate.eps_grid is empty)."),
        (facts.examples is None, "Pictures of attacked images."),
        (
            facts.scores.reliability is None,
            f"Reliability diagrams (no {_inside(places.evaluation, 'reliability.json')}).",
        ),
        (facts.audit is None, f"Checks for gradient masking (no {places.audit})."),
        (facts.teacher is None, f"The teacher (no {places.teacher})."),
        (facts.labels is None, f"The soft labels (no {places.labels})."),
        (
            facts.labels is not None and not _is_there(places.data),
            f"Pictures of training images (no {places.data}).",
        ),
        (not facts.student.curves, "Curves of training."),
    ]
    return [text.replace(" (no None)", "") for lacking, text in lacks if lacking]


def _unproved(facts: Facts, places: Places) -> list[tuple[bool, str]]:
    measured = (
        ("student", facts.scores, places.metrics),
        ("baseline", facts.baseline_scores, places.baseline_metrics),
    )
    return [
        (
            scores is not None and scores.checkpoint_sha256 is None,
            f"Proof that the accuracy is of this {name} ({path} names no checkpoint).",
        )
        for name, scores, path in measured
    ]


def _inside(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name
