"""Parameters of the stage that trains the student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.params.attack import AttackParams
from pipeline.params.fit import FitParams
from pipeline.params.section import Number, Probability

__all__ = ["TrainParams"]


class TrainParams(AttackParams, FitParams):
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
    validation_every: int = Field(1, ge=1, description="epochs between validations")

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
