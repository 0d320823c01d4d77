"""What the two pages show, read from the stages' files and held against itself; and the verdict."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltd_pipe.errors import ResultError
from ltd_pipe.evaluation.results import eps_text, evaluation_beside, read_audit
from ltd_pipe.images.manifest import Manifest, manifest_path
from ltd_pipe.models.facts import is_own
from ltd_pipe.provenance import sha256_file
from ltd_pipe.report.pictures import Examples, LabelFacts, read_examples, read_labels
from ltd_pipe.report.runs import (
    Evaluation,
    Run,
    audit_of,
    norm_text,
    phrase,
    read_evaluation,
    read_run,
)
from ltd_pipe.report.verdict import Model, Verdict, judge

if TYPE_CHECKING:
    from ltd_pipe.evaluation.results import Audit
    from ltd_pipe.params import ReportParams

# Images whose soft labels are shown: two rows of the page on a wide screen, and a top ten.
_AMBIGUOUS, _CONTRADICTED = 6, 10
# They say which labels a student is given, so they differ between student and baseline.
_LABEL_KEYS = frozenset({"label_kind", "label_temperature", "smoothing", "soft_weight", "rectify"})


@dataclass(frozen=True)
class ReportPaths:
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
    named : set of str
        Those of `teacher`, `labels` and `data` that the user named: one that is of other images
        than the student's is refused. Others are left out.
    """

    student: Path
    metrics: Path
    evaluation: Path
    baseline: Path | None = None
    baseline_metrics: Path | None = None
    baseline_evaluation: Path | None = None
    teacher: Path | None = None
    labels: Path | None = None
    data: Path | None = None
    audit: Path | None = None
    named: Set[str] = frozenset()


@dataclass(frozen=True)
class Facts:
    """What is known; what is None was not there, and `missing` says so in words."""

    title: str
    student: Run
    evaluation: Evaluation
    baseline: Run | None = None
    baseline_evaluation: Evaluation | None = None
    teacher: Run | None = None
    labels: LabelFacts | None = None
    manifest: Manifest | None = None
    examples: Examples | None = None
    audit: Audit | None = None
    missing: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """Student, baseline and teacher, as far as they are there."""
        return tuple(run for run in (self.student, self.baseline, self.teacher) if run)

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Of student and baseline, by the model's name."""
        found = {"student": self.evaluation}
        if self.baseline and self.baseline_evaluation:
            found["baseline"] = self.baseline_evaluation
        return found


def gather_facts(paths: ReportPaths, params: ReportParams) -> Facts:
    """Read everything that there is.

    Raises
    ------
    MissingError
        When the student or its metrics are not there.
    LtdPipeError
        When a file is damaged, or two of them are of different runs: a page that mixes runs
        is worse than none.
    """
    every = {name: path for name, path in vars(paths).items() if isinstance(path, Path)}
    there = {name: path for name, path in every.items() if path.exists()}
    student = read_run(paths.student, "student")
    evaluation = _evaluation(student, paths.metrics, paths.evaluation)
    found: dict[str, Any] = {}
    if "baseline" in there:
        command = "ltd-pipe train --label-kind onehot"
        found["baseline"] = baseline = read_run(there["baseline"], "baseline", command)
        if student.facts.class_names != baseline.facts.class_names:
            raise ResultError(
                paths.baseline,
                "has other classes than the student",
                remedy="Pass a baseline of the same data with --baseline.",
            )
        if "baseline_metrics" in there:
            theirs = _evaluation(baseline, there["baseline_metrics"], paths.baseline_evaluation)
            found["baseline_evaluation"] = theirs
    if paths.data and manifest_path(paths.data).exists():
        manifest = Manifest.beside(paths.data)
        if _is_of(student, manifest.fingerprint, "data", paths):
            found["manifest"] = manifest
    found |= _teaching(student, there, paths, pictured="manifest" in found)
    pictures = paths.evaluation / "examples.npz"
    if pictures.exists():
        classes = len(student.facts.class_names)
        found["examples"] = read_examples(pictures, classes, params.examples) or None
    if "audit" in there:
        found["audit"] = read_audit(there["audit"], student.sha256)
    facts = Facts(params.title or student.described, student, evaluation, **found)
    return replace(facts, missing=tuple(_missing(facts, paths)))


def _evaluation(run: Run, metrics: Path, folder: Path | None) -> Evaluation:
    found = read_evaluation(metrics, folder, settings_required=False)
    run.require_own(found, metrics)
    return found


