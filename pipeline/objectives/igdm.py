"""IGDM: indirect gradient matching (Lee, Cho and Kim 2025, arXiv 2312.03286)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.objectives.around import Around
from pipeline.objectives.divergence import kl_divergence
from pipeline.objectives.objective import Loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.objectives.objective import Labels, Moment

__all__ = ["Igdm"]


@dataclass(frozen=True)
class Igdm(Around):
    """With a term that matches how the student's answer changes to how the teacher's does.

    With δ = x′ - x, a robust model is close to linear between x - δ and x + δ, so that equal
    differences there are equal gradients. x - δ is not clipped to [0, 1], as in the code that
    the first author publishes (HongsinLee/saad, igdm.py).

    Attributes
    ----------
    inner : Objective
        Its attack is used, and its logits are those of x′.
    teacher : callable
        Maps images to its logits, already divided by its temperature. No gradient reaches it.
    weight : float
        α, reached in the last epoch: in the first of E epochs it is α / E.
    """

    teacher: Callable[[torch.Tensor], torch.Tensor]
    weight: float

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """L + α · (e / E) · KL(σ(T(x + δ) - T(x - δ)) ‖ σ(S(x + δ) - S(x - δ))), σ = softmax."""
        inner = self.inner.loss(model, images, adversarial, labels)
        mirrored = 2.0 * images - adversarial
        with torch.no_grad():
            theirs = self.teacher(adversarial) - self.teacher(mirrored)
        ours = inner.logits - model(mirrored)
        matching = kl_divergence(
            functional.log_softmax(theirs, dim=1), functional.log_softmax(ours, dim=1)
        ).mean()
        return Loss(inner.value + self._weight_at(labels.moment) * matching, inner.logits)

    def _weight_at(self, moment: Moment) -> float:
        # Epochs are counted from one, as in that code.
        return self.weight * (moment.epoch + 1) / moment.epochs
