"""What a model's stages left: its evaluation, and its training's checkpoint, curves and times.

Report, `ltd-pipe compare` and the card read them here. Numbers of one model are never shown with
what is known of another: files that say which checkpoint they are of are held against it.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ltd_pipe.errors import MissingError, ResultError
from ltd_pipe.evaluation.results import (
    SAMPLES_FILE,
    Audit,
    ClassScore,
    Document,
    EpsPoint,
    Metrics,
    Reliability,
    Samples,
    Score,
    Settings,
    audit_beside,
    evaluation_beside,
    metrics_beside,
    read_by_eps,
    read_bytes,
    read_metrics,
    read_per_class,
    read_reliability,
    read_result,
    read_samples,
    read_settings,
)
from ltd_pipe.models.facts import RunFacts
from ltd_pipe.provenance import sha256_file
from ltd_pipe.text import differences

_NBSP = "\u00a0"
NOT_RECORDED = "not recorded"

# ---------------------------------------------------------------- numbers in words

# With fewer images the second decimal of a percentage is finer than one image.
_FINE = 5_000


def percent_text(share: float, n: int) -> str:
    """A share of n images as a percentage, no finer than n allows."""
    return f"{_digits(share, n)}{_NBSP}%"


def interval_text(low: float, high: float, n: int) -> str:
    """The bounds of a share of n images, as `71.2 to 74.9 %`."""
    return f"{_digits(low, n)} to {percent_text(high, n)}"


def _digits(share: float, n: int) -> str:
    return f"{100 * share:.{2 if n >= _FINE else 1}f}"


def norm_text(norm: str) -> str:
    """`L∞` or `L2`."""
    return {"linf": "L∞", "l2": "L2"}[norm]


def number_text(value: float) -> str:
    """A number with at most four significant digits and no trailing zeros."""
    return f"{value:.4g}"


def duration_text(seconds: float) -> str:
    """Seconds as `48 s`, `3 min 5 s` or `2 h 14 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}{_NBSP}s" if seconds < 10 else f"{whole}{_NBSP}s"
    if whole < 3600:
        return f"{whole // 60}{_NBSP}min {whole % 60}{_NBSP}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{_NBSP}h {minutes % 60}{_NBSP}min"


def phrase(items: list[str]) -> str:
    """Join items as in a sentence: `a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


# ---------------------------------------------------------------- evaluations

_METRICS = "metrics.json"
# Before AutoAttack's own flags, among the warnings of metrics.json.
_OF_AUTOATTACK = "AutoAttack: "
# The number of the images that stood under every attack of the list.
_TOGETHER = "all_attacks"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation: metrics.json, and what else its folder holds.

    Attributes
    ----------
    metrics : Metrics
    settings : Settings
    by_eps : tuple of EpsPoint
        Rising in eps; empty where it was not measured.
    reliability : Reliability or None
    by_class : dict of str to dict
        For each class its scores by the attack's key.
    samples : Samples or None
        Which images the model is right on.
    """

    metrics: Metrics
    settings: Settings = field(default_factory=Settings)
    by_eps: tuple[EpsPoint, ...] = ()
    reliability: Reliability | None = None
    by_class: dict[str, dict[str, ClassScore]] = field(default_factory=dict)
    samples: Samples | None = None

    @property
    def scores(self) -> dict[str, Score]:
        """Each accuracy by what metrics.json calls it without `_accuracy`, `clean` first."""
        return self.metrics.scores

    def score(self, attack: str) -> Score | None:
        """The accuracy under an attack, by its key or what metrics.json calls it."""
        return self.scores.get(attack.replace("-", "_"))

    def attack_name(self, attack: str) -> str:
        """What people call an attack."""
        name = attack.replace("-", "_")
        names = {row.filed: row.name for row in self.metrics.attacks} | {"autoattack": "AutoAttack"}
        return names.get(name, attack)

    def warnings_of(self, name: str) -> list[str]:
        """What the evaluation warns of, each line with the model's name."""
        lines, its = self.metrics.warnings, _OF_AUTOATTACK
        flags = (line.removeprefix(its) for line in lines if line.startswith(its))
        others = (line for line in lines if not line.startswith(its))
        found = [f"AutoAttack warns of {name}: {flag}" for flag in flags]
        return found + [f"The evaluation warns of {name}: {line}" for line in others]

    def unlike(self, other: Evaluation, attack: str) -> str:
        """Why two accuracies under one attack cannot be compared; empty where they can."""
        if attack == "clean":
            return ""
        mine, theirs = self.metrics, other.metrics
        if (mine.norm, mine.eps) != (theirs.norm, theirs.eps):
            return f"{mine.norm} {mine.eps:.4g} against {theirs.norm} {theirs.eps:.4g}"
        if mine.quick != theirs.quick:
            return "one is a first look"
        return self._other_settings(other, attack.replace("-", "_"))

    def _other_settings(self, other: Evaluation, key: str) -> str:
        mine, theirs = (
            {row.filed: row.decides for row in one.metrics.attacks} for one in (self, other)
        )
        if key == _TOGETHER:
            # Its own row says no more than the threat: what decides it are the other rows.
            every = [name for name in mine | theirs if name != _TOGETHER]
            unequal = [name for name in every if mine.get(name) != theirs.get(name)]
            return f"other attacks ({', '.join(unequal)})" if unequal else ""
        unequal = [name for name, _, _ in differences(theirs.get(key, {}), mine.get(key, {}))]
        return f"other settings ({', '.join(unequal)})" if unequal else ""


