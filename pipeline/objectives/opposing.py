"""An objective whose attack maximises another loss than the objective's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pipeline.attacks import margin
from pipeline.objectives.around import Around
from pipeline.objectives.divergence import cross_entropy
from pipeline.objectives.objective import Objective
from pipeline.objectives.trades import Trades

if TYPE_CHECKING:
    import torch

    from pipeline.attacks import LossOfLogits
    from pipeline.objectives.objective import Attacker, Labels

__all__ = ["AttackLoss", "Opposing", "opposing"]

AttackLoss = Literal["ce", "kl", "margin"]


def opposing(objective: Objective, attack_loss: AttackLoss | None) -> Objective:
    """The objective with its attack's loss replaced; None: as it is."""
    return objective if attack_loss is None else Opposing(objective, attack_loss)


@dataclass(frozen=True)
class Opposing(Around):
    """Trains as the inner objective does, on images that are worst by another measure.

    Attributes
    ----------
    attack_loss : {"ce", "kl", "margin"}
        ce: the ground truth's cross entropy; kl: the divergence from the model's own clean
        answer, which has no gradient at the image itself; margin: see `pipeline.attacks.margin`.
    """

    attack_loss: AttackLoss

    def opposed(
        self, model: torch.nn.Module, images: torch.Tensor, labels: Labels
    ) -> LossOfLogits | None:
        """The loss of this name, of the model's own logits."""
        if self.attack_loss == "kl":
            return Trades(beta=1.0).opposed(model, images, labels)
        if self.attack_loss == "margin":
            return partial(margin, labels=labels.truth.argmax(dim=1))
        return partial(cross_entropy, target=labels.truth)

    def attack(
        self,
        adversary: Attacker,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
        **how: Any,
    ) -> torch.Tensor:
        """One attack on the model alone, also where the inner objective attacks otherwise."""
        return Objective.attack(self, adversary, model, images, labels, **how)
