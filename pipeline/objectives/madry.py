"""Standard adversarial training (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.objectives.divergence import cross_entropy
from pipeline.objectives.objective import Loss, Objective

if TYPE_CHECKING:
    import torch

    from pipeline.attacks import LossOfLogits, Start
    from pipeline.objectives.objective import Labels

__all__ = ["Madry"]


@dataclass(frozen=True)
class Madry(Objective):
    """Standard adversarial training.

    Attributes
    ----------
    attack_label : {"truth", "target"}
        What the attack opposes.
    """

    attack_label: Literal["truth", "target"] = "truth"
    start: Start = "uniform"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """The cross entropy of the truth or of the target."""
        del model, images
        label = labels.truth if self.attack_label == "truth" else labels.target
        return lambda logits: cross_entropy(logits, label)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """CE(q, S(x′))."""
        del images
        logits = model(adversarial)
        return Loss(cross_entropy(logits, labels.target).mean(), logits)