def find_metrics(place: Path) -> Path:
    """The metrics.json in a run's folder or in its `data/`, of an evaluation's, or itself.

    Raises
    ------
    MissingError
        When there is none.
    """
    inside = place / _METRICS, place / "data" / _METRICS
    for candidate in (*inside, *metrics_beside(place)) if place.is_dir() else (place,):
        if candidate.is_file():
            return candidate
    remedy = "Name the file that 'ltd-pipe evaluate --metrics' wrote."
    raise MissingError(place, f"holds no {_METRICS}", remedy=remedy)


def read_evaluation(
    metrics: Path, folder: Path | None = None, *, settings_required: bool = True
) -> Evaluation:
    """Read an evaluation.

    Parameters
    ----------
    metrics : Path
        metrics.json.
    folder : Path, optional
        Of settings.json, by_eps.json, reliability.json, per_class.json and per_sample.npz, each
        of which may be missing; by default beside `metrics`.
    settings_required : bool
        Refuse an evaluation without its settings.json.

    Raises
    ------
    MissingError
        When there is no metrics.json, or no settings.json that is required.
    ResultError
        When a file is damaged, an accuracy is outside its interval, or two of the files are of
        different evaluations.
    """
    folder = evaluation_beside(metrics) if folder is None else folder
    found, settings = read_metrics(metrics), folder / "settings.json"
    if settings_required and not settings.exists():
        raise MissingError(
            settings,
            f"no such file, and it holds the rest of {metrics}",
            remedy=f"Run 'ltd-pipe evaluate --metrics {quote(str(metrics))} --out "
            f"{quote(str(folder))}', or rename the folder that it wrote.",
        )
    reliability, samples = folder / "reliability.json", folder / SAMPLES_FILE
    evaluation = Evaluation(
        metrics=found,
        settings=read_settings(settings, found) if settings.exists() else Settings(),
        by_eps=read_by_eps(folder),
        reliability=read_reliability(reliability, found) if reliability.exists() else None,
        by_class=read_per_class(folder),
        samples=read_samples(samples) if samples.exists() else None,
    )
    if evaluation.samples is not None:
        _require_agreement(evaluation, evaluation.samples, samples)
    return evaluation


def audit_of(evaluation: Evaluation, metrics: Path) -> Audit | None:
    """The audit beside an evaluation's metrics.json, where it is of the same checkpoint.

    A ResultError when it is damaged; one of another model was not asked for, and is none.
    """
    beside, sha256 = audit_beside(metrics), evaluation.metrics.checkpoint_sha256
    if not beside.exists():
        return None
    found = read_result(beside, Audit, "ltd-pipe audit")
    return found if found.checkpoint_sha256 == sha256 else None


def _require_agreement(evaluation: Evaluation, samples: Samples, path: Path) -> None:
    for attack, correct in samples.correct.items():
        score = evaluation.score(attack)
        if score is not None and abs(correct.mean() - score.value) > 0.5 / len(correct):
            raise ResultError(
                path,
                f"is of another evaluation: share that is right, {attack}",
                expected=f"{score.value:.4f} as in its metrics",
                found=f"{correct.mean():.4f}",
                remedy="Run 'ltd-pipe evaluate' again.",
            )


