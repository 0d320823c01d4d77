"""Parameters of the stage that prepares the images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.params.section import Section

__all__ = ["PrepareParams"]


class PrepareParams(Section):
    """Which images, and how they are stored."""

    dataset: Literal["digits", "cifar10", "cifar100", "folder"] = Field(
        description="digits comes with scikit-learn; folder is torchvision's ImageFolder layout"
    )
    path: str | None = Field(
        None,
        description="folder: holds train/ and test/ (or val/); CIFAR: where torchvision keeps it",
    )
    download: bool = Field(True, description="let torchvision download CIFAR when it is absent")
    image_size: int | None = Field(
        None,
        ge=4,
        description="resize the shorter side to this many pixels and crop the centre; "
        "null: images stay as they are and must all have one size",
    )
    channels: Literal[1, 3] = Field(3, description="1: grey (luminance), 3: RGB")
    encoding: Literal["raw", "jpeg"] = Field(
        "raw", description="raw: exact pixels, for small images; jpeg: for large ones"
    )
    jpeg_quality: int = Field(90, ge=1, le=100, description="quality of encoding jpeg")
    validation_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the training images held out for choosing checkpoints; "
        "which ones is fixed by the hash of each image",
    )
    skip_bad: bool = Field(False, description="leave out unreadable images instead of stopping")
    workers: int = Field(
        1, ge=1, description="processes that encode; the file's bytes are reproducible with 1"
    )

    @model_validator(mode="after")
    def _folder_needs_a_path(self) -> PrepareParams:
        if self.dataset == "folder" and self.path is None:
            raise ValueError("dataset 'folder' needs prepare.path")
        return self
