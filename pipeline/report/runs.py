"""What a training run left: its checkpoint's facts, its curves, its times."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from pipeline.errors import MissingError, ResultError
from pipeline.evaluation.doubts import ON_TRAINING, on_training
from pipeline.models.checkpoint import read_facts
from pipeline.provenance import sha256_file
from pipeline.report.results import (
    Document,
    Share,
    parse_result,
    read_bytes,
    read_result,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.report.scores import Settings

__all__ = ["CURVES", "CollapseFacts", "Curve", "Run", "RunFacts", "Timing", "read_run"]

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