# ---------------------------------------------------------------- trained models

CURVES = ("train/loss", "validation/clean_accuracy", "validation/robust_accuracy")


class Timing(Document):
    """timing.json; of a run that was interrupted and went on without its seconds."""

    seconds: float | None = Field(None, ge=0)
    images_per_second: float = Field(ge=0)
    commit: str | None = None


@dataclass(frozen=True)
class Curve:
    """A measure by epoch, counted from one; both of shape (E,)."""

    epochs: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A trained model, by the name that it has on the page, and its checkpoint's hash."""

    name: str
    facts: RunFacts
    sha256: str
    # Those of `CURVES` that were recorded.
    curves: dict[str, Curve] = field(default_factory=dict)
    timing: Timing | None = None

    @property
    def described(self) -> str:
        """Its network, and the images that it was trained on where that is known."""
        return self.facts.architecture + (
            f" on {self.facts.data.dataset}" if self.facts.data else ""
        )

    def require_own(self, evaluation: Evaluation, metrics: Path) -> None:
        """Refuse an evaluation of another checkpoint by a ResultError."""
        found = evaluation.metrics.checkpoint_sha256
        if found != self.sha256:
            raise ResultError(
                metrics,
                f"is not of this {self.name}: SHA-256 of the checkpoint that was measured",
                expected=self.sha256[:12],
                found=found[:12],
                remedy="Run 'ltd-pipe evaluate' on it.",
            )


def read_checkpoint(path: Path, name: str, command: str = "ltd-pipe train") -> Run:
    """Read what a checkpoint says of its run; `command` writes it, for the remedy.

    Raises
    ------
    MissingError, CheckpointError
        When it is not there, damaged, or does not say what it is.
    """
    if not path.is_file():
        raise MissingError(path, "no such file", remedy=f"Run '{command}' first.")
    return Run(name, RunFacts.read(path), sha256_file(path))


def read_run(folder: Path, name: str, command: str = "ltd-pipe train") -> Run:
    """Read a run's folder: model.safetensors, and live/ and timing.json where they are there.

    Curves of another run, which was begun in the same folder and not ended, are left out.
    """
    run = read_checkpoint(folder / "model.safetensors", name, command)
    timing = folder / "timing.json"
    paths = {curve: folder / "live/plots/metrics" / f"{curve}.tsv" for curve in CURVES}
    curves = {curve: _read_curve(path) for curve, path in paths.items() if path.exists()}
    return replace(
        run,
        curves=curves if _are_of(run.facts, curves) else {},
        timing=read_result(timing, Timing, command) if timing.exists() else None,
    )


def _are_of(facts: RunFacts, curves: dict[str, Curve]) -> bool:
    """Whether the checkpoint's epoch was measured as it says, where both say so."""
    for name, value in facts.validation.items():
        curve = curves.get(f"validation/{name}")
        if curve is None or facts.epoch is None:
            continue
        [there] = np.nonzero(curve.epochs == facts.epoch + 1)
        if not len(there) or abs(curve.values[there[0]] - value) > 1e-6:
            return False
    return True


def _read_curve(path: Path) -> Curve:
    text = read_bytes(path, "").decode("utf-8", errors="replace")
    header, *rows = list(csv.reader(io.StringIO(text), delimiter="\t")) or [[]]
    if "step" not in header or len(header) < 2:
        raise ResultError(path, "is no curve", expected="columns step and a value", found=header)
    # dvclive calls the value's column by the last part of its name.
    step, value = header.index("step"), len(header) - 1
    points: dict[int, float] = {}
    for line, row in enumerate(rows, 2):
        try:
            points[int(row[step])] = number = float(row[value])
        except (ValueError, IndexError) as error:
            raise ResultError(path, f"line {line} is damaged", found=row) from error
        if not math.isfinite(number):
            raise ResultError(path, f"line {line} is damaged", found=row)
    # A resumed run may write an epoch anew: the last word holds.
    epochs = np.array(sorted(points), dtype=np.int64)
    return Curve(epochs + 1, np.array([points[int(epoch)] for epoch in epochs]))
