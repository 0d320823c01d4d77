"""The model and the test images of the commands that measure one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from pipeline.evaluation.selection import TestImages
    from pipeline.images.beton import Beton
    from pipeline.models.classifier import Classifier
    from pipeline.params import Params

__all__ = ["checkpoint_argument", "choose_images", "open_test_data", "test_data_option"]

checkpoint_argument = click.argument(
    "checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("data/student/model.safetensors"),
)
test_data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data/test.beton"),
    show_default=True,
    help="Test images.",
)


def open_test_data(data: Path, models: Iterable[Classifier]) -> Beton:
    """Open a beton whose images each of the models takes."""
    from pipeline.images.beton import open_beton

    beton = open_beton(data)
    for model in models:
        model.require_data(beton.manifest.class_names, beton.manifest.shape, str(data))
    return beton


def choose_images(beton: Beton, params: Params, device: torch.device) -> TestImages:
    """Choose `evaluate.images` of its images."""
    from pipeline.evaluation.selection import select_images
    from pipeline.images.stream import ImageStream

    stream, count = ImageStream(beton, device), params.evaluate.images
    return select_images(stream, beton.manifest.num_samples, count, params.seed)
