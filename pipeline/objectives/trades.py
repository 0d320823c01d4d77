"""TRADES (Zhang et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline.attacks import evaluation_mode
from pipeline.objectives.divergence import cross_entropy, kl_divergence
from pipeline.objectives.objective import Loss, Objective

if TYPE_CHECKING:
    from pipeline.attacks import LossOfLogits, Start
    from pipeline.objectives.objective import Labels

__all__ = ["Trades"]


@dataclass(frozen=True)
class Trades(Objective):
    """TRADES.

    Attributes
    ----------
    beta : float
        Weight of the robust term, 1/λ in the paper.
    """

    beta: float
    start: Start = "normal"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """The divergence from the model's own clean answer, in evaluation mode."""
        del labels  # the attack opposes the model's own clean answer
        with evaluation_mode(model), torch.no_grad():
            log_clean = functional.log_softmax(model(images), dim=1)
        return lambda logits: kl_divergence(log_clean, functional.log_softmax(logits, dim=1))

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """CE(q, S(x)) + β · KL(S(x) ‖ S(x′))."""
        # Two passes, as in the authors' code: batch normalisation sees clean and adversarial
        # images apart.
        logits, attacked = model(images), model(adversarial)
        robust = kl_divergence(
            functional.log_softmax(logits, dim=1), functional.log_softmax(attacked, dim=1)
        )
        natural = cross_entropy(logits, labels.target)
        return Loss(natural.mean() + self.beta * robust.mean(), attacked)
