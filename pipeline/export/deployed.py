"""The classifier as others get it: the same arithmetic, without what needs this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier

__all__ = ["Deployed"]


class Deployed(nn.Module):
    """A classifier's steps in its order, without its checks, which no graph can hold.

    Parameters
    ----------
    model : Classifier
        In evaluation mode; its network is shared, not copied.
    """

    mean: torch.Tensor
    std: torch.Tensor
    columns: torch.Tensor | None

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.network = model.network
        self.temperature = model.temperature
        self.register_buffer("mean", model.mean[:, None, None].clone())
        self.register_buffer("std", model.std[:, None, None].clone())
        self.register_buffer("columns", model.columns, persistent=False)
        self.train(model.training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, K) for images of shape (B, C, H, W), float32, in [0, 1]."""
        logits: torch.Tensor = self.network((images - self.mean) / self.std)
        if self.columns is not None:
            logits = logits[:, self.columns]
        return logits / self.temperature
