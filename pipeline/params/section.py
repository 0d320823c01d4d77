"""What every section of parameters is made of: numbers, and a base that refuses the unknown."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

__all__ = ["Number", "Probability", "Section", "as_number", "require_pixel_units"]


def as_number(value: Any) -> Any:
    """Accept `8/255` wherever a number is wanted."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"'{value}' is not a number or a fraction such as 8/255") from error
    return value


Number = Annotated[float, BeforeValidator(as_number)]
Probability = Annotated[float, BeforeValidator(as_number), Field(ge=0, le=1)]

# By what a wrong unit is noticed, since images are in [0, 1]. The field's largest L2 radius is
# about 5, for photographs of 224 pixels.
_LARGEST = {"linf": 1.0, "l2": 20.0}


def require_pixel_units(value: float, norm: str) -> None:
    """Refuse a radius or a step that cannot be in pixel units.

    Raises
    ------
    ValueError
        Which pydantic names the key of.
    """
    if value > _LARGEST[norm]:
        raise ValueError(
            f"radii of {norm} are at most {_LARGEST[norm]:g}, in pixel units, found {value:g}; "
            f"perhaps {value:g}/255 is meant"
        )


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_true(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML's yes and on are True, which pydantic takes for 1 where a number is wanted.
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise PydanticCustomError("boolean", "should be a number, not yes, no, on or off")
        return value
