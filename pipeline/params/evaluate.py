"""Parameters of the stage that measures robustness."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.params.section import Pixels, Section, as_number

__all__ = ["EvaluateParams"]


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
    eps_grid: tuple[Annotated[float, BeforeValidator(as_number), Field(ge=0, le=1)], ...] = Field(
        (), description="radii for the curve of robust accuracy by eps (PGD-20)"
    )
    precision: Literal["float32"] = Field(
        "float32", description="attacks are run in float32: lower precision can mask gradients"
    )
