"""MART (Wang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.objectives.divergence import cross_entropy, kl_divergence
from pipeline.objectives.objective import Loss, Objective

if TYPE_CHECKING:
    from pipeline.attacks import LossOfLogits, Start
    from pipeline.objectives.objective import Labels

__all__ = ["Mart"]

# As the authors' code has it: log(1 - p) stays finite where a wrong class has all the mass.
_ABOVE_ONE = 1.0001


@dataclass(frozen=True)
class Mart(Objective):
    """MART: misclassification-aware adversarial training.

    Attributes
    ----------
    beta : float
        Weight of the consistency term, λ in the paper.
    """

    beta: float
    start: Start = "normal"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """The cross entropy of the truth."""
        del model, images
        return lambda logits: cross_entropy(logits, labels.truth)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """CE(q, S(x′)) - log(1 - max_{k≠y} S_k(x′)) + β · KL(S(x) ‖ S(x′)) · (1 - S_y(x))."""
        logits, attacked = model(images), model(adversarial)
        log_attacked = functional.log_softmax(attacked, dim=1)
        log_clean = functional.log_softmax(logits, dim=1)
        wrong = (log_attacked.exp() * (1.0 - labels.truth)).amax(dim=1)
        margin = -torch.log(_ABOVE_ONE - wrong)
        boosted = -(labels.target * log_attacked).sum(dim=1) + margin
        missed = 1.0 - (log_clean.exp() * labels.truth).sum(dim=1)
        consistency = kl_divergence(log_clean, log_attacked) * missed
        return Loss(boosted.mean() + self.beta * consistency.mean(), attacked)
