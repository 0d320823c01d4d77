"""Typed, validated view of params.yaml: one class per stage, validated once at the edge.

Every field says its meaning, unit and special values; unknown keys are refused. The same
fields are the options of the stage's command.
"""

from __future__ import annotations

import difflib
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import MissingError, ParamsError
from pipeline.images.augmentation import Augmentation

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic_core import ErrorDetails

__all__ = [
    "Common",
    "EvaluateParams",
    "FitParams",
    "LabelParams",
    "Params",
    "PrepareParams",
    "ReportParams",
    "Section",
    "TeacherParams",
    "TrainParams",
    "load_params",
    "parse_params",
    "parse_standalone",
]


def _number(value: Any) -> Any:
    """Accept `8/255` wherever a number is wanted."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"'{value}' is not a number or a fraction such as 8/255") from error
    return value


def _auto_or_number(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("auto:"):
        return value
    return _number(value)


Number = Annotated[float, BeforeValidator(_number)]
# Pixel units: images are in [0, 1], so a perturbation above 1 means a wrong unit.
Pixels = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)]
Probability = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PrepareParams(Section):
    """Which images, and how they are stored."""

    dataset: Literal["digits", "cifar10", "cifar100", "folder"] = Field(
        description="digits comes with scikit-learn; folder is torchvision's ImageFolder layout"
    )
    path: str | None = Field(
        None,
        description="folder: holds train/ and test/ (or val/); CIFAR: where torchvision keeps it",
    )
    download: bool = Field(True, description="let torchvision download CIFAR when it is absent")
    image_size: int | None = Field(
        None,
        ge=4,
        description="resize the shorter side to this many pixels and crop the centre; "
        "null: images stay as they are and must all have one size",
    )
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: RGB")
    encoding: Literal["raw", "jpeg"] = Field(
        "raw", description="raw: exact pixels, for small images; jpeg: for large ones"
    )
    jpeg_quality: int = Field(90, ge=1, le=100, description="quality of encoding jpeg")
    validation_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the training images held out for choosing checkpoints; "
        "which ones is fixed by the hash of each image",
    )
    skip_bad: bool = Field(False, description="leave out unreadable images instead of stopping")
    workers: int = Field(
        1, ge=1, description="processes that encode; the file's bytes are reproducible with 1"
    )

    @model_validator(mode="after")
    def _folder_needs_a_path(self) -> PrepareParams:
        if self.dataset == "folder" and self.path is None:
            raise ValueError("dataset 'folder' needs prepare.path")
        return self


class FitParams(Section):
    """What clean and adversarial training have in common."""

    architecture: str = Field(
        description="a name of 'ltd-pipe doctor --models', timm:NAME or torchvision:NAME"
    )
    epochs: int = Field(ge=1, description="passes over the training images")
    images: int | None = Field(
        None, ge=1, description="train on so many of them, chosen at random; null: all"
    )
    batch_size: int = Field(128, ge=1, description="images per step")
    learning_rate: Number = Field(0.1, gt=0, description="peak learning rate of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(False, description="Nesterov's form of momentum")
    weight_decay: Number = Field(5e-4, ge=0, description="L2 penalty on all weights")
    schedule: Literal["one-cycle", "step", "constant"] = Field(
        "one-cycle", description="one-cycle: linear up and down; step: times 0.1 at milestones"
    )
    warmup_fraction: float = Field(
        0.25, ge=0, le=1, description="one-cycle: share of the steps before the peak"
    )
    milestones: tuple[Number, ...] = Field(
        (0.5, 0.75), description="step: where the rate falls, as fractions of the run"
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the weights' moving average; 0: none"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="mass moved from the true class to all classes evenly"
    )
    crop_padding: int = Field(
        0, ge=0, description="random crop after padding by these pixels, for small images"
    )
    crop_scale: tuple[Number, Number] | None = Field(
        None,
        description="random crop of least to most of the area, such as [0.25, 1], enlarged to "
        "the image's size, for large images; null: none",
    )
    flip: bool = Field(False, description="random horizontal flip")
    mean: tuple[Number, ...] | None = Field(
        None,
        description="per channel, subtracted from pixels in [0, 1] inside the model; null: 0",
    )
    std: tuple[Number, ...] | None = Field(
        None, description="per channel, divides them likewise; null: 1"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where a short measurement finds it faster"
    )
    channels_last: bool = Field(True, description="memory format of images and weights")
    snapshot_minutes: float = Field(
        5.0, ge=0, description="minutes between snapshots to resume from; also at each epoch's end"
    )

    @model_validator(mode="after")
    def _augmentation_is_possible(self) -> FitParams:
        assert self.augmentation  # noqa: S101  making it is the check
        return self

    @property
    def augmentation(self) -> Augmentation:
        """What is done to the training images at random."""
        return Augmentation(self.crop_padding, self.flip, self.crop_scale)


class TeacherParams(FitParams):
    """The teacher: trained on clean images, or given."""

    checkpoint: str | None = Field(
        None, description="use these weights instead of training; null: train"
    )


class LabelParams(Section):
    """How the teacher is read."""

    temperature: Annotated[float | str, BeforeValidator(_auto_or_number)] = Field(
        2.0,
        description="the logits are divided by it; auto:0.9 solves for a mean top probability "
        "of 0.9 on the data",
    )
    logits: bool = Field(
        True, description="store the logits too, for other temperatures later; not with top_k"
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="store only each row's k largest probabilities, the rest of the mass spread "
        "evenly; null: all",
    )
    views: int = Field(
        1,
        ge=1,
        le=2**16,
        description="augmented views of each image that are labelled; training then replays them",
    )
    augmentation: str = Field(
        "none",
        description="what makes the views, such as crop:4,flip or resized-crop:0.25-1,flip, and "
        "has to be that of train; none: the image as it is",
    )
    seed: int | None = Field(
        None, ge=0, lt=2**31, description="of the augmentation; null: the run's"
    )
    batch_size: int = Field(256, ge=1, description="images per teacher call")
    chunk_rows: int | None = Field(
        None,
        ge=1,
        description="images per file of the store, rounded to whole batches: the most that an "
        "interruption loses, and what processes share; null: about 8 MiB, at most 8192 images",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="of the teacher's forward pass"
    )
    licence: str | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="of the labels, for those who get them: an SPDX name such as CC-BY-4.0, or a "
        "text; null: nothing is said",
    )
    citation: str | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="how to cite the labels, such as BibTeX; null: nothing is said",
    )

    @model_validator(mode="after")
    def _temperature_is_positive(self) -> LabelParams:
        if isinstance(self.temperature, str):
            self.target_top_probability()
        elif not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, found {self.temperature}")
        return self

    @model_validator(mode="after")
    def _views_differ(self) -> LabelParams:
        augmentation = Augmentation.parse(self.augmentation)
        if self.views > 1 and augmentation.is_none:
            raise ValueError(
                f"{self.views} views without an augmentation would all be the same: set "
                "augmentation, such as crop:4,flip"
            )
        return self

    def target_top_probability(self) -> float | None:
        """The P of `auto:P`, or None when the temperature is a number."""
        if not isinstance(self.temperature, str):
            return None
        text = self.temperature.removeprefix("auto:")
        try:
            target = float(text)
        except ValueError:
            target = -1.0
        if not self.temperature.startswith("auto:") or not 0 < target < 1:
            raise ValueError(
                f"temperature must be a number or auto:P with P in (0, 1), "
                f"found '{self.temperature}'"
            )
        return target


class TrainParams(FitParams):
    """The student: adversarial training on one-hot, smoothed or the teacher's soft labels."""

    objective: Literal["at", "trades", "mart"] = Field(
        "at",
        description="at: Madry et al. 2018; trades: Zhang et al. 2019; mart: Wang et al. 2020",
    )
    beta: Number = Field(6.0, ge=0, description="trades, mart: weight of the KL term")
    awp_gamma: Number = Field(
        0.0,
        ge=0,
        lt=1,
        description="adversarial weight perturbation, relative to each weight's norm: 0.005 for "
        "trades and mart, 0.01 for at (Wu et al. 2020); 0: none",
    )
    awp_from_epoch: int = Field(10, ge=0, description="epochs before it are trained without")
    attack_label: Literal["truth", "target"] = Field(
        "truth",
        description="at: the attack maximises the loss of the ground truth, or of the target",
    )
    label_kind: Literal["onehot", "smooth", "ltd"] = Field(
        "ltd", description="onehot, smooth (see smoothing), ltd (from the store)"
    )
    smoothing: Number = Field(
        0.1, ge=0, lt=1, description="smooth: mass moved from the true class to all evenly"
    )
    soft_weight: Probability = Field(
        1.0, description="ltd: weight of the soft label; the rest is one-hot"
    )
    rectify: bool = Field(
        False,
        description="ltd: lower soft_weight per sample by max q - q[true], where the teacher "
        "contradicts the ground truth (ADR)",
    )
    label_temperature: Number | None = Field(
        None,
        gt=0,
        description="ltd: read the store's logits at this temperature; null: the soft labels as "
        "they are stored",
    )
    temperature: Number = Field(
        1.0, gt=0, description="the student's own, part of the model, in training and inference"
    )
    eps: Pixels = Field(description="radius of the L-infinity ball, in pixel units [0, 1]")
    step_size: Pixels = Field(description="of PGD, in pixel units")
    attack_steps: int = Field(10, ge=1, description="PGD steps in training")
    validation_attack_steps: int = Field(
        10, ge=1, description="PGD steps when choosing the best checkpoint"
    )
    validation_every: int = Field(1, ge=1, description="epochs between validations")


