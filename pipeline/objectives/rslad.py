"""RSLAD: robust soft labels everywhere (Zi et al. 2021, arXiv 2108.07969)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.objectives.divergence import kl_from_target
from pipeline.objectives.objective import Loss, Objective

if TYPE_CHECKING:
    import torch

    from pipeline.attacks import LossOfLogits, Start
    from pipeline.objectives.objective import Labels

__all__ = ["Rslad"]


@dataclass(frozen=True)
class Rslad(Objective):
    """RSLAD; its target should be a robust teacher's answer to the clean image.

    The authors' code (zibojia/RSLAD) averages the divergences over classes, too, and multiplies
    them by ten for 100 classes to make up for it. Here they are summed over classes, so that
    the loss is that of their code times the number of classes: ten times their CIFAR-10 loss.

    Attributes
    ----------
    robust_weight : float
        Of the term on the attacked images; the rest goes to the clean ones. The paper's is 5/6.
    """

    robust_weight: float = 5 / 6
    start: Start = "normal"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """KL(q ‖ S(·)), from the teacher's answer."""
        del model, images
        return lambda logits: kl_from_target(labels.target, logits)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """α · KL(q ‖ S(x′)) + (1 - α) · KL(q ‖ S(x))."""
        attacked, logits = model(adversarial), model(images)
        robust = kl_from_target(labels.target, attacked).mean()
        natural = kl_from_target(labels.target, logits).mean()
        value = self.robust_weight * robust + (1.0 - self.robust_weight) * natural
        return Loss(value, attacked)
