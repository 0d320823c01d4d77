"""Stored pixels and the unit that models and attacks see."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["to_unit"]


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1]: uint8 images divided by 255, as float32 of the same shape."""
    return images.float().div_(255.0)
