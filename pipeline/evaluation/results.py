"""The files of evaluations and audits: one schema each, for who writes and for who reads.

Accuracies are fractions with 95 % intervals, eps is in pixel units. No torch is loaded here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ltd_pipe.errors import DAMAGED_ZIP, MissingError, ResultError, reason_of
from ltd_pipe.evaluation import statistics
from ltd_pipe.evaluation.statistics import ConfidenceBin, Share, wilson_interval

# --- How a threat model is written for people.


# As RobustBench writes them.
NORMS = {"linf": "Linf", "l2": "L2"}


def eps_text(eps: float) -> str:
    """A radius in pixel units: `8/255` where it is a whole number of grey levels.

    0.2 is one too, but whoever writes 0.2 does not mean 51/255: short decimals stay.
    """
    levels = round(eps * 255)
    if math.isclose(eps, round(eps, 2), abs_tol=1e-9):
        return f"{round(eps, 2):.4g}"
    if levels and math.isclose(eps * 255, levels, rel_tol=1e-6):
        return f"{levels}/255"
    return f"{eps:.4g}"


def threat_text(norm: str, eps: float) -> str:
    """Norm and radius, such as `Linf 8/255`."""
    return f"{NORMS[norm]} {eps_text(eps)}"


# --- Where the files of an evaluation lie.


def evaluation_beside(metrics: Path) -> Path:
    """The folder of an evaluation: `baseline-evaluation` for `baseline-metrics.json`."""
    stem = metrics.name.removesuffix(".json")
    if stem == metrics.name:
        return metrics.with_name(f"{stem}-evaluation")
    return metrics.with_name(
        f"{stem.removesuffix('metrics')}evaluation" if stem.endswith("metrics") else stem
    )


def metrics_beside(evaluation: Path) -> tuple[Path, ...]:
    """Where the metrics of an evaluation's folder may be, by `evaluation_beside`."""
    evaluation = evaluation.absolute()
    if not evaluation.name:
        return ()
    begins = evaluation.name.removesuffix("evaluation")
    named = begins + ("metrics" if begins != evaluation.name else "")
    return evaluation.with_name(f"{named}.json"), evaluation.with_name(f"{evaluation.name}.json")


def audit_beside(metrics: Path) -> Path:
    """The audit.json of what was measured, where `audit` leaves it."""
    return metrics.with_name("audit") / "audit.json"


def audit_in(place: Path) -> Path:
    """The audit.json that is named by itself or by its folder."""
    return place / "audit.json" if place.is_dir() else place


# --- Reading, with a clear line for a file that is damaged.


Result = TypeVar("Result")

_EVALUATE, _AUDIT = "ltd-pipe evaluate", "ltd-pipe audit"


