"""Sections of params.yaml: what all are made of, and those without training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ltd_pipe.images import MAX_SIDE
from ltd_pipe.images.augmentation import Augmentation


def as_number(value: Any) -> Any:
    """Accept `8/255` wherever a number is wanted."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"'{value}' is not a number or a fraction such as 8/255") from error
    return value


Number = Annotated[float, BeforeValidator(as_number)]
# An empty one would be the working directory.
FileName = Annotated[str, Field(min_length=1)]
# What people write, of one line or more: nothing in it moves a terminal's cursor.
MAX_TEXT = 10_000
Text = Annotated[
    str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$")
]
Probability = Annotated[float, BeforeValidator(as_number), Field(ge=0, le=1)]

# By what a wrong unit is noticed, since images are in [0, 1]. The field's largest L2 radius is
# about 5, for photographs of 224 pixels.
_LARGEST = {"linf": 1.0, "l2": 20.0}


def _is_in_pixel_units(value: float, info: ValidationInfo) -> float:
    norm = info.data.get("norm", "linf")
    if value > _LARGEST[norm]:
        raise ValueError(
            f"radii of {norm} are at most {_LARGEST[norm]:g}, in pixel units, found {value:g}; "
            f"perhaps {value:g}/255 is meant"
        )
    return value


Positive = Annotated[float, BeforeValidator(as_number), Field(gt=0)]
# A radius or a step, of a section that has a norm before it.
PixelLength = Annotated[Positive, AfterValidator(_is_in_pixel_units)]


def _parts(annotation: Any) -> Iterator[Any]:
    """A type and all that it is made of: `Annotated[float, …] | None` has a float in it."""
    yield annotation
    for part in get_args(annotation):
        if part is not Ellipsis:
            yield from _parts(part)


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML's yes and on are True, which pydantic takes for 1 where a number is wanted.
        parts = [*_parts(cls.model_fields[str(info.field_name)].annotation)]
        is_number = any(part in (int, float) or type(part) is int for part in parts)
        if isinstance(value, bool) and is_number and bool not in parts:
            raise PydanticCustomError("boolean", "should be a number, not yes, no, on or off")
        # A list is typed as help shows it: `fgsm,cw-20`, `0.5,0.75`, or one of any number.
        lists = [get_args(part) for part in parts if get_origin(part) is tuple]
        if lists and isinstance(value, str) and value not in parts:
            return [part.strip() for part in value.split(",") if part.strip() not in ("", "none")]
        is_one = isinstance(value, int | float) and any(Ellipsis in each for each in lists)
        return [value] if is_one else value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        for conflict in self._conflicts():
            raise ValueError(conflict)
        return self

    def _conflicts(self) -> Iterator[str]:
        """What parameters contradict each other, and what to set instead."""
        yield from ()

    def idle(self) -> dict[str, str]:
        """Parameters that do nothing beside the others as they are, and what they need instead."""
        return {name: needs for needs, names, used in self._uses() if not used for name in names}

    def _uses(self) -> Iterator[tuple[str, tuple[str, ...], bool]]:
        """What some parameters need to have an effect, their names, and whether it is so."""
        yield from ()


