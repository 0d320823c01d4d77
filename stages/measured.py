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

__all__ = ["checkpoint_argument", "open_test_images", "test_data_option"]

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


def open_test_images(
    data: Path, models: Iterable[Classifier], params: Params, device: torch.device
) -> tuple[Beton, TestImages]:
    """Open a beton that each of the models takes, and choose `evaluate.images` of its images."""
    from pipeline.evaluation.selection import select_images
    from pipeline.images.beton import open_beton
    from pipeline.images.stream import ImageStream

    beton = open_beton(data)
    for model in models:
        model.require_data(beton.manifest.class_names, beton.manifest.shape, str(data))
    stream, count = ImageStream(beton, device), params.evaluate.images
    return beton, select_images(stream, beton.manifest.num_samples, count, params.seed)
