"""What a training run left: its checkpoint's facts, its curves, its times."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from ltd_pipe.errors import MissingError, ResultError
from ltd_pipe.evaluation.results import (
    ON_TRAINING,
    Document,
    Score,
    Settings,
    on_training,
    parse_result,
    read_by_eps,
    read_bytes,
    read_metrics,
    read_per_class,
    read_reliability,
    read_result,
    read_settings,
)
from ltd_pipe.evaluation.statistics import Share  # noqa: TC001  pydantic reads it
from ltd_pipe.models.facts import read_facts
from ltd_pipe.provenance import sha256_file
from ltd_pipe.text import differences

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from ltd_pipe.evaluation.results import ClassScore, EpsPoint, Metrics, Reliability


# --- How numbers are put into words, the same everywhere on the page.


_NBSP = "\u00a0"
# With fewer images the second decimal of a percentage is finer than one image.
_FINE = 5_000


def percent_text(share: float, n: int) -> str:
    """A share of n images as a percentage, no finer than n allows.

    Parameters
    ----------
    share : float
        In [0, 1].
    n : int
        Number of images.
    """
    return f"{_digits(share, n)}{_NBSP}%"


def interval_text(low: float, high: float, n: int) -> str:
    """The bounds of a share of n images, as `71.2 to 74.9 %`."""
    return f"{_digits(low, n)} to {percent_text(high, n)}"


def _digits(share: float, n: int) -> str:
    return f"{100 * share:.{2 if n >= _FINE else 1}f}"


def norm_text(norm: str) -> str:
    """A norm of metrics.json."""
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


# --- Under what an accuracy was measured, and why two of them cannot be compared.


_TOGETHER = "all_attacks"


@dataclass(frozen=True)
class Conditions:
    """What decides the accuracies of an evaluation.

    Attributes
    ----------
    norm : str
    eps : float
        Pixel units.
    quick : bool
        It was a first look.
    decides : mapping of str to dict
        What decides each attack's number, by its key with `_` for `-`; plain values. Evaluations
        of before have none.
    attacks : tuple
        What they say once for all attacks but AutoAttack.
    autoattack_version : str or None
    """

    norm: str
    eps: float
    quick: bool
    decides: Mapping[str, dict[str, Any]]
    attacks: tuple[Any, ...]
    autoattack_version: str | None


def unlike(attack: str, mine: Conditions, theirs: Conditions) -> str:
    """Why two accuracies under one attack cannot be compared, or nothing.

    Parameters
    ----------
    attack : str
        Its key; `clean` is none, and always alike.
    mine, theirs : Conditions
        On the same test images.
    """
    if attack == "clean":
        return ""
    if (mine.norm, mine.eps) != (theirs.norm, theirs.eps):
        return f"{mine.norm} {mine.eps:.4g} against {theirs.norm} {theirs.eps:.4g}"
    if mine.quick != theirs.quick:
        return "one is a first look"
    key = attack.replace("-", "_")
    if key == _TOGETHER:
        return _unlike_sets(mine.decides, theirs.decides)
    return _unlike_attacks(key, mine, theirs)


def _unlike_sets(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    # The number is of the images that stood under every attack of the list: its own row says no
    # more than the threat.
    if not mine or not theirs:
        return "the attacks behind it are not recorded"
    keys = [key for key in {**mine, **theirs} if key != _TOGETHER]
    unequal = [key for key in keys if mine.get(key) != theirs.get(key)]
    return f"other attacks ({', '.join(unequal)})" if unequal else ""


def _unlike_attacks(key: str, mine: Conditions, theirs: Conditions) -> str:
    if key in mine.decides and key in theirs.decides:
        found = differences(theirs.decides[key], mine.decides[key])
        unequal = [name for name, _, _ in found]
        return f"other settings ({', '.join(unequal)})" if unequal else ""
    # Evaluations of before say it once for all attacks.
    if key == "autoattack":
        same = mine.autoattack_version == theirs.autoattack_version
        return "" if same else "another version of AutoAttack"
    return "" if mine.attacks == theirs.attacks else "other settings"


# --- An evaluation with whatever attacks it has: metrics.json, and what its settings say.


# The score that is of corrupted images, not of attacked ones.
CORRUPTION = "corruption"


@dataclass(frozen=True)
class Measured:
    """An evaluation.

    Attributes
    ----------
    n : int
        Test images.
    norm : str
    eps : float
        Radius, pixel units.
    quick : bool
        It was a first look.
    scores : dict of str to Score
        By what they are called in metrics.json without `_accuracy`, `clean` first.
    after : dict of str to float
        What AutoAttack's attacks left, in the order they ran.
    calibration_error : float or None
    not_measured : tuple of str
        What the evaluation itself says that it left out.
    settings : Settings
    names : dict of str to str
        What people call an attack, where the evaluation says so.
    decides : dict of str to dict
        What decides an attack's number, likewise; plain values.
    checkpoint_sha256 : str or None
        Of the checkpoint that was measured; None where the evaluation does not say.
    warnings : tuple of str
        What makes the numbers doubtful.
    """

    n: int
    norm: str
    eps: float
    quick: bool
    scores: dict[str, Score]
    after: dict[str, float]
    calibration_error: float | None
    not_measured: tuple[str, ...]
    settings: Settings
    names: dict[str, str] = field(default_factory=dict)
    decides: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    checkpoint_sha256: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def conditions(self) -> Conditions:
        """What decides the accuracies."""
        threat, settings = (self.norm, self.eps, self.quick), self.settings
        return Conditions(*threat, self.decides, settings.attacks, settings.autoattack_version)

    def warning_lines(self, name: str) -> list[str]:
        """What the evaluation warns of, each line with the model's name."""
        return warning_lines(name, self.warnings, self.settings.flags)


