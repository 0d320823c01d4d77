"""What an evaluation gave: metrics.json, and the files of its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from pipeline.errors import ResultError
from pipeline.evaluation.accuracy import wilson_interval
from pipeline.report.conditions import Conditions
from pipeline.report.reliability import Reliability, read_reliability
from pipeline.report.results import Document, Share, read_result

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "CURVE_ATTACK",
    "AttackRow",
    "AttackSettings",
    "ClassScore",
    "CorruptedSets",
    "EpsPoint",
    "Metrics",
    "Score",
    "Scores",
    "Settings",
    "read_by_eps",
    "read_scores",
    "require_one_evaluation",
    "warning_lines",
]

_COMMAND = "ltd-pipe evaluate"
# Before its flags, among the warnings of metrics.json.
_OF_AUTOATTACK = "AutoAttack: "
# Behind by_eps.json and examples.npz, whatever evaluate.pgd_steps is.
CURVE_ATTACK = "PGD-20"


@dataclass(frozen=True)
class Score:
    """An accuracy with its 95 % interval; fractions."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, value: float, n: int) -> Score:
        """The score of a fraction of n images, with Wilson's interval."""
        return cls(value, *wilson_interval(round(value * n), n), n)

    @property
    def hits(self) -> int:
        """How many images were right."""
        return round(self.value * self.n)


class AttackRow(Document):
    """One attack of metrics.json: what it is called, what was measured, and what decides it."""

    model_config = ConfigDict(extra="allow")

    key: str
    name: str
    n: int = Field(ge=1)
    accuracy: Share
    low: Share
    high: Share

    @property
    def filed(self) -> str:
        """Its key as metrics.json and dvc metrics call it."""
        return self.key.replace("-", "_")

    @property
    def decides(self) -> dict[str, Any]:
        """Norm, steps and whatever else decides the number."""
        return dict(self.model_extra or {})


class CorruptedSets(Document):
    """How many images, and sets of them, the accuracy on corrupted images is of."""

    n: int = Field(ge=1)
    sets: int = Field(ge=1)


class Metrics(Document):
    """metrics.json: accuracies and intervals are fractions, eps is in pixel units."""

    n: int = Field(ge=1)
    norm: Literal["linf", "l2"] = "linf"
    eps: float = Field(gt=0)
    quick: bool = False
    checkpoint_sha256: str | None = None
    attacks: tuple[AttackRow, ...] = ()
    autoattack_version: str | None = None
    clean_accuracy: Share
    pgd_accuracy: Share
    autoattack_accuracy: Share | None = None
    expected_calibration_error: Share
    expected_calibration_error_under_attack: Share | None = None
    autoattack: dict[str, Share] = Field({})
    intervals: dict[str, tuple[Share, Share]] = Field({})
    corruption_accuracy: Share | None = None
    corruptions: CorruptedSets | None = None
    not_measured: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @field_validator("eps")
    @classmethod
    def _is_in_pixel_units(cls, eps: float, info: ValidationInfo) -> float:
        if info.data.get("norm") == "linf" and eps > 1:
            raise ValueError("radii of linf are at most 1, in pixel units")
        return eps


class EpsPoint(Document):
    """One radius of by_eps.json."""

    eps: float = Field(ge=0)
    robust_accuracy: Share
    low: Share
    high: Share
    n: int | None = Field(None, ge=1)


class ClassScore(Document):
    """One class's images under one attack, in per_class.json."""

    n: int = Field(ge=0)
    accuracy: Share | None
    low: Share
    high: Share

    @property
    def score(self) -> Score | None:
        """As other accuracies; None where the class has no images."""
        return None if self.accuracy is None else Score(self.accuracy, self.low, self.high, self.n)


class AttackSettings(Document):
    """One attack of settings.json."""

    name: str
    steps: int | None = None
    restarts: int | None = None
    step_size: float | None = None


