"""Parameters of the stage that trains the teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.params.fit import FitParams

__all__ = ["TeacherParams"]


class TeacherParams(FitParams):
    """The teacher: trained on clean images, or given."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="mass moved from the true class to all classes evenly"
    )
    checkpoint: str | None = Field(
        None, description="use these weights instead of training; null: train"
    )
    classes: str | None = Field(
        None,
        description="checkpoint of another project: file of its class names in the order of its "
        "outputs, one per line or JSON; null: class_order says",
    )
    class_order: Literal["lexical", "natural"] | None = Field(
        None,
        description="checkpoint of another project: how its classes are sorted, lexical "
        "(1, 10, 2) or natural (1, 2, 10); null: as the data's",
    )

    @model_validator(mode="after")
    def _classes_are_of_a_checkpoint(self) -> TeacherParams:
        for name in ("classes", "class_order"):
            if getattr(self, name) is not None and self.checkpoint is None:
                raise ValueError(f"{name}: is of a checkpoint, and none is given: remove it")
        if self.classes is not None and self.class_order is not None:
            raise ValueError("class_order: classes says the order already: set it to null")
        return self
