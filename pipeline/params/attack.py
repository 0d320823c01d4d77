"""Parameters of the attack that training withstands."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pipeline.params.section import Number, Section, require_pixel_units

__all__ = ["AttackParams"]


def _as_word(value: Any) -> Any:
    # YAML reads off, unquoted, as false.
    return "off" if value is False else value


class AttackParams(Section):
    """The threat model, and how training looks for the worst image in it."""

    norm: Literal["linf", "l2"] = Field(
        "linf",
        description="threat model: linf moves no pixel by more than eps, l2 bounds the Euclidean "
        "norm over all pixels of an image",
    )
    eps: Number = Field(
        gt=0,
        description="radius of the ball in pixel units, images in [0, 1]: such as 8/255 for "
        "linf, 128/255 for l2",
    )
    attack: Literal["pgd", "n-fgsm", "fgsm-rs"] = Field(
        "pgd",
        description="pgd: Madry et al. 2018; of one step, several times faster: n-fgsm (de Jorge "
        "et al. 2022), or fgsm-rs (Wong et al. 2020), which collapses more easily",
    )
    step_size: Number | None = Field(
        None,
        gt=0,
        description="length of a step in the norm, in pixel units; null: 2.5 eps / attack_steps "
        "for pgd, eps for n-fgsm, 1.25 eps for fgsm-rs",
    )
    attack_steps: int | None = Field(
        None, ge=1, description="gradient steps in training; null: 10 for pgd, 1 for the others"
    )
    attack_start: Literal["uniform", "normal", "none"] | None = Field(
        None,
        description="pgd: begins at a random point of the ball, 0.001 N(0, 1) away, or at the "
        "image; null: where the objective's authors do",
    )
    attack_loss: Literal["ce", "kl", "margin"] | None = Field(
        None,
        description="what the attack maximises: ce, the truth's cross entropy; kl, the divergence "
        "from the clean answer; margin, the largest wrong logit less the true one; null: the "
        "objective's own",
    )
    attack_noise: Number = Field(
        2.0, ge=0, description="n-fgsm: its noise is uniform within so many times eps"
    )
    eps_warmup_epochs: Number = Field(
        0.0, ge=0, description="eps and step_size grow from 0 over these epochs of training"
    )
    validation_attack_steps: int = Field(
        10,
        ge=1,
        description="PGD steps, of 2.5 eps / steps each, when choosing the best checkpoint",
    )
    overfitting_alarm: Annotated[Literal["stop", "warn", "off"], BeforeValidator(_as_word)] = Field(
        "stop",
        description="when robust accuracy in validation collapses while the training attack finds "
        "ever less (catastrophic overfitting): stop keeps the best checkpoint and ends, warn goes "
        "on, off does not look",
    )

    @field_validator("eps", "step_size")
    @classmethod
    def _is_in_pixel_units(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None:
            require_pixel_units(value, info.data.get("norm", "linf"))
        return value

    @model_validator(mode="after")
    def _fast_attacks_are_what_they_are_called(self) -> AttackParams:
        if self.attack == "pgd":
            return self
        if self.steps != 1:
            raise ValueError(f"attack_steps: {self.attack} takes 1 step: found {self.steps}")
        if self.step < self.eps:
            # As it is given for PGD, which goes on from there.
            raise ValueError(
                f"step_size: one step of {self.attack} should be at least eps: found {self.step:g}"
            )
        if self.attack_start is not None:
            raise ValueError(f"attack_start: {self.attack} begins where it begins; leave it null")
        if self.attack == "n-fgsm" and self.norm != "linf":
            raise ValueError("attack: n-fgsm is defined for norm linf")
        return self

    @model_validator(mode="after")
    def _divergence_has_a_gradient(self) -> AttackParams:
        if self.attack_loss == "kl" and self.begins_at_the_image:
            raise ValueError("attack_loss: kl has no gradient at the image, where this one begins")
        return self

    @property
    def begins_at_the_image(self) -> bool:
        """Whether the first gradient is the clean image's."""
        return self.attack_start == "none" or (self.attack == "n-fgsm" and not self.attack_noise)

    @property
    def steps(self) -> int:
        """Gradient steps in training."""
        return self.attack_steps or (10 if self.attack == "pgd" else 1)

    @property
    def step(self) -> float:
        """Length of a training attack's step in the norm, pixel units."""
        factor = {"pgd": 2.5 / self.steps, "n-fgsm": 1.0, "fgsm-rs": 1.25}[self.attack]
        return factor * self.eps if self.step_size is None else self.step_size