def _is_of(student: Run, fingerprint: str | None, name: str, paths: ReportPaths) -> bool:
    """Whether something is of the student's images; refused if it is not, and was named."""
    data = student.facts.data
    if data is not None and data.fingerprint == fingerprint:
        return True
    if name in paths.named:
        raise ResultError(
            getattr(paths, name),
            "is of other images than those that the student was trained on",
            expected=f"fingerprint {data.fingerprint[:12] if data else 'unknown'}",
            found=(fingerprint or "none")[:12],
            remedy=f"Leave --{name} out, or name the student's own.",
        )
    return False


def _teaching(
    student: Run, there: dict[str, Path], paths: ReportPaths, *, pictured: bool
) -> dict[str, Any]:
    """Labels and teacher, as far as they are this student's or of its images."""
    found: dict[str, Any] = {}
    if "labels" in there:
        data, used = there.get("data") if pictured else None, student.facts.labels
        labels = read_labels(there["labels"], data, _AMBIGUOUS, _CONTRADICTED)
        own = used is None or used.identity == labels.identity
        if used and not own and "labels" in paths.named:
            raise ResultError(
                paths.student,
                "the student was trained on another store: identity",
                expected=labels.identity[:12],
                found=used.identity[:12],
                remedy="Pass its store with --labels, or run 'ltd-pipe train' again.",
            )
        fingerprint = labels.attributes.dataset.fingerprint
        if own and (used or _is_of(student, fingerprint, "labels", paths)):
            found["labels"] = labels
    if "teacher" in there:
        teacher = read_run(there["teacher"], "teacher", "ltd-pipe teacher")
        asked, data_facts = student.facts.teacher, teacher.facts.data
        if "labels" in found:
            if not _is_teacher_of(found["labels"], teacher, paths):
                return found
        elif not (asked and asked.sha256 == teacher.sha256):
            images = data_facts.fingerprint if data_facts else None
            if not _is_of(student, images, "teacher", paths):
                return found
        found["teacher"] = teacher
    return found


def _is_teacher_of(labels: LabelFacts, teacher: Run, paths: ReportPaths) -> bool:
    """Whether it made the labels; refused if it did not, and was named."""
    teachers = [one.sha256 for one in labels.attributes.teachers]
    if teacher.sha256 in teachers:
        return True
    if "teacher" in paths.named:
        raise ResultError(
            paths.teacher,
            f"is not the teacher that {paths.labels} was made with: SHA-256",
            expected=" or ".join(sha256[:12] for sha256 in teachers) or "none",
            found=teacher.sha256[:12],
            remedy="Leave --teacher out, or pass that one's folder.",
        )
    return False


def _missing(facts: Facts, paths: ReportPaths) -> list[str]:
    """What is not on the page, each with the reason."""
    baseline, theirs = facts.baseline, facts.baseline_evaluation

    def without(what: str, path: Path | None) -> str:
        there = path is not None and path.exists()
        return f"{what} ({path} is not of this student)." if there else f"{what} (no {path})."

    lacks = {
        f"A baseline to compare with (no {paths.baseline}).": baseline is None,
        f"The baseline's accuracy (no {paths.baseline_metrics}).": baseline and theirs is None,
        "AutoAttack on the student: it was not run, and PGD alone is no claim of robustness.": (
            facts.evaluation.score("autoattack") is None
        ),
        "Robust accuracy by ε (evaluate.eps_grid is empty).": not facts.evaluation.by_eps,
        "Pictures of attacked images.": facts.examples is None,
        f"Reliability diagrams (no {paths.evaluation / 'reliability.json'}).": (
            facts.evaluation.reliability is None
        ),
        f"Checks for gradient masking (no {paths.audit}).": facts.audit is None,
        without("The teacher", paths.teacher): facts.teacher is None,
        without("The soft labels", paths.labels): facts.labels is None,
        without("Pictures of training images", paths.data): (
            facts.labels and (facts.manifest is None or not (paths.data and paths.data.exists()))
        ),
        "The baseline's robust accuracy by ε (in another norm).": (
            theirs is not None
            and theirs.by_eps
            and theirs.metrics.norm != facts.evaluation.metrics.norm
        ),
        "Curves of training.": not facts.student.curves,
    }
    return [text.replace(" (no None)", "") for text, lacking in lacks.items() if lacking]


# ---------------------------------------------------------------- the verdict


