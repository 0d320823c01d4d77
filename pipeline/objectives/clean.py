"""Clean training: the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.objectives.divergence import cross_entropy
from pipeline.objectives.objective import Loss, Objective

if TYPE_CHECKING:
    import torch

    from pipeline.attacks import LossOfLogits, Start
    from pipeline.objectives.objective import Labels

__all__ = ["Clean"]


@dataclass(frozen=True)
class Clean(Objective):
    """Cross entropy on the images as they are."""

    start: Start = "uniform"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """No attack."""
        del model, images, labels
        return None

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """CE(q, S(x))."""
        del adversarial
        logits = model(images)
        return Loss(cross_entropy(logits, labels.target).mean(), logits)
