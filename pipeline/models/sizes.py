"""Whether a network takes images of other sizes than it was built for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.models.classifier import Classifier

__all__ = ["require_sizes"]


def require_sizes(model: Classifier, sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse a network that cannot be trained on images of growing sizes, by trying each.

    Parameters
    ----------
    model : Classifier
    sizes : sequence of tuple of int
        Heights and widths; none may be larger than the images that the model is for.

    Raises
    ------
    ModelError
        At the first size that it cannot take.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with model.also_taking(sizes), torch.no_grad():
            for size in sizes:
                _require_size(model, size)
    finally:
        for module, training in modes.items():
            module.training = training


def _require_size(model: Classifier, size: tuple[int, int]) -> None:
    channels, height, width = model.shape
    where, (tall, wide) = model.architecture, size
    if height != width or tall > height or wide > width:
        raise ModelError(
            where,
            f"cannot grow to images of {tall}×{wide}",
            expected="square images of the data, and sizes up to theirs",
            found=f"{height}×{width}",
            remedy="Lower progressive_resize, or prepare larger images.",
        )
    images = torch.zeros(1, channels, tall, wide, device=model.mean.device)
    try:
        found = tuple(model(images).shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unfit(where, size, " ".join(str(error).split())[:120]) from error
    if found != (1, model.num_classes):
        raise _unfit(where, size, f"logits of shape {found}")


def _unfit(where: str, size: tuple[int, int], reason: str) -> ModelError:
    return ModelError(
        where,
        f"cannot take images of {size[0]}×{size[1]} ({reason})",
        remedy="Train it without progressive_resize, or choose a network that averages over "
        "places, such as a ResNet.",
    )