class PrepareParams(Section):
    """Which images, and how they are stored."""

    dataset: Literal["digits", "cifar10", "cifar100", "folder"]
    """digits comes with scikit-learn; folder is torchvision's ImageFolder layout"""
    path: FileName | None = None
    """folder: holds train/ and test/ (or val/); CIFAR: where torchvision keeps it"""
    download: bool = True
    """let torchvision download CIFAR when it is absent"""
    image_size: int | None = Field(None, ge=4, le=MAX_SIDE)
    """resize the shorter side to this many pixels and crop the centre; null: images stay as they
    are and must all have one size"""
    channels: Literal[1, 3] = 3
    """1: grey (luminance), 3: RGB"""
    encoding: Literal["raw", "jpeg"] = "raw"
    """raw: exact pixels, for small images; jpeg: for large ones"""
    jpeg_quality: int = Field(90, ge=1, le=100)
    """quality of encoding jpeg"""
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """share of the training images held out for choosing checkpoints; which ones is fixed by the
    hash of each image"""
    wrong_labels: Number = Field(0.0, ge=0, lt=1)
    """for studies: share of the training images, validation's included, that get a wrong class, by
    the hash of each image; test images keep theirs"""
    wrong_labels_to: Literal["uniform", "similar"] = "uniform"
    """uniform: any other class, as likely as each other; similar: one fixed class for each, such as
    1 for 7 and dog for cat, of digits and CIFAR-10"""
    wrong_labels_seed: int = Field(0, ge=0, lt=2**31)
    """of the choice which ones are wrong"""
    skip_bad: bool = False
    """leave out unreadable images instead of stopping"""
    workers: int = Field(1, ge=1)
    """threads that decode; the file's bytes do not depend on their number"""

    def _conflicts(self) -> Iterator[str]:
        if self.dataset == "folder" and self.path is None:
            yield "dataset 'folder' needs prepare.path"

    def _uses(self) -> Iterator[tuple[str, tuple[str, ...], bool]]:
        of_folder, digits = self.dataset == "folder", self.dataset == "digits"
        yield "another dataset than digits", ("path",), not digits
        yield "dataset cifar10 or cifar100", ("download",), not (of_folder or digits)
        yield "dataset folder", ("skip_bad",), of_folder
        yield "encoding jpeg", ("jpeg_quality",), self.encoding == "jpeg"
        wrong = ("wrong_labels_to", "wrong_labels_seed")
        yield "wrong_labels above 0", wrong, self.wrong_labels > 0


# Of label.temperature.
CALIBRATED = "auto:calibrated"
# Beyond these, differences of float16 logits over the temperature are all zero or infinite.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6


def _temperature(value: Any) -> Any:
    """A number in range, auto:P with P in (0, 1), or auto:calibrated."""
    if value == CALIBRATED:
        return value
    automatic = isinstance(value, str) and value.startswith("auto:")
    try:
        number = float(value[len("auto:") :] if automatic else as_number(value))
    except (TypeError, ValueError):
        number = -1.0
    # Written so that NaN fails.
    if not (0 < number < 1 if automatic else MIN_TEMPERATURE <= number <= MAX_TEMPERATURE):
        raise ValueError(
            f"expected a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, auto:P with P in "
            f"(0, 1), or {CALIBRATED}, found {value!r}"
        )
    return value if automatic else number


class LabelParams(Section):
    """How the teacher is read."""

    temperature: Annotated[float | str, BeforeValidator(_temperature)] = 2.0
    """the logits are divided by it; auto:0.9 solves for a mean top probability of 0.9 on the data,
    auto:calibrated for the least negative log likelihood on the teacher's validation split"""
    logits: bool = True
    """store the logits too, for other temperatures later; not with top_k"""
    top_k: int | None = Field(None, ge=1)
    """store only each row's k largest probabilities, the rest of the mass spread evenly; null: all
    """
    views: int = Field(1, ge=1, le=2**16)
    """augmented views of each image that are labelled; training then replays them"""
    augmentation: str = "none"
    """what makes the views, such as crop:4,flip or
    resized-crop:0.25-1,flip,trivialaugment,cutout:16, and has to be that of train; none: the image
    as it is"""
    seed: int | None = Field(None, ge=0, lt=2**31)
    """of the augmentation; null: the run's"""
    batch_size: int = Field(256, ge=1)
    """images per teacher call"""
    chunk_rows: int | None = Field(None, ge=1)
    """images per file of the store, rounded to whole batches: the most that an interruption loses,
    and what processes share; null: about 8 MiB, at most 8192 images"""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """of the teacher's forward pass"""
    licence: Text | None = Field(None, min_length=1)
    """of the labels, for those who get them: an SPDX name such as CC-BY-4.0, or a text; null:
    nothing is said"""
    citation: Text | None = Field(None, min_length=1)
    """how to cite the labels, such as BibTeX; null: nothing is said"""

    def _conflicts(self) -> Iterator[str]:
        augmentation = Augmentation.parse(self.augmentation)
        if self.views > 1 and augmentation.is_none:
            yield (
                f"{self.views} views without an augmentation would all be the same: set "
                "augmentation, such as crop:4,flip"
            )

    def _uses(self) -> Iterator[tuple[str, tuple[str, ...], bool]]:
        yield "an augmentation", ("seed",), not Augmentation.parse(self.augmentation).is_none

    def target_top_probability(self) -> float | None:
        """The P of `auto:P`, or None when the temperature is a number or `auto:calibrated`."""
        text = str(self.temperature)
        has_target = text.startswith("auto:") and text != CALIBRATED
        return float(text.removeprefix("auto:")) if has_target else None