class Settings(Document):
    """settings.json: how it was measured; what else it holds is shown as it is."""

    model_config = ConfigDict(extra="allow")

    attacks: tuple[AttackSettings, ...] = ()
    autoattack_version: str | None = None
    flags: tuple[str, ...] = ()
    norm: str | None = None
    eps: float | None = None
    images: int | None = None
    checkpoint_sha256: str | None = None
    data_fingerprint: str | None = None
    seed: int | None = None
    software: dict[str, str] = Field({})
    hardware: dict[str, Any] = Field({})


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

    def score(self, name: str) -> Score | None:
        """An accuracy of metrics.json with its interval, or None where it was not measured.

        Parameters
        ----------
        name : str
            `clean_accuracy`, `pgd_accuracy`, `autoattack_accuracy` or `corruption_accuracy`.
        """
        value = getattr(self.metrics, name)
        if value is None:
            return None
        bounds, n = self.metrics.intervals.get(name), self.metrics.n
        if name == "corruption_accuracy" and self.metrics.corruptions is not None:
            n = self.metrics.corruptions.n
        return Score(value, *bounds, n) if bounds else Score.of(value, n)

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
    found = read_result(metrics, Metrics, _COMMAND)
    _require_intervals(found, metrics)
    settings = Settings()
    if folder is not None and (folder / "settings.json").exists():
        settings = read_result(folder / "settings.json", Settings, _COMMAND)
        said = (found.checkpoint_sha256, found.norm, found.eps, found.n)
        require_one_evaluation(*said, settings, folder / "settings.json")
    by_eps = () if folder is None else read_by_eps(folder)
    return Scores(found, by_eps, settings, _reliability(found, folder), _by_class(folder))


def _by_class(folder: Path | None) -> dict[str, dict[str, ClassScore]]:
    path = None if folder is None else folder / "per_class.json"
    if path is None or not path.exists():
        return {}
    rows = read_result(path, list[dict[str, ClassScore | str]], _COMMAND)
    return {
        str(row.get("class")): {k: one for k, one in row.items() if isinstance(one, ClassScore)}
        for row in rows
    }


def read_by_eps(folder: Path) -> tuple[EpsPoint, ...]:
    """The curve of an evaluation's folder, rising in eps; empty where it was not measured.

    Raises
    ------
    ResultError
        When by_eps.json is damaged.
    """
    path = folder / "by_eps.json"
    found = read_result(path, list[EpsPoint], _COMMAND) if path.exists() else []
    return tuple(sorted(found, key=lambda point: point.eps))


def require_one_evaluation(
    sha256: str | None, norm: str, eps: float, n: int, settings: Settings, path: Path
) -> None:
    """Refuse settings of another evaluation than that of the numbers.

    Parameters
    ----------
    sha256 : str or None
        Of the checkpoint, as metrics.json has it; that of older ones does not.
    norm : str
    eps : float
    n : int
        Images.
    settings : Settings
    path : Path
        settings.json.

    Raises
    ------
    ResultError
        When both say one of these, and differ.
    """
    pairs = {
        "SHA-256 of the checkpoint": (sha256, settings.checkpoint_sha256),
        "norm": (norm, settings.norm),
        "eps": (eps, settings.eps),
        "images": (n, settings.images),
    }
    for what, (expected, found) in pairs.items():
        if None not in (expected, found) and expected != found:
            raise ResultError(
                path,
                f"is of another evaluation than the metrics: {what}",
                expected=_short(expected),
                found=_short(found),
                remedy=f"Name the folder that '{_COMMAND}' wrote with these metrics.",
            )


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) else value


def _reliability(found: Metrics, folder: Path | None) -> Reliability | None:
    path = None if folder is None else folder / "reliability.json"
    if path is None or not path.exists():
        return None
    errors = {
        "clean": found.expected_calibration_error,
        "under_attack": found.expected_calibration_error_under_attack,
    }
    return read_reliability(path, found.n, errors)


def _require_intervals(found: Metrics, path: Path) -> None:
    for name, (low, high) in found.intervals.items():
        value = getattr(found, name, None)
        # Half a millionth: the bounds may have been rounded when they were written.
        if value is not None and not low - 5e-7 <= value <= high + 5e-7:
            raise ResultError(
                path,
                f"intervals.{name}",
                expected=f"bounds around {value}",
                found=[low, high],
                remedy=f"Run '{_COMMAND}' again.",
            )
