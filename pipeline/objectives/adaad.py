"""AdaAD: adaptive adversarial distillation (Huang et al. 2023, CVPR, pp. 24668-24677)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pipeline.objectives.divergence import kl_divergence, kl_from_target
from pipeline.objectives.objective import Loss, Objective

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.attacks import LossOfLogits, Start
    from pipeline.objectives.objective import Attacker, Labels

__all__ = ["Adaad"]


@dataclass(frozen=True)
class Adaad(Objective):
    """AdaAD: the attack looks for where teacher and student differ most.

    A store knows the teacher's answers to clean images alone, so that it can serve the term on
    them at most; the rest needs the teacher itself.

    Attributes
    ----------
    teacher : callable
        Maps images to its logits, already divided by its temperature. No gradient reaches it.
    robust_weight : float
        α of the term on the attacked images; the rest goes to the clean ones. At 1, which is
        what the code that others publish has, these are not passed through the student at all.
    """

    teacher: Callable[[torch.Tensor], torch.Tensor]
    robust_weight: float = 1.0
    start: Start = "normal"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """KL(T(·) ‖ S(·)), as a loss of both logits side by side; see `attack`."""
        del model, images, labels
        return _difference

    def attack(
        self,
        adversary: Attacker,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
        **how: Any,
    ) -> torch.Tensor:
        """Oppose both at once: the gradient passes through the teacher, too."""
        both = _Both(model, self.teacher)
        return super().attack(adversary, both, images, labels, **how)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """α · KL(T(x′) ‖ S(x′)) + (1 - α) · KL(q ‖ S(x))."""
        attacked = model(adversarial)
        with torch.no_grad():
            answer = functional.log_softmax(self.teacher(adversarial), dim=1)
        robust = kl_divergence(answer, functional.log_softmax(attacked, dim=1)).mean()
        value = self.robust_weight * robust
        if self.robust_weight < 1.0:
            natural = kl_from_target(labels.target, model(images)).mean()
            value = value + (1.0 - self.robust_weight) * natural
        return Loss(value, attacked)


class _Both(torch.nn.Module):
    """Logits of the student, then of the teacher: shape (B, 2K).

    Only the student is a part of it, so that only the student changes its mode.
    """

    def __init__(
        self, student: torch.nn.Module, teacher: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.student, self._teacher = student, (teacher,)
        self.training = student.training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (teacher,) = self._teacher
        return torch.cat([self.student(images), teacher(images)], dim=1)


def _difference(logits: torch.Tensor) -> torch.Tensor:
    student, teacher = logits.chunk(2, dim=1)
    return kl_divergence(
        functional.log_softmax(teacher, dim=1), functional.log_softmax(student, dim=1)
    )
