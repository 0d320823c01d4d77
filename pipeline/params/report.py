"""Parameters of the report."""

from __future__ import annotations

from pydantic import Field

from pipeline.params.section import Section

__all__ = ["ReportParams"]


class ReportParams(Section):
    """What the report shows."""

    title: str = Field("Robust classifier", description="the page's title")
    examples: int | None = Field(
        None,
        ge=0,
        le=64,
        description="clean and attacked images that are shown, of those that evaluate.examples "
        "kept; null: all",
    )