class EvaluateParams(Section):
    """What the student is attacked with in the end."""

    eps: Pixels = Field(description="radius of the L-infinity ball, in pixel units [0, 1]")
    images: int | None = Field(
        None, ge=1, description="the first so many test images, in random order; null: all"
    )
    batch_size: int = Field(256, ge=1, description="images per model call")
    pgd_steps: int = Field(50, ge=1, description="steps of PGD")
    pgd_restarts: int = Field(5, ge=1, description="random restarts of PGD")
    autoattack: Literal["standard", "none"] = Field(
        "standard", description="AutoAttack's version; none: leave it out, and say so"
    )
    eps_grid: tuple[Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)], ...] = Field(
        (), description="radii for the curve of robust accuracy by eps (PGD-20)"
    )
    precision: Literal["float32"] = Field(
        "float32", description="attacks are run in float32: lower precision can mask gradients"
    )


class ReportParams(Section):
    """What the report shows."""

    title: str = Field("Robust classifier", description="the page's title")
    examples: int = Field(8, ge=0, le=64, description="pictures of clean and attacked images")


class Common(Section):
    """What all stages share."""

    launch: str = Field(
        "python",
        description="what starts each stage: the interpreter, or a wrapper such as srun python",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of every random number")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where it is")


class Params(Common):
    """All of params.yaml."""

    prepare: PrepareParams
    teacher: TeacherParams
    label: LabelParams
    train: TrainParams
    evaluate: EvaluateParams
    report: ReportParams = ReportParams()