class Document(BaseModel):
    """Base of what is in a file: frozen; keys that a later version adds are passed over."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True
    )

    def dump(self) -> dict[str, Any]:
        """Plain values for JSON: what was set, in the order of the fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def read_bytes(path: Path, remedy: str) -> bytes:
    """All bytes of a file; `remedy` is for one that is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingError(path, "no such file", remedy=remedy) from error
    except OSError as error:
        raise ResultError(path, f"cannot be read: {error.strerror}") from error


def read_result(path: Path, model: type[Result], command: str) -> Result:
    """Read a JSON file as a `Document`, or a list of them, that `command` writes.

    A MissingError when it is not there, a ResultError when it is not JSON, or a value is missing or
    impossible.
    """
    content = read_bytes(path, f"Run '{command}' first.")
    try:
        return pydantic.TypeAdapter(model).validate_json(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = f"{key}: {first['msg']}" if key else f"is damaged ({first['msg']})"
        found = repr(first["input"])[:60] if key and first["type"] != "missing" else None
        again = f"Run '{command}' again."
        raise ResultError(path, what, found=found, remedy=again) from error


def _require_same(path: Path, what: str, expected: Any, found: Any) -> None:
    """Refuse a file that says other things than its metrics.json; what is None was not said."""
    # Sums of the same numbers differ by their rounding.
    numbers = isinstance(expected, int | float) and found is not None
    same = abs(expected - found) <= 1e-6 if numbers else expected == found
    if not same and expected is not None and found is not None:
        raise ResultError(
            path,
            f"is of another evaluation than the metrics: {what}",
            expected=f"{expected:.6g}" if numbers else expected[:12],
            found=f"{found:.6g}" if numbers else found[:12],
            remedy=f"Name the folder that '{_EVALUATE}' wrote with these metrics.",
        )


# --- metrics.json, and what people compare of it: scores.json.


@dataclass(frozen=True)
class Score:
    """An accuracy of n images with its 95 % interval; fractions."""

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


def measured(correct: Any) -> dict[str, Any]:
    """The n, accuracy and interval of images that a model is right on or not (n booleans)."""
    hits, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(hits, n)
    return {"n": n, "accuracy": hits / n if n else None, "low": low, "high": high}


class AttackRow(Document):
    """One attack of metrics.json: what it is called, what was measured, and what decides it."""

    model_config = ConfigDict(extra="allow")

    key: str
    name: str
    n: int = Field(ge=1)
    accuracy: Share
    low: Share
    high: Share

    @pydantic.model_validator(mode="after")
    def _is_within_its_interval(self) -> AttackRow:
        # Half a millionth: the bounds may have been rounded when they were written.
        if not self.low - 5e-7 <= self.accuracy <= self.high + 5e-7:
            raise PydanticCustomError("interval", "the accuracy is outside its interval")
        return self

    @property
    def filed(self) -> str:
        """Its key as metrics.json and dvc metrics call it."""
        return self.key.replace("-", "_")

    @property
    def score(self) -> Score:
        """What was measured."""
        return Score(self.accuracy, self.low, self.high, self.n)

    @property
    def decides(self) -> dict[str, Any]:
        """Norm, steps and whatever else decides the number."""
        return dict(self.model_extra or {})


class CorruptedSets(Document):
    """How many images, and sets of them, the accuracy on corrupted images is of."""

    n: int = Field(ge=1)
    sets: int = Field(ge=1)


class Metrics(Document):
    """metrics.json: `attacks` holds what was measured, which is written by name as well."""

    n: int = Field(ge=1)
    norm: Literal["linf", "l2"]
    eps: float = Field(gt=0)
    quick: bool = False
    expected_calibration_error: Share | None = None
    expected_calibration_error_under_attack: Share | None = None
    autoattack: dict[str, Share] = Field({})
    autoattack_version: str | None = None
    zero_accuracy_at_eps: float | None = None
    eps_grid_images: int | None = None
    corruption_accuracy: Share | None = None
    corruptions: CorruptedSets | None = None
    attacks: tuple[AttackRow, ...]
    not_measured: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    checkpoint_sha256: str

    @pydantic.field_validator("eps")
    @classmethod
    def _is_in_pixel_units(cls, eps: float, info: pydantic.ValidationInfo) -> float:
        if info.data.get("norm") == "linf" and eps > 1:
            raise ValueError("radii of linf are at most 1, in pixel units")
        return eps

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _is_named_as_measured(cls, data: Any, handler: Callable[[Any], Metrics]) -> Metrics:
        found = handler(data)
        measured = found.dump()
        names = [name for name in data if name.endswith("_accuracy") or name == "intervals"]
        if wrong := [name for name in names if data[name] != measured.get(name)]:
            what = f"{wrong[0]} is not what its attacks say"
            raise PydanticCustomError("names", "{what}", {"what": what})
        return found

    @pydantic.model_serializer(mode="wrap")
    def _with_accuracies_first(self, handler: Callable[[Metrics], Any]) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        head = {name: fields.pop(name) for name in ("n", "norm", "eps", "quick") if name in fields}
        accuracies = {f"{row.filed}_accuracy": row.accuracy for row in self.attacks}
        intervals = {f"{name}_accuracy": (one.low, one.high) for name, one in self.scores.items()}
        return head | accuracies | {"intervals": intervals} | fields

    @property
    def scores(self) -> dict[str, Score]:
        """Each accuracy by what its file calls it without `_accuracy`, `clean` first."""
        found = {row.filed: row.score for row in self.attacks}
        if self.corruptions is not None and self.corruption_accuracy is not None:
            found["corruption"] = Score.of(self.corruption_accuracy, self.corruptions.n)
        return found

    def compared(self) -> dict[str, float]:
        """What scores.json holds, and `dvc exp show` in columns."""
        names = ("_accuracy", "_error", "_under_attack", "zero_accuracy_at_eps")
        return {k: v for k, v in self.dump().items() if k.endswith(names) and v is not None}


def read_metrics(path: Path) -> Metrics:
    """Read metrics.json; see `read_result`."""
    return read_result(path, Metrics, _EVALUATE)


# --- The folder of an evaluation: settings.json, by_eps.json, per_class.json, corruptions.json.


class AttackSettings(Document):
    """One attack of settings.json."""

    name: str
    loss: str | None = None
    steps: int | None = None
    restarts: int | None = None
    step_size: float | None = None


class Settings(Document):
    """settings.json: how it was measured."""

    model_config = ConfigDict(extra="allow")

    attacks: tuple[AttackSettings, ...] = ()
    autoattack_version: str | None = None
    norm: str | None = None
    eps: float | None = None
    images: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    tf32: bool | None = None
    seed: int | None = None
    checkpoint_sha256: str | None = None
    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dataset: str | None = None
    data_fingerprint: str | None = None
    image_shape: tuple[int, ...] | None = None
    pixels_sha256: str | None = None
    software: dict[str, str] = Field({})
    hardware: dict[str, Any] = Field({})


def read_settings(path: Path, metrics: Metrics) -> Settings:
    """Read settings.json, and refuse that of another evaluation; see `read_result`."""
    found = read_result(path, Settings, _EVALUATE)
    hashes = metrics.checkpoint_sha256, found.checkpoint_sha256
    _require_same(path, "SHA-256 of the checkpoint", *hashes)
    _require_same(path, "norm", metrics.norm, found.norm)
    _require_same(path, "eps", metrics.eps, found.eps)
    _require_same(path, "images", metrics.n, found.images)
    return found


class EpsPoint(Document):
    """One radius of by_eps.json."""

    eps: float = Field(ge=0)
    robust_accuracy: Share
    low: Share
    high: Share
    n: int | None = Field(None, ge=1)


def read_by_eps(folder: Path) -> tuple[EpsPoint, ...]:
    """The curve of an evaluation's folder, rising in eps; empty where it was not measured."""
    path = folder / "by_eps.json"
    found = read_result(path, list[EpsPoint], _EVALUATE) if path.exists() else []
    return tuple(sorted(found, key=lambda point: point.eps))


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