def read_measured(metrics: Path, evaluation: Path) -> Measured:
    """Read an evaluation.

    Parameters
    ----------
    metrics : Path
        metrics.json.
    evaluation : Path
        Folder of its settings.json.

    Raises
    ------
    MissingError
        When one of them is not there.
    ResultError
        When one is damaged, an accuracy is outside its interval, or the two are of different
        evaluations.
    """
    found = read_metrics(metrics)
    path = evaluation / "settings.json"
    if not path.exists():
        raise MissingError(
            path,
            f"no such file, and it holds the rest of {metrics}",
            remedy=f"Run 'ltd-pipe evaluate --metrics {metrics} --out {evaluation}', or rename "
            "the folder that it wrote.",
        )
    settings = read_settings(path, found)
    scores = {name.removesuffix("_accuracy"): found.score(name) for name in found.intervals}
    return Measured(
        n=found.n,
        norm=found.norm,
        eps=found.eps,
        quick=found.quick,
        scores={name: score for name, score in scores.items() if score is not None},
        after=found.autoattack,
        calibration_error=found.expected_calibration_error,
        not_measured=found.not_measured,
        settings=settings,
        names={attack.filed: attack.name for attack in found.attacks},
        decides={attack.filed: attack.decides for attack in found.attacks},
        checkpoint_sha256=found.checkpoint_sha256 or settings.checkpoint_sha256,
        warnings=found.warnings,
    )


def measured_of(scores: Scores) -> Measured:
    """The same face of an evaluation that the report has read."""
    metrics = scores.metrics
    names = {"pgd": scores.pgd_name, "autoattack": "AutoAttack"}
    found = {name: metrics.score(f"{name}_accuracy") for name in ("clean", *names)}
    found |= {row.filed: scores.attack(row.key) for row in metrics.attacks if row.key not in found}
    return Measured(
        n=metrics.n,
        norm=metrics.norm,
        eps=metrics.eps,
        quick=metrics.quick,
        scores={name: score for name, score in found.items() if score is not None},
        after=metrics.autoattack,
        calibration_error=metrics.expected_calibration_error,
        not_measured=metrics.not_measured,
        settings=scores.settings,
        names=names | {row.filed: row.name for row in metrics.attacks},
        decides=scores.conditions.decides,
        checkpoint_sha256=scores.checkpoint_sha256,
        warnings=metrics.warnings,
    )


# --- What an evaluation gave: metrics.json, and the files of its folder.


# Before its flags, among the warnings of metrics.json.
_OF_AUTOATTACK = "AutoAttack: "
# Behind by_eps.json and examples.npz, whatever evaluate.pgd_steps is.
CURVE_ATTACK = "PGD-20"


