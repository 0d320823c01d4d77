"""Parameters of the stage that measures robustness."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.params.section import Number, Section, as_number, require_pixel_units

__all__ = ["EvaluateParams", "split_attack"]

_ATTACK = re.compile(r"(pgd|cw)-([1-9]\d{0,4})(?:x([1-9]\d{0,3}))?")


def split_attack(name: str) -> tuple[str, int, int]:
    """Kind (fgsm, pgd or cw), steps and restarts of one of `EvaluateParams.attacks`.

    Raises
    ------
    ValueError
        When it is no such name.
    """
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


def _listed(value: Any) -> Any:
    """Accept `fgsm,cw-20`, as it is typed on the command line, for a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip() not in ("", "none")]
    return value


def _radii(value: Any) -> Any:
    """`auto`, or radii as a list or as text."""
    if value == "auto":
        return value
    parts = _listed(value)
    try:
        radii = tuple(float(as_number(part)) for part in parts)
    except (TypeError, ValueError):
        radii = (-1.0,)
    if isinstance(parts, dict) or not all(radius >= 0 for radius in radii):
        raise ValueError(f"expected auto, or radii such as [0, 4/255, 8/255], found {value!r}")
    return radii


class EvaluateParams(Section):
    """What the student is attacked with in the end."""

    norm: Literal["linf", "l2"] = Field(
        "linf", description="norm of the ball: linf (each pixel), l2 (the whole image)"
    )
    eps: Number = Field(
        gt=0, description="radius of the ball, in pixel units: images are in [0, 1]"
    )
    images: int | None = Field(
        None, ge=1, description="the first so many test images, in random order; null: all"
    )
    batch_size: int = Field(256, ge=1, description="images per model call")
    pgd_steps: int = Field(50, ge=1, description="steps of PGD")
    pgd_restarts: int = Field(5, ge=1, description="random restarts of PGD")
    attacks: Annotated[
        tuple[str, ...], BeforeValidator(_listed), AfterValidator(_known_attacks)
    ] = Field(
        ("fgsm", "pgd-20", "pgd-100x5", "cw-100x5"),
        description="more attacks on the model's own gradient, each on all images: fgsm, "
        "pgd-STEPS or cw-STEPS (margin loss), with xRESTARTS behind; none: PGD alone",
    )
    autoattack: Literal["standard", "rand", "none"] = Field(
        "standard",
        description="AutoAttack's version; rand: for models that answer at random; none: leave "
        "it out, and say so",
    )
    eps_grid: Annotated[Literal["auto"] | tuple[float, ...], BeforeValidator(_radii)] = Field(
        "auto",
        description="radii for the curve of robust accuracy by eps (PGD-20); auto: from 0 to "
        "where nothing stands; []: none",
    )
    eps_grid_images: int | None = Field(
        1000, ge=1, description="images behind that curve, at most; null: all"
    )
    examples: int = Field(
        8, ge=0, le=64, description="images that are kept for the report, clean and attacked"
    )
    precision: Literal["float32"] = Field(
        "float32", description="attacks are run in float32: lower precision can mask gradients"
    )

    @model_validator(mode="after")
    def _units_are_pixels(self) -> EvaluateParams:
        for radius in (self.eps, *(() if self.eps_grid == "auto" else self.eps_grid)):
            require_pixel_units(radius, self.norm)
        return self

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