def read_per_class(folder: Path) -> dict[str, dict[str, ClassScore]]:
    """For each class its scores by the attack's key; empty where they were not written."""
    path = folder / "per_class.json"
    rows = read_result(path, list[dict[str, ClassScore | str]], _EVALUATE) if path.exists() else []
    return {
        str(row.get("class")): {k: one for k, one in row.items() if isinstance(one, ClassScore)}
        for row in rows
    }


class CorruptionRow(Document):
    """One set of corrupted images in corruptions.json; severity is None where it has none."""

    corruption: str
    severity: int | None
    n: int = Field(ge=1)
    accuracy: Share
    low: Share
    high: Share


class Reliability(Document):
    """reliability.json: the bins that hold images, without and under attack."""

    clean: tuple[ConfidenceBin, ...]
    under_attack: tuple[ConfidenceBin, ...]


def read_reliability(path: Path, metrics: Metrics) -> Reliability:
    """Read reliability.json, and refuse bins of another evaluation; see `read_result`."""
    found = read_result(path, Reliability, _EVALUATE)
    attacked = metrics.expected_calibration_error_under_attack
    errors = {"clean": metrics.expected_calibration_error, "under_attack": attacked}
    for name, error in errors.items():
        bins = getattr(found, name)
        _require_same(path, f"{name}: images", metrics.n, sum(one.count for one in bins))
        _require_same(path, f"{name}: calibration error", error, statistics.mean_gap(bins))
    return found


# --- per_sample.npz: the test images, and which of them the model is right on.


SAMPLES_FILE = "per_sample.npz"
# What marks a column of answers, before the key of the attack.
_CORRECT = "correct_"


@dataclass(frozen=True)
class Samples:
    """The test images, in the order of their hashes, and which of them a model is right on."""

    sample_hash: NDArray[np.uint64]
    label: NDArray[np.int64]
    # Under each attack; `clean` is none.
    correct: dict[str, NDArray[np.bool_]]

    def of_the_same_images(self, other: Samples) -> bool:
        """Whether both are of the same images with the same labels."""
        return np.array_equal(self.sample_hash, other.sample_hash) and np.array_equal(
            self.label, other.label
        )


