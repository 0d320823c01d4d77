"""Parameters that clean and adversarial training have in common."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.images.augmentation import Augmentation
from pipeline.images.mixing import PAIR, Mixing
from pipeline.images.progressive import Sizes
from pipeline.params.section import Number, Probability, Section

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FitParams", "meant_in_unit"]

_LEAST_AVERAGED = 2
_ROUNDING = 1e-9
# Of pixels in [0, 1] no mean or deviation is above 1; but a std of 2 is somebody's own choice.
_UNIT = 4.0


def meant_in_unit(values: Sequence[float]) -> str:
    """What means or deviations of pixels in 0…255 are of those in [0, 1]; else nothing."""
    if max(values, default=0.0) <= _UNIT:
        return ""
    return ",".join(f"{value / 255:.3g}" for value in values)


class FitParams(Section):
    """What clean and adversarial training have in common."""

    architecture: str = Field(
        description="a name of 'ltd-pipe doctor --models', timm:NAME or torchvision:NAME; on the "
        "command line also FILE.py:FUNCTION"
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
    decay_norms: bool = Field(
        True,
        description="weight decay on scales, shifts and biases too, as published robust "
        "training has it",
    )
    clip_norm: Number | None = Field(
        None, gt=0, description="longest gradient, as the norm over all weights; null: any"
    )
    accumulation_steps: int = Field(
        1,
        ge=1,
        description="parts of a batch that are passed one after the other, for less memory; "
        "batch statistics are those of a part",
    )
    sync_batch_norm: bool = Field(
        True,
        description="on several processes, batch statistics over all of them, so that their "
        "number changes nothing; false: each process its own",
    )
    schedule: Literal["one-cycle", "cosine", "step", "constant"] = Field(
        "one-cycle",
        description="one-cycle: linear up and down; cosine: half a wave down; step: times 0.1 at "
        "milestones",
    )
    warmup_fraction: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the steps over which the rate rises; null: 0.25 for one-cycle, "
        "else 0",
    )
    milestones: tuple[Number, ...] = Field(
        (0.5, 0.75), description="step: where the rate falls, as fractions of the run"
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the weights' moving average; 0: none"
    )
    swa_from: Probability | None = Field(
        None,
        description="average the weights at the ends of epochs from this fraction of the run on, "
        "with schedule constant, cosine or step; null: no such average",
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
    policy: str | None = Field(
        None,
        description="trivialaugment, randaugment:N-M (N operations of magnitude M of 30), or "
        "autoaugment:cifar10, :imagenet or :svhn; null: none",
    )
    cutout: int = Field(0, ge=0, description="side of a grey square, in pixels, anywhere; 0: none")
    cutmix_probability: Probability = Field(
        0.0, description="share of the images that get a rectangle of another one, and its label"
    )
    cutmix_alpha: Number = Field(
        1.0, description="of the Beta distribution of the rectangle's share; 1: any as likely"
    )
    mixup_probability: Probability = Field(
        0.0, description="share of the images that are averaged with another one, with its label"
    )
    mixup_alpha: Number = Field(
        0.2, description="of the Beta distribution of the weight; small: near 0 and 1"
    )
    progressive_resize: tuple[int, int] | None = Field(
        None,
        description="sides of the training images in the first and in the last epochs, such as "
        "[128, 224]: multiples of 32; null: as they are",
    )
    progressive_between: tuple[Number, Number] = Field(
        (0.0, 0.75),
        description="fractions of the run between which progressive_resize grows from one to the "
        "other",
    )
    mean: tuple[Number, ...] | None = Field(
        None,
        description="per channel, subtracted from pixels in [0, 1] inside the model; null: 0",
    )
    std: tuple[Number, ...] | None = Field(
        None, description="per channel, divides them likewise; null: 1"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 where a short measurement finds it faster; float16 scales "
        "its gradients",
    )
    channels_last: bool | Literal["auto"] = Field(
        True, description="memory format of images and weights; auto: as measured"
    )
    compile: Literal["auto", "none", "default", "reduce-overhead"] = Field(
        "none",
        description="torch.compile's mode; reduce-overhead replays the passes as CUDA graphs; "
        "auto: as measured on a GPU, none on a CPU",
    )
    snapshot_minutes: float = Field(
        5.0, ge=0, description="minutes between snapshots to resume from; also at each epoch's end"
    )

    snapshot_steps: int = Field(
        0, ge=0, description="steps between snapshots; 0: only by time, and at each epoch's end"
    )

    @field_validator("milestones")
    @classmethod
    def _milestones_are_fractions(
        cls, values: tuple[float, ...], info: ValidationInfo
    ) -> tuple[float, ...]:
        found = ", ".join(f"{value:g}" for value in values)
        if list(values) != sorted({*values}):
            raise ValueError(f"expected different numbers in ascending order, found [{found}]")
        if values and not 0 < values[0] <= values[-1] < 1:
            epochs = info.data.get("epochs", 0)
            of = epochs if values[0] > 0 and values[-1] < epochs else 200
            meant = ", ".join(f"{value:g}/{of}" for value in values)
            raise ValueError(
                f"expected fractions of the run, above 0 and below 1, found [{found}]; "
                f"perhaps [{meant}] is meant"
            )
        return values

    @field_validator("mean", "std")
    @classmethod
    def _constants_are_of_unit_pixels(
        cls, values: tuple[float, ...] | None
    ) -> tuple[float, ...] | None:
        if meant := meant_in_unit(values or ()):
            raise ValueError(f"expected values for pixels in [0, 1]; perhaps [{meant}] is meant")
        return values

    @model_validator(mode="after")
    def _one_average(self) -> FitParams:
        if self.ema_decay and self.swa_from is not None:
            raise ValueError("ema_decay and swa_from are two averages of the weights: choose one")
        return self

    @model_validator(mode="after")
    def _epochs_can_be_averaged(self) -> FitParams:
        if self.swa_epoch is None:
            return self
        if self.schedule == "one-cycle":
            raise ValueError(
                "swa_from: expected schedule constant, cosine or step, found one-cycle: set "
                "schedule, or ema_decay instead of swa_from"
            )
        if self.epochs - self.swa_epoch < _LEAST_AVERAGED:
            raise ValueError(
                f"swa_from: expected the ends of two epochs or more to average, found "
                f"{self.epochs - self.swa_epoch} of {self.epochs}: lower swa_from"
            )
        return self

    @model_validator(mode="after")
    def _augmentation_is_possible(self) -> FitParams:
        # Making them is the check.
        assert self.augmentation  # noqa: S101
        assert self.sizes or self.progressive_resize is None  # noqa: S101
        if not self.mixing.is_none and self.batch_size % PAIR:
            raise ValueError(
                f"batch_size: cutmix and mixup take pairs of images, found {self.batch_size}"
            )
        return self

    @property
    def swa_epoch(self) -> int | None:
        """The first epoch, from 0, whose end lies behind `swa_from`; None: no such average."""
        if self.swa_from is None:
            return None
        # 0.29 of 100 is less than 29 in binary.
        return math.floor(self.swa_from * self.epochs + _ROUNDING)

    @property
    def augmentation(self) -> Augmentation:
        """What is done to the training images at random."""
        return Augmentation(self.crop_padding, self.flip, self.crop_scale, self.policy, self.cutout)

    @property
    def mixing(self) -> Mixing:
        """How training images are mixed with each other."""
        return Mixing(
            self.cutmix_probability, self.mixup_probability, self.cutmix_alpha, self.mixup_alpha
        )

    @property
    def sizes(self) -> Sizes | None:
        """Sizes of the training images by epoch; None: as they are."""
        if self.progressive_resize is None:
            return None
        return Sizes(*self.progressive_resize, *self.progressive_between, self.epochs)
