"""Parameters of the stage that trains the student."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from pipeline.params.attack import AttackParams
from pipeline.params.objective import ObjectiveParams
from pipeline.params.section import Number

__all__ = ["TrainParams"]


class TrainParams(AttackParams, ObjectiveParams):
    """The student: adversarial training on one-hot, smoothed or the teacher's soft labels."""

    temperature: Number = Field(
        1.0, gt=0, description="the student's own, part of the model, in training and inference"
    )
    allow_poor_labels: bool = Field(
        False,
        description="train on a store's labels that are as good as uniform, or mostly contradict "
        "the ground truth",
    )
    any_size: bool = Field(
        False, description="take a store's labels of images of another size than the teacher saw"
    )
    validation_every: int = Field(1, ge=1, description="epochs between validations")

    @model_validator(mode="before")
    @classmethod
    def _labels_are_smoothed_by_their_kind(cls, content: Any) -> Any:
        if isinstance(content, dict) and "label_smoothing" in content:
            raise ValueError(
                "label_smoothing: is the teacher's alone: remove it, or set label_kind: smooth, "
                f"smoothing: {content['label_smoothing']}"
            )
        return content

    @model_validator(mode="after")
    def _weights_can_be_perturbed(self) -> TrainParams:
        if self.precision == "float16" and self.awp_gamma:
            # An overflow, which float16's scaling expects, would stay in the weights.
            raise ValueError("awp_gamma needs precision bfloat16 or float32, not float16")
        return self

    @model_validator(mode="after")
    def _trades_attack_has_a_gradient(self) -> TrainParams:
        if self.objective == "trades" and not self.attack_loss and self.begins_at_the_image:
            raise ValueError(
                "attack_start: the loss that trades opposes has no gradient at the image; "
                "leave it null, or choose an attack_loss"
            )
        return self

    @model_validator(mode="after")
    def _attack_opposes_one_label(self) -> TrainParams:
        if self.attack_label == "truth":
            return self
        if self.objective != "at":
            raise ValueError(
                f"attack_label: target is for objective at, found {self.objective}, which opposes "
                "what is its own: set attack_label: truth"
            )
        if self.attack_loss is not None:
            raise ValueError(
                f"attack_label: target has no part in attack_loss {self.attack_loss}: set "
                "attack_loss: null, or attack_label: truth"
            )
        return self

    @model_validator(mode="after")
    def _eps_is_reached(self) -> TrainParams:
        if self.eps_warmup_epochs >= self.epochs:
            raise ValueError(
                f"eps_warmup_epochs: expected less than epochs, {self.epochs}, found "
                f"{self.eps_warmup_epochs:g}: eps would never be reached; lower it"
            )
        return self

    @model_validator(mode="after")
    def _labels_can_be_mixed(self) -> TrainParams:
        if self.mixing.is_none:
            return self
        if self.objective == "mtard":
            raise ValueError(
                "objective mtard softens a teacher's answers anew, which those of a mixture's two "
                "images together are not: set cutmix_probability and mixup_probability to 0"
            )
        one_class = {
            "objective mart": self.objective == "mart",
            "attack_loss margin": self.attack_loss == "margin",
            "label_kind adr": self.label_kind == "adr",
            "label_kind live with soft_weight below 1 or rectify": self.label_kind == "live"
            and (self.soft_weight < 1 or self.rectify),
        }
        for what, asked in one_class.items():
            if asked:
                raise ValueError(
                    f"{what} is defined by an image's one true class, which a mixture has not: "
                    "set cutmix_probability and mixup_probability to 0"
                )
        return self

    @model_validator(mode="after")
    def _only_the_student_sees_small_images(self) -> TrainParams:
        if self.progressive_resize and (self.asks_teacher or self.label_kind == "adr"):
            raise ValueError(
                "progressive_resize: a teacher in the run (or the average of adr) is not asked "
                "about images of other sizes than the data's: take labels from a store"
            )
        return self
