"""All that the page shows, read from the files of the earlier stages and held against itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.compare.run import evaluated
from pipeline.compare.table import Comparison, compare
from pipeline.errors import ResultError
from pipeline.images.manifest import Manifest, manifest_path
from pipeline.report.audit import Audit, read_audit
from pipeline.report.examples import Examples, read_examples
from pipeline.report.measured import measured_of
from pipeline.report.runs import Run, read_run
from pipeline.report.scores import Scores, read_scores
from pipeline.report.softness import LabelFacts, read_labels

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.params import ReportParams

__all__ = ["Facts", "Places", "gather_facts"]

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