def judge_student(facts: Facts) -> Verdict:
    """Judge the student, against the baseline where there is one."""
    student, baseline, theirs = facts.student, facts.baseline, facts.baseline_evaluation
    mine = Model("the student", facts.evaluation, facts.audit, labels=student.facts.label_name)
    if baseline is None or theirs is None:
        verdict, more = judge(mine), _audit_caveats(facts)
    else:
        verdict = judge(mine, Model("the baseline", theirs, labels=baseline.facts.label_name))
        more = _audit_caveats(facts)
        if verdict.comparison.paired and student.facts.data != baseline.facts.data:
            more.append("The two were trained on different images.")
        if verdict.comparison.paired and (unequal := unequal_params(student, baseline)):
            more.append(f"The two also differ in how they were trained: {phrase(unequal)}.")
    return replace(verdict, caveats=(*verdict.caveats, *more))


def unequal_params(student: Run, baseline: Run) -> list[str]:
    """Names of the parameters in which two runs differ, other than their labels."""
    mine, theirs = ({"seed": run.facts.seed} | run.facts.params for run in (student, baseline))
    names = sorted((mine.keys() | theirs.keys()) - _LABEL_KEYS)
    return [name for name in names if mine.get(name) != theirs.get(name)]


def _audit_caveats(facts: Facts) -> list[str]:
    audit, metrics, found = facts.audit, facts.evaluation.metrics, []
    if audit is not None and audit.refused is not None:
        found.append(f"Gradient masking could not be looked for: {audit.refused}")
    if audit is not None and (audit.norm, audit.eps) != (metrics.norm, metrics.eps):
        radius = f"ε = {eps_text(audit.eps)} in {norm_text(audit.norm)}"
        found.append(f"The checks for gradient masking are of another threat ({radius}).")
    return found


def masking_text(audit: Audit | None) -> str:
    """What the checks for gradient masking came to, in a few words."""
    if audit is None:
        return "not run"
    if audit.refused is not None:
        return "not possible"
    if audit.failed:
        return f"{audit.failed} of {len(audit.findings)} failed"
    return f"passed (all {len(audit.findings)}, on {audit.n:,} images)"


# ---------------------------------------------------------------- two runs

_CHECKPOINT = "model.safetensors"


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    letter: str  # A or B: what it is called on the page
    name: str  # as the user named it
    evaluation: Evaluation
    run: Run | None  # None where no checkpoint lies beside the evaluation
    audit: Audit | None  # None where none of this checkpoint does


@dataclass(frozen=True)
class PairFacts:
    """What is known of two runs; `missing` says what the page lacks and why."""

    title: str
    a: Side
    b: Side
    missing: tuple[str, ...]


def gather_pair(title: str | None, first: tuple[str, Path], second: tuple[str, Path]) -> PairFacts:
    """Read two runs: each as the user named it, and its metrics.json.

    A MissingError when an evaluation is not there, another LtdPipeError when a file is damaged, or
    two of one run are of different checkpoints.
    """
    a, b, missing = _side("A", *first), _side("B", *second), []
    for side in (a, b):
        beside = f"of {side.letter} (no {{}} beside {side.name})."
        if side.run is None:
            missing.append(f"Training curves and settings {beside.format(_CHECKPOINT)}")
        if not side.evaluation.by_eps:
            missing.append(f"Robust accuracy by ε {beside.format('by_eps.json')}")
    if a.evaluation.metrics.norm != b.evaluation.metrics.norm and b.evaluation.by_eps:
        missing.append("Robust accuracy by ε of B (in another norm than A's).")
    return PairFacts(title or f"{a.letter} and {b.letter}", a, b, tuple(missing))


def _side(letter: str, name: str, metrics: Path) -> Side:
    evaluation, run = read_evaluation(metrics, evaluation_beside(metrics)), None
    # `student` beside metrics.json, `NAME` beside NAME-metrics.json, or all in one folder.
    model = metrics.name.removesuffix(".json").removesuffix("metrics").rstrip("-") or "student"
    for folder in (metrics.parent / model, metrics.parent):
        path = folder / _CHECKPOINT
        # Nobody named it: it may be another model's, or weights that do not say what they are.
        measured = path.is_file() and sha256_file(path) == evaluation.metrics.checkpoint_sha256
        if measured and is_own(path):
            run = read_run(folder, letter)
            break
    return Side(letter, name, evaluation, run, audit_of(evaluation, metrics))


def judge_pair(facts: PairFacts) -> Verdict:
    """Compare B with A."""
    verdict = judge(*(Model(one.letter, one.evaluation, one.audit) for one in (facts.b, facts.a)))
    if facts.a.run is None or facts.b.run is None or facts.a.run.sha256 != facts.b.run.sha256:
        return verdict
    return replace(verdict, caveats=(*verdict.caveats, "Both are the same checkpoint."))
