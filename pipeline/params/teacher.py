"""Parameters of the stage that trains the teacher."""

from __future__ import annotations

from pydantic import Field

from pipeline.params.fit import FitParams

__all__ = ["TeacherParams"]


class TeacherParams(FitParams):
    """The teacher: trained on clean images, or given."""

    checkpoint: str | None = Field(
        None, description="use these weights instead of training; null: train"
    )
