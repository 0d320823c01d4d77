"""What the student is trained towards: its objective, its labels, and a teacher in the run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.params.fit import FitParams
from pipeline.params.section import Number, Probability

__all__ = ["ObjectiveParams"]

_ASK_TEACHER = ("adaad", "mtard")


class ObjectiveParams(FitParams):
    """Objective, labels and teacher; see docs/training.md."""

    objective: Literal["at", "trades", "mart", "rslad", "ard", "adaad", "mtard", "exits"] = Field(
        "at",
        description="at: Madry et al. 2018; trades: Zhang et al. 2019; mart: Wang et al. 2020; "
        "rslad: Zi et al. 2021; ard: Goldblum et al. 2020; adaad: Huang et al. 2023; mtard: Zhao "
        "et al. 2024; exits: networks with several exits; see docs/training.md",
    )
    beta: Number = Field(6.0, ge=0, description="trades, mart: weight of the KL term")
    robust_weight: Probability | None = Field(
        None,
        description="rslad, ard, adaad: weight of the term on attacked images, the rest is that "
        "of clean ones; null: the authors', 5/6, 1 and 1",
    )
    awp_gamma: Number = Field(
        0.0,
        ge=0,
        lt=1,
        description="adversarial weight perturbation, relative to each weight's norm: 0.005 for "
        "trades and mart, 0.01 for at (Wu et al. 2020); 0: none",
    )
    awp_from_epoch: int = Field(
        10, ge=0, description="so many epochs are trained without, before the first that has it"
    )
    igdm_weight: Number = Field(
        0.0,
        ge=0,
        description="weight, at the end, of matching the teacher's change from x - δ to x + δ "
        "(Lee et al. 2025, whose CIFAR-100 script has 20); needs teacher; 0: none",
    )
    attack_label: Literal["truth", "target"] = Field(
        "truth",
        description="at: the attack maximises the loss of the ground truth, or of the target",
    )
    exits: tuple[int, ...] | None = Field(
        None, description="exits: which are trained, such as [1, 3], counted from 1; null: all"
    )
    attacked_exits: Literal["last", "average", "max-average"] = Field(
        "max-average",
        description="exits: the attack maximises the last one's loss, their mean, or is for each "
        "image the worst on average of one attack for each exit",
    )
    label_kind: Literal["onehot", "smooth", "ltd", "live", "adr"] = Field(
        "ltd",
        description="onehot; smooth (see smoothing); ltd: from the store; live: by the teacher in "
        "the run; adr: by the student's own moving average (Wu et al. 2024)",
    )
    smoothing: Number = Field(
        0.1, ge=0, lt=1, description="smooth: mass moved from the true class to all evenly"
    )
    soft_weight: Probability = Field(
        1.0, description="ltd, live: weight of the soft label; the rest is one-hot"
    )
    rectify: bool = Field(
        False,
        description="ltd, live: lower soft_weight per sample by max q - q[true], where the "
        "teacher contradicts the ground truth (ADR)",
    )
    label_temperature: Number | None = Field(
        None,
        gt=0,
        description="ltd: read the store's logits at this temperature; null: the soft labels as "
        "they are stored",
    )
    teacher: str | None = Field(
        None,
        description="checkpoint of a teacher that is asked in the run, for adaad, mtard, "
        "igdm_weight and label_kind live; null: none",
    )
    teacher_temperature: Number = Field(
        1.0,
        gt=0,
        description="divides that teacher's logits, in place of the one it was trained at",
    )
    adr_temperatures: tuple[Number, Number] = Field(
        (2.5, 2.0), description="adr: of the average's answers, from first to last step by cosine"
    )
    adr_weights: tuple[Probability, Probability] = Field(
        (0.7, 0.95), description="adr: of the average's answers, likewise; the rest is one-hot"
    )

    @property
    def distillation_temperature(self) -> float | None:
        """What divided the logits of the soft labels; None: only the store knows."""
        return self.teacher_temperature if self.label_kind == "live" else self.label_temperature

    @property
    def learns_from_labels(self) -> bool:
        """Whether labels are part of the loss: AdaAD's are that of its clean term alone."""
        return self.objective != "adaad" or self.robust_weight not in (None, 1.0)

    @property
    def reads_store(self) -> bool:
        """Whether the run needs a store's labels."""
        return self.label_kind == "ltd" and self.learns_from_labels

    @property
    def asks_teacher(self) -> bool:
        """Whether the run asks a teacher."""
        asked = self.objective in _ASK_TEACHER or self.label_kind == "live"
        return asked or self.igdm_weight > 0

    @model_validator(mode="after")
    def _teacher_is_there(self) -> ObjectiveParams:
        if self.asks_teacher and self.teacher is None:
            raise ValueError(
                "adaad, mtard, igdm_weight and label_kind live ask a teacher: set teacher to its "
                "checkpoint"
            )
        return self

    @model_validator(mode="after")
    def _labels_suit_the_objective(self) -> ObjectiveParams:
        if self.objective == "ard" and self.label_kind not in ("ltd", "live"):
            raise ValueError("ard distils a teacher's labels: set label_kind to ltd or live")
        if self.objective == "ard" and self.distillation_temperature is None:
            raise ValueError("ard softens the student as its labels were: set label_temperature")
        if self.objective == "mtard":
            self._require_plain_answers()
        if self.label_temperature is not None and self.label_kind != "ltd":
            instead = "; the teacher's is teacher_temperature" if self.label_kind == "live" else ""
            raise ValueError(
                f"label_temperature is that of a store, for label_kind ltd, found "
                f"{self.label_kind}: set label_temperature: null{instead}"
            )
        if self.label_kind == "adr" and not self.ema_decay:
            raise ValueError(
                "label_kind adr learns from the weights' moving average: set ema_decay"
            )
        return self

    @model_validator(mode="after")
    def _numbers_are_sound(self) -> ObjectiveParams:
        if min(self.adr_temperatures) <= 0:
            raise ValueError("adr_temperatures must be above 0")
        numbers = self.exits
        if numbers is not None and (not numbers or list(numbers) != sorted({*numbers})):
            raise ValueError("exits must be different numbers in ascending order")
        return self

    @model_validator(mode="after")
    def _perturbation_begins(self) -> ObjectiveParams:
        if self.awp_gamma and self.awp_from_epoch >= self.epochs:
            raise ValueError(
                f"awp_from_epoch: expected less than epochs, {self.epochs}, found "
                f"{self.awp_from_epoch}: no epoch would have awp_gamma; lower it, or set "
                "awp_gamma: 0"
            )
        return self

    def _require_plain_answers(self) -> None:
        # It moves the temperatures of both teachers itself, from 1 on.
        plain = self.label_kind == "ltd" and self.label_temperature == 1 and not self.rectify
        if not plain or self.soft_weight < 1 or self.teacher_temperature != 1:
            raise ValueError(
                "mtard softens both teachers itself: set label_kind: ltd, label_temperature: 1, "
                "soft_weight: 1, rectify: false and teacher_temperature: 1"
            )