_ATTACK = re.compile(r"(pgd|cw)-([1-9]\d{0,4})(?:x([1-9]\d{0,3}))?")


def split_attack(name: str) -> tuple[str, int, int]:
    """Kind (fgsm, pgd or cw), steps and restarts of one of `EvaluateParams.attacks`."""
    if name == "fgsm":
        return name, 1, 1
    found = _ATTACK.fullmatch(name)
    if found is None:
        raise ValueError(f"expected 'fgsm', 'pgd-20', 'pgd-100x5' or 'cw-100', found '{name}'")
    return found[1], int(found[2]), int(found[3] or 1)


def _known_attacks(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        split_attack(name)
    if len(set(names)) < len(names):
        raise ValueError(f"an attack is named twice: {', '.join(names)}")
    return names


def _radii(value: Any, info: ValidationInfo) -> Any:
    """`auto`, or radii as a list or as text."""
    if value == "auto":
        return value
    try:
        radii = tuple(float(as_number(part)) for part in value)
    except (TypeError, ValueError):
        radii = (-1.0,)
    if isinstance(value, dict) or not all(radius >= 0 for radius in radii):
        raise ValueError(f"expected auto, or radii such as [0, 4/255, 8/255], found {value!r}")
    for radius in radii:
        _is_in_pixel_units(radius, info)
    return radii


class EvaluateParams(Section):
    """What the student is attacked with in the end."""

    norm: Literal["linf", "l2"] = "linf"
    """norm of the ball: linf (each pixel), l2 (the whole image)"""
    eps: PixelLength
    """radius of the ball, in pixel units: images are in [0, 1]"""
    images: int | None = Field(None, ge=1)
    """the first so many test images, in random order; null: all"""
    batch_size: int = Field(256, ge=1)
    """images per model call"""
    pgd_steps: int = Field(50, ge=1)
    """steps of PGD"""
    pgd_restarts: int = Field(5, ge=1)
    """random restarts of PGD"""
    attacks: Annotated[tuple[str, ...], AfterValidator(_known_attacks)] = (
        "fgsm",
        "pgd-20",
        "pgd-100x5",
        "cw-100x5",
    )
    """more attacks on the model's own gradient, each on all images: fgsm, pgd-STEPS or cw-STEPS
    (margin loss), with xRESTARTS behind; none: PGD alone"""
    autoattack: Literal["standard", "rand", "none"] = "standard"
    """AutoAttack's version; rand: for models that answer at random; none: leave it out, and say so
    """
    eps_grid: Annotated[Literal["auto"] | tuple[float, ...], BeforeValidator(_radii)] = "auto"
    """radii for the curve of robust accuracy by eps (PGD-20); auto: from 0 to where nothing stands;
    []: none"""
    eps_grid_images: int | None = Field(1000, ge=1)
    """images behind that curve, at most; null: all"""
    examples: int = Field(8, ge=0, le=64)
    """images that are kept for the report, clean and attacked"""
    precision: Literal["float32"] = "float32"
    """attacks are run in float32: lower precision can mask gradients"""

    def _uses(self) -> Iterator[tuple[str, tuple[str, ...], bool]]:
        yield "an eps_grid", ("eps_grid_images",), bool(self.eps_grid)

    def quick(self, total: int) -> EvaluateParams:
        """A first look: at most 200 of `total` images, PGD-10 from one start, nothing else."""
        changes = {
            "images": min(self.images or total, total, _QUICK_IMAGES),
            "pgd_steps": 10,
            "pgd_restarts": 1,
            "attacks": (),
            "autoattack": "none",
            "eps_grid": (),
        }
        return self.model_copy(update=changes)


_QUICK_IMAGES = 200


class ReportParams(Section):
    """What the report shows."""

    title: str | None = None
    """the page's title; null: its network and images"""
    examples: int | None = Field(None, ge=0, le=64)
    """clean and attacked images that are shown, of those that evaluate.examples kept; null: all"""
