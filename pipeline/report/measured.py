"""An evaluation with whatever attacks it has: metrics.json, and what its settings say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from pipeline.errors import MissingError, ResultError
from pipeline.report.conditions import Conditions
from pipeline.report.results import Document, Share, read_result
from pipeline.report.scores import (
    AttackRow,
    CorruptedSets,
    Score,
    Settings,
    require_one_evaluation,
    warning_lines,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.report.scores import Scores

__all__ = ["CORRUPTION", "Measured", "measured_of", "read_measured"]

# The score that is of corrupted images, not of attacked ones.
CORRUPTION = "corruption"

_EVALUATE = "ltd-pipe evaluate"


class _Metrics(Document):
    """metrics.json; each accuracy that has an interval is read."""

    model_config = ConfigDict(extra="allow")

    n: int = Field(ge=1)
    eps: float = Field(gt=0)
    norm: str = "linf"
    quick: bool = False
    checkpoint_sha256: str | None = None
    clean_accuracy: Share
    expected_calibration_error: Share | None = None
    autoattack: dict[str, Share] = Field({})
    intervals: dict[str, tuple[Share, Share]]
    not_measured: tuple[str, ...] = ()
    attacks: tuple[AttackRow, ...] = ()
    corruptions: CorruptedSets | None = None
    warnings: tuple[str, ...] = ()


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
    found = read_result(metrics, _Metrics, _EVALUATE)
    path = evaluation / "settings.json"
    if not path.exists():
        raise MissingError(
            path,
            f"no such file, and it holds the rest of {metrics}",
            remedy=f"Run 'ltd-pipe evaluate --metrics {metrics} --out {evaluation}', or rename "
            "the folder that it wrote.",
        )
    settings = read_result(path, Settings, _EVALUATE)
    said = (found.checkpoint_sha256, found.norm, found.eps, found.n)
    require_one_evaluation(*said, settings, path)
    scores = {
        name.removesuffix("_accuracy"): _score(found, name, metrics) for name in found.intervals
    }
    return Measured(
        n=found.n,
        norm=found.norm,
        eps=found.eps,
        quick=found.quick,
        scores=scores,
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
    found = {name: scores.score(f"{name}_accuracy") for name in ("clean", *names)}
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


def _score(found: _Metrics, name: str, path: Path) -> Score:
    value, (low, high) = getattr(found, name, None), found.intervals[name]
    # Half a millionth: the bounds may have been rounded when they were written.
    if not isinstance(value, int | float) or not low - 5e-7 <= value <= high + 5e-7:
        raise ResultError(
            path,
            f"intervals.{name}",
            expected=f"bounds around {value}",
            found=[low, high],
            remedy=f"Run '{_EVALUATE}' again.",
        )
    corrupted = found.corruptions if name == f"{CORRUPTION}_accuracy" else None
    return Score(float(value), low, high, corrupted.n if corrupted else found.n)