def read_arrays(path: Path, *wanted: str) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; refused when it lacks one, is damaged or holds a pickle."""
    remedy = f"Run '{_EVALUATE}' again."
    try:
        # Opened here: given a path, numpy leaves the file open when it is damaged.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (*DAMAGED_ZIP, KeyError, SyntaxError) as error:
        raise ResultError(path, f"is damaged ({reason_of(error)})", remedy=remedy) from error
    for name in wanted:
        if name not in arrays:
            raise ResultError(path, f"holds no {name}", remedy=remedy)
    return arrays


def read_samples(path: Path) -> Samples:
    """Read per_sample.npz, and refuse a damaged one."""
    arrays = read_arrays(path, "sample_hash", "label", f"{_CORRECT}clean")
    remedy = f"Run '{_EVALUATE}' again."
    columns = {name: array for name, array in arrays.items() if name.startswith(_CORRECT)}
    kinds = {"sample_hash": "u", "label": "i"} | dict.fromkeys(columns, "b")
    n = len(np.atleast_1d(arrays["sample_hash"]))
    for name, kind in kinds.items():
        if arrays[name].shape != (n,) or arrays[name].dtype.kind != kind:
            raise ResultError(path, f"{name} is no column of {n:,} images", remedy=remedy)
    # Two images may be the same one: among these any order is as good, but for the label.
    order = np.lexsort((arrays["label"], arrays["sample_hash"]))
    return Samples(
        arrays["sample_hash"][order],
        arrays["label"][order],
        {name.removeprefix(_CORRECT): column[order] for name, column in columns.items()},
    )


# --- audit.json.


# With so many, a check with a limit of 5 % fails from 10 % on; with fewer it sees even less.
FEW_IMAGES = 100
# The limit of what an attack that works may miss, as a share of the images.
SLACK = 0.02


class Finding(Document):
    """One check: on `count` of `n` images happened what should not, and `limit` may."""

    name: str
    count: int = Field(ge=0)
    n: int = Field(ge=1)
    limit: Share
    meaning: str

    @pydantic.computed_field  # type: ignore[prop-decorator]  # python/mypy#1362
    @property
    def share(self) -> float:
        """Of the images."""
        return self.count / self.n

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def low(self) -> float:
        """The lower end of the share's 95 % interval (Wilson)."""
        return wilson_interval(self.count, self.n)[0]

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def fails_from(self) -> float:
        """The smallest share that fails with so many images: what the check can see."""
        return statistics.first_failure(self.n, self.limit) / self.n

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether the share may be within its limit."""
        return self.low <= self.limit

    @property
    def score(self) -> Score:
        """The share of the images with its 95 % interval."""
        return Score.of(self.share, self.n)

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _has_its_own_verdict(cls, content: Any, handler: Callable[[Any], Any]) -> Any:
        found = handler(content)
        if isinstance(content, dict) and content.get("passed", found.passed) != found.passed:
            what = f"{found.name}: the verdict contradicts its numbers"
            raise PydanticCustomError("verdict", "{what}", {"what": what})
        return found


class LossSurface(Document):
    """The mean cross entropy of some images on a square grid around them.

    `loss[i][j]` is at `offsets[i]` along the gradient and `offsets[j]` along a random direction, in
    the ball's norm and pixel units, clipped to [0, 1]. Of the images, the shares whose loss is
    higher one radius along the gradient, and higher there than along the random direction.
    """

    what: str = ""
    n: int = Field(ge=1)
    offsets: tuple[float, ...] = Field(min_length=2)
    loss: tuple[tuple[float, ...], ...]
    rises: Share = Field(alias="share_whose_loss_rises_along_the_gradient")
    beats_random: Share = Field(alias="share_where_the_gradient_beats_the_random_direction")

    @pydantic.model_validator(mode="after")
    def _is_square(self) -> LossSurface:
        if {len(self.loss), *map(len, self.loss)} != {len(self.offsets)}:
            raise ValueError("the loss is no square grid over the offsets")
        return self


class Audit(Document):
    """audit.json; `refused` says why nothing could be checked, and then there are no findings."""

    checkpoint_sha256: str
    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    n: int = Field(ge=1)
    norm: Literal["linf", "l2"] = "linf"
    eps: float = Field(gt=0)
    seed: int | None = None
    steps: int | None = None
    restarts: int | None = None
    square_queries: int | None = None
    sources: tuple[str, ...] = ()
    software: dict[str, str] = Field({})
    passed: bool
    refused: str | None = None
    findings: tuple[Finding, ...]
    source_clean_accuracy: dict[str, Share] = Field({})
    not_made: tuple[str, ...] = ()
    by_eps: tuple[EpsPoint, ...] = ()
    zero_accuracy_at_eps: float | None = None
    loss_surface: LossSurface | None = None

    @pydantic.model_validator(mode="after")
    def _is_consistent(self) -> Audit:
        if not self.findings and self.refused is None:
            raise ValueError("there are no findings")
        if self.passed != (self.refused is None and not self.failed):
            raise ValueError("passed contradicts its findings")
        return self

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return sum(not finding.passed for finding in self.findings)


def read_audit(path: Path, sha256: str) -> Audit:
    """Read the audit.json of a checkpoint with this hash: its verdict is no other model's."""
    found = read_result(path, Audit, _AUDIT)
    if found.checkpoint_sha256 != sha256:
        raise ResultError(
            path,
            "is not of this checkpoint: its SHA-256",
            expected=sha256[:12],
            found=found.checkpoint_sha256[:12],
            remedy=f"Run '{_AUDIT}' on it.",
        )
    return found