@dataclass(frozen=True)
class Scores:
    """All that was measured of one model.

    Attributes
    ----------
    metrics : Metrics
    by_eps : tuple of EpsPoint
        Rising in eps; empty where it was not measured.
    settings : Settings
    reliability : Reliability or None
        Accuracy by confidence; None of an evaluation that did not write it.
    by_class : dict of str to dict
        For each class its scores by the attack's key; empty likewise.
    """

    metrics: Metrics
    by_eps: tuple[EpsPoint, ...]
    settings: Settings
    reliability: Reliability | None = None
    by_class: dict[str, dict[str, ClassScore]] = field(default_factory=dict)

    @property
    def checkpoint_sha256(self) -> str | None:
        """Of the checkpoint that was measured; None where the evaluation does not say."""
        return self.metrics.checkpoint_sha256 or self.settings.checkpoint_sha256

    @property
    def conditions(self) -> Conditions:
        """What decides the accuracies."""
        metrics, settings = self.metrics, self.settings
        threat = (metrics.norm, metrics.eps, metrics.quick)
        decides = {row.filed: row.decides for row in metrics.attacks}
        return Conditions(*threat, decides, settings.attacks, settings.autoattack_version)

    def warnings(self, name: str) -> list[str]:
        """What the evaluation warns of, each line with the model's name."""
        return warning_lines(name, self.metrics.warnings, self.settings.flags)

    def attack(self, key: str) -> Score | None:
        """What an attack of the list left, or None where it was not run."""
        found = (row for row in self.metrics.attacks if row.key == key)
        row = next(found, None)
        return None if row is None else Score(row.accuracy, row.low, row.high, row.n)

    @property
    def pgd_name(self) -> str:
        """PGD as people call it: steps and restarts included."""
        for attack in self.settings.attacks:
            if attack.name.upper().startswith("PGD") and attack.steps:
                restarts = f", {attack.restarts} restarts" if (attack.restarts or 1) > 1 else ""
                return f"PGD-{attack.steps}{restarts}"
        return "PGD"


def warning_lines(name: str, warnings: tuple[str, ...], flags: tuple[str, ...]) -> list[str]:
    """What an evaluation warns of, each line with the model's name.

    Parameters
    ----------
    name : str
        What the model is called: `the student`, `A`.
    warnings : tuple of str
        Of metrics.json, those of AutoAttack included.
    flags : tuple of str
        AutoAttack's own, of settings.json, where older evaluations have them alone.
    """
    told = [line for line in warnings if line.startswith(_OF_AUTOATTACK)]
    own = [line.removeprefix(_OF_AUTOATTACK) for line in told]
    found = [f"AutoAttack warns of {name}: {flag}" for flag in dict.fromkeys((*flags, *own))]
    others = (line for line in warnings if line not in told)
    return found + [f"The evaluation warns of {name}: {line}" for line in others]


def read_scores(metrics: Path, folder: Path | None) -> Scores:
    """Read an evaluation.

    Parameters
    ----------
    metrics : Path
        metrics.json.
    folder : Path or None
        Holds settings.json, by_eps.json, reliability.json and per_class.json; each may be missing.

    Raises
    ------
    MissingError
        When there is no metrics.json.
    ResultError
        When a file is damaged, an accuracy is outside its interval, or two of them are of
        different evaluations.
    """
    found = read_metrics(metrics)
    if folder is None:
        return Scores(found, (), Settings())
    path = folder / "settings.json"
    settings = read_settings(path, found) if path.exists() else Settings()
    by_class = read_per_class(folder)
    return Scores(found, read_by_eps(folder), settings, _reliability(found, folder), by_class)


def _reliability(found: Metrics, folder: Path) -> Reliability | None:
    path = folder / "reliability.json"
    if not path.exists():
        return None
    errors = {
        "clean": found.expected_calibration_error,
        "under_attack": found.expected_calibration_error_under_attack,
    }
    return read_reliability(path, found.n, errors)


# --- What a training run left: its checkpoint's facts, its curves, its times.


CURVES = ("train/loss", "validation/clean_accuracy", "validation/robust_accuracy")

# Parameters that may be `auto`, and where a checkpoint says what that was.
_MEASURED = {"precision": "precision", "channels_last": "channels_last", "compile": "compiled"}
_LABEL_NAMES = {
    "ltd": "soft labels",
    "live": "soft labels of a teacher in the run",
    "adr": "soft labels of its own average",
    "smooth": "smoothed labels",
    "onehot": "one-hot labels",
}


class DataFacts(Document):
    """The images that a model was trained on."""

    dataset: str
    fingerprint: str


class UsedLabels(Document):
    """The store that a student was trained on."""

    identity: str
    temperature: float
    mean_top_probability: Share | None = None


class AskedTeacher(Document):
    """The teacher that was asked while a student was trained."""

    sha256: str


class CollapseFacts(Document):
    """Where training was seen to have learnt to fool its own attack; epochs from 0."""

    epoch: int
    robust_accuracy: Share
    attack_accuracy: Share


