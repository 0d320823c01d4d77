"""ARD: adversarially robust distillation (Goldblum et al. 2020, arXiv 1905.09747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.objectives.divergence import cross_entropy, kl_from_target
from pipeline.objectives.objective import Loss, Objective

if TYPE_CHECKING:
    import torch

    from pipeline.attacks import LossOfLogits, Start
    from pipeline.objectives.objective import Labels

__all__ = ["Ard"]


@dataclass(frozen=True)
class Ard(Objective):
    """ARD; its target should be the teacher's answer to the clean image, softened by t.

    The authors' code (goldblum/AdversariallyRobustDistillation, main.py) averages the
    divergence over classes, too; here it is summed over them. It attacks in training mode;
    here the student is attacked in evaluation mode, as everywhere.

    Attributes
    ----------
    temperature : float
        t, which divides the student's logits in the distillation term; the target is softened
        by the same. The authors' default is 30.
    robust_weight : float
        α of the distillation term on the attacked images; the rest goes to the cross entropy
        of the truth on the clean ones. The authors' default is 1.
    """

    temperature: float
    robust_weight: float = 1.0
    start: Start = "uniform"

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
        """α · t² · KL(q ‖ S^t(x′)) + (1 - α) · CE(y, S(x)), S^t = softmax(logits / t)."""
        attacked = model(adversarial)
        distilled = kl_from_target(labels.target, attacked / self.temperature).mean()
        value = self.robust_weight * self.temperature**2 * distilled
        if self.robust_weight < 1.0:
            natural = cross_entropy(model(images), labels.truth).mean()
            value = value + (1.0 - self.robust_weight) * natural
        return Loss(value, attacked)
