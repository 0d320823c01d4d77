"""Parameters of the stage that trains the teacher."""

from __future__ import annotations

from pydantic import Field

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