def load_params(path: Path, overrides: Mapping[str, str] | None = None) -> Params:
    """Read and validate a parameter file.

    Parameters
    ----------
    path : Path
        A YAML file with one section per stage.
    overrides : mapping of str to str, optional
        `section.key` to a YAML value, as given on the command line.

    Returns
    -------
    Params

    Raises
    ------
    MissingError, ParamsError
        Naming the file and the key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(
            path,
            "no such parameter file",
            remedy="Run where params.yaml is, pass --params, or 'ltd-pipe recipe use NAME'.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).replace("\n", " ")
        raise ParamsError(path, f"is not readable as YAML ({first})") from error
    return parse_params(content, overrides, where=str(path))


def parse_params(
    content: Any, overrides: Mapping[str, str] | None = None, where: str = "params"
) -> Params:
    """Validate parameters already read; see `load_params`."""
    if not isinstance(content, dict):
        raise ParamsError(where, "expected sections such as 'train:'", found=type(content).__name__)
    for key, value in (overrides or {}).items():
        _override(content, key, value)
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise _explain(error, where, overrides) from error


def parse_standalone(section: str, overrides: Mapping[str, str]) -> Params:
    """Parameters of one stage alone, where there is no file: its defaults and the overrides.

    Only `seed`, `device` and the section itself may be read from the result.
    """
    content: dict[str, Any] = {section: {}}
    for key, value in overrides.items():
        _override(content, key, value)
    model = Params.model_fields[section].annotation
    try:
        checked = model.model_validate(content.pop(section))  # type: ignore[union-attr]
        common = Common.model_validate(content)
    except ValidationError as error:
        raise _explain(error, "options", overrides) from error
    return Params.model_construct(**common.model_dump(), **{section: checked})


def _override(content: dict[str, Any], key: str, value: str) -> None:
    *sections, name = key.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ParamsError(key, f"'{section}' is a value, not a section")
    try:
        place[name] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ParamsError(key, "is not readable as YAML", found=repr(value)) from error


def _explain(
    error: ValidationError, where: str, overrides: Mapping[str, str] | None
) -> ParamsError:
    problems = error.errors()
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    if any(given == key or given.startswith(f"{key}.") for given in overrides or ()):
        where = "option"  # the file is not to blame
    more = f"{len(problems) - 1} more problem(s) after this one." if len(problems) > 1 else ""
    place = f"{where}: {key}" if key else where
    if first["type"] == "missing":
        return ParamsError(place, "is missing", remedy=f"Add it. {more}".strip())
    if first["type"] == "extra_forbidden":
        return ParamsError(place, "unknown key", remedy=f"{_suggestion(first)} {more}".strip())
    found = None if first["type"] == "value_error" else repr(first["input"])
    what = first["msg"].removeprefix("Value error, ")
    return ParamsError(place, what[:1].lower() + what[1:], found=found, remedy=more)


def _suggestion(problem: ErrorDetails) -> str:
    *sections, name = [str(part) for part in problem["loc"]]
    model: Any = Params
    for section in sections:
        model = model.model_fields[section].annotation
    close = difflib.get_close_matches(name, model.model_fields, n=1)
    return f"Did you mean '{close[0]}'?" if close else "Remove it."
