"""Parameters of the stage that labels the images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.images.augmentation import Augmentation
from pipeline.params.section import Section, as_number

__all__ = ["LabelParams"]


def _auto_or_number(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("auto:"):
        return value
    return as_number(value)


class LabelParams(Section):
    """How the teacher is read."""

    temperature: Annotated[float | str, BeforeValidator(_auto_or_number)] = Field(
        2.0,
        description="the logits are divided by it; auto:0.9 solves for a mean top probability "
        "of 0.9 on the data",
    )
    logits: bool = Field(
        True, description="store the logits too, for other temperatures later; not with top_k"
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="store only each row's k largest probabilities, the rest of the mass spread "
        "evenly; null: all",
    )
    views: int = Field(
        1,
        ge=1,
        le=2**16,
        description="augmented views of each image that are labelled; training then replays them",
    )
    augmentation: str = Field(
        "none",
        description="what makes the views, such as crop:4,flip or "
        "resized-crop:0.25-1,flip,trivialaugment,cutout:16, and has to be that of train; none: "
        "the image as it is",
    )
    seed: int | None = Field(
        None, ge=0, lt=2**31, description="of the augmentation; null: the run's"
    )
    batch_size: int = Field(256, ge=1, description="images per teacher call")
    chunk_rows: int | None = Field(
        None,
        ge=1,
        description="images per file of the store, rounded to whole batches: the most that an "
        "interruption loses, and what processes share; null: about 8 MiB, at most 8192 images",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="of the teacher's forward pass"
    )
    licence: str | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="of the labels, for those who get them: an SPDX name such as CC-BY-4.0, or a "
        "text; null: nothing is said",
    )
    citation: str | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="how to cite the labels, such as BibTeX; null: nothing is said",
    )

    @model_validator(mode="after")
    def _temperature_is_positive(self) -> LabelParams:
        if isinstance(self.temperature, str):
            self.target_top_probability()
        elif not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, found {self.temperature}")
        return self

    @model_validator(mode="after")
    def _views_differ(self) -> LabelParams:
        augmentation = Augmentation.parse(self.augmentation)
        if self.views > 1 and augmentation.is_none:
            raise ValueError(
                f"{self.views} views without an augmentation would all be the same: set "
                "augmentation, such as crop:4,flip"
            )
        return self

    def target_top_probability(self) -> float | None:
        """The P of `auto:P`, or None when the temperature is a number."""
        if not isinstance(self.temperature, str):
            return None
        text = self.temperature.removeprefix("auto:")
        try:
            target = float(text)
        except ValueError:
            target = -1.0
        if not self.temperature.startswith("auto:") or not 0 < target < 1:
            raise ValueError(
                f"temperature must be a number or auto:P with P in (0, 1), "
                f"found '{self.temperature}'"
            )
        return target
