"""Parameters of the report."""

from __future__ import annotations

from pydantic import Field

from pipeline.params.section import Section

__all__ = ["ReportParams"]


class ReportParams(Section):
    """What the report shows."""

    title: str = Field("Robust classifier", description="the page's title")
    examples: int = Field(8, ge=0, le=64, description="pictures of clean and attacked images")