# --- What makes the numbers of an evaluation doubtful or worthless, as warnings for people.


# The ends of these warnings: metrics.json holds warnings as people read them.
ATTACK_FAILS = "it is the attack that fails, and none of these numbers can be believed"
ON_TRAINING = "none of these numbers says how it does on images that it has not seen"
AT_CHANCE = "there is no robustness to measure"


def worthless(warnings: Iterable[str]) -> str:
    """What makes the accuracies measure nothing, as one of the warnings says; or nothing."""
    ends = {
        ATTACK_FAILS: "the attack fails",
        ON_TRAINING: "it was measured on its training images",
        AT_CHANCE: "it is not clearly better than chance on clean images",
    }
    found = (why for line in warnings for end, why in ends.items() if line.endswith(end))
    return next(found, "")


def on_training(n: int) -> str:
    """What to tell of an evaluation on the very images that the model was trained on."""
    return f"all {n:,} images are of the model's training data: {ON_TRAINING}"


# What a checkpoint says may be of other images (validation), so that a little is no sign.
_ALLOWED_GAP = 0.05


def image_warnings(
    sample_hash: NDArray[np.uint64], labels: NDArray[np.int64], training: NDArray[np.uint64] | None
) -> list[str]:
    """Warn of test images that the model may know, or cannot be right on.

    `training` are hashes of the images that it was trained on, where they are at hand.
    """
    n, found = len(labels), []
    known = 0 if training is None else int(np.isin(sample_hash, training).sum())
    if known == n:
        found.append(on_training(n))
    elif known:
        found.append(f"{known:,} of {n:,} test images are of the model's training data, too")
    order = np.lexsort((labels, sample_hash))
    ordered, classes = sample_hash[order], labels[order]
    torn = ordered[1:][(ordered[1:] == ordered[:-1]) & (classes[1:] != classes[:-1])]
    if twice := int(np.isin(sample_hash, torn).sum()):
        found.append(f"{twice:,} of {n:,} test images are in two classes: one of them is wrong")
    return found


def contradicted_accuracy(
    hits: int, n: int, stated: float, of_what: str, of_images: int | None = None
) -> str | None:
    """Warn of a model that is not as accurate on clean images as its checkpoint says.

    A difference within five points is none, nor is one within the intervals at 95 %, of what is
    stated, too, where it is known of how many images that is.
    """
    low, high = wilson_interval(hits, n)
    least, most = stated, stated
    if of_images:
        least, most = wilson_interval(round(stated * of_images), of_images)
        of_what = f"{of_what}, {of_images:,} of them"
    if (low <= most and least <= high) or abs(hits / n - stated) <= _ALLOWED_GAP:
        return None
    if hits / n > stated:  # no wrong scale makes a model better
        reasons = "easier images, some that it was trained on, or its own had wrong labels"
    else:
        reasons = "other images or labels, or pixels on another scale"
    return (
        f"clean accuracy is {hits / n:.1%} of {n:,} images, but the checkpoint says {stated:.1%} "
        f"({of_what}): {reasons}"
    )


def chance(hits: int, counts: NDArray[np.int64]) -> str | None:
    """Warn of a model that is right on no more clean images than guessing may be."""
    told = statistics.chance_text(hits, counts)
    return told and (
        f"clean: {told} (look at its normalisation and its order of classes, or take more images); "
        f"{AT_CHANCE}"
    )


def weak_source(name: str, hits: int, counts: NDArray[np.int64]) -> str | None:
    """Warn of a transfer from a model that knows nothing of these images."""
    if statistics.beats_chance(hits, counts):
        return None
    n = int(counts.sum())
    why = "not clearly better than chance; look at its normalisation and its order of classes"
    if not statistics.beats_chance(n, counts):
        why = "which too few images, or classes too unequal, do not tell from chance; take more"
    return (
        f"transfer from {name} was not tried in earnest: that model is right on {hits} of {n:,} "
        f"clean images, {why}"
    )


def unbroken(left: int, n: int) -> str | None:
    """Warn of images that stand where every pixel may take any value.

    One start of PGD may miss as many of the n images as the audit allows it.
    """
    if not left:
        return None
    seen = f"{left} of {n} images stand although every pixel may take any value"
    if left < statistics.first_failure(n, SLACK):
        return f"{seen}: PGD from one start may miss {SLACK:.0%}, and finds no end of the curve"
    return f"{seen}: {ATTACK_FAILS}"