class RunFacts(Document):
    """What a checkpoint says of its run; what is None was not said."""

    architecture: str
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    temperature: float
    kind: str | None = None
    seed: int | None = None
    params: dict[str, Any] = Field({})
    data: DataFacts | None = None
    labels: UsedLabels | None = None
    teacher: AskedTeacher | None = None
    epoch: int | None = None
    validation: dict[str, float] = Field({})
    catastrophic_overfitting: CollapseFacts | None = None
    clean_accuracy: Share | None = None
    expected_calibration_error: Share | None = None
    n: int | None = Field(None, ge=1)
    software: dict[str, str] = Field({})
    hardware: dict[str, Any] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _with_what_was_measured(cls, facts: Any) -> Any:
        """In `params`, what `auto` turned out to be: two runs may have measured differently."""
        known = facts if isinstance(facts, dict) else {}
        params, passes = known.get("params"), known.get("passes")
        if not (isinstance(params, dict) and isinstance(passes, dict)):
            return facts
        measured = {
            name: passes[key]
            for name, key in _MEASURED.items()
            if params.get(name) == "auto" and key in passes
        }
        return {**facts, "params": params | measured}

    @property
    def threat_model(self) -> dict[str, Any] | None:
        """The ball that it was trained in, eps in pixel units; None: trained on clean images."""
        eps = self.params.get("eps")
        if self.kind != "student" or not isinstance(eps, int | float):
            return None
        return {"norm": str(self.params.get("norm", "linf")), "eps": float(eps)}

    def with_leak(self, warnings: tuple[str, ...], settings: Settings, n: int) -> tuple[str, ...]:
        """Warnings of an evaluation; older ones did not look for training images."""
        same = self.data is not None and self.data.fingerprint == settings.data_fingerprint
        unsaid = not any(line.endswith(ON_TRAINING) for line in warnings)
        return (on_training(n), *warnings) if same and unsaid else warnings


class Timing(Document):
    """timing.json."""

    seconds: float = Field(ge=0)
    images_per_second: float = Field(ge=0)
    commit: str | None = None


@dataclass(frozen=True)
class Curve:
    """A measure by epoch.

    Attributes
    ----------
    epochs : ndarray of shape (E,), dtype int64
        Counted from one.
    values : ndarray of shape (E,), dtype float64
    """

    epochs: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes
    ----------
    name : str
        What it is called on the page.
    facts : RunFacts
    sha256 : str
        Of the checkpoint's bytes.
    curves : dict of str to Curve
        Those of `CURVES` that were recorded.
    timing : Timing or None
    """

    name: str
    facts: RunFacts
    sha256: str
    curves: dict[str, Curve]
    timing: Timing | None

    @property
    def label_name(self) -> str:
        """What kind of labels it was trained on, in words."""
        return _LABEL_NAMES.get(str(self.facts.params.get("label_kind")), "labels")

    def require_measured(self, sha256: str | None, metrics: Path, what: str) -> None:
        """Refuse what was measured of another checkpoint.

        Parameters
        ----------
        sha256 : str or None
            Of the checkpoint behind `metrics`; None where that was not said.
        metrics : Path
        what : str
            This checkpoint, for the message.

        Raises
        ------
        ResultError
            When it is another one.
        """
        if sha256 is not None and sha256 != self.sha256:
            raise ResultError(
                metrics,
                f"is not of {what}: SHA-256 of the checkpoint that was measured",
                expected=self.sha256[:12],
                found=sha256[:12],
                remedy="Run 'ltd-pipe evaluate' again.",
            )


def read_run(folder: Path, name: str, command: str) -> Run:
    """Read a run's folder.

    Parameters
    ----------
    folder : Path
        Holds model.safetensors; live/ and timing.json may be missing.
    name : str
        What it is called on the page.
    command : str
        What writes the folder, for the remedy.

    Raises
    ------
    MissingError
        When there is no checkpoint.
    CheckpointError, ResultError
        When a file is damaged.
    """
    model = folder / "model.safetensors"
    if not model.is_file():
        raise MissingError(model, "no such file", remedy=f"Run '{command}' first.")
    timing = folder / "timing.json"
    return Run(
        name=name,
        facts=parse_result(read_facts(model), RunFacts, model, command),
        sha256=sha256_file(model),
        curves=_read_curves(folder / "live" / "plots" / "metrics"),
        timing=read_result(timing, Timing, command) if timing.exists() else None,
    )


def _read_curves(folder: Path) -> dict[str, Curve]:
    paths = {name: folder / f"{name}.tsv" for name in CURVES}
    return {name: _read_curve(path) for name, path in paths.items() if path.exists()}


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
            points[int(row[step])] = _finite(row[value])
        except (ValueError, IndexError) as error:
            raise ResultError(path, f"line {line} is damaged", found=row) from error
    epochs = np.array(sorted(points), dtype=np.int64)
    return Curve(epochs + 1, np.array([points[int(epoch)] for epoch in epochs]))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value
