"""Adversarial training of networks with several exits (Hu et al. 2020, arXiv 2002.10025).

It is the setting of NEO-KD (Ham et al. 2023, arXiv 2311.00428), without its two distillation
terms: those take their targets from the network in training, and no store helps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from ltd_pipe.attacks import evaluation_mode
from ltd_pipe.objectives.base import Loss, Objective, cross_entropy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ltd_pipe.attacks import LossOfLogits, Start
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives.base import Attacker, Labels

__all__ = ["AttackedExits", "MultiExit"]

AttackedExits = Literal["last", "average", "max-average"]


@dataclass(frozen=True)
class MultiExit(Objective):
    """Trains the exits of a network on clean and attacked images alike.

    Attributes
    ----------
    exits : sequence of int
        Which ones, counted from 0, ascending. The logits of a step are those of the last one.
    attacked : {"last", "average", "max-average"}
        last: the attack maximises the loss of the last of them; average: the mean over all of
        them; max-average: each exit is attacked by itself, and for each image the attack is
        taken whose mean loss over all exits is largest. It costs as many attacks as exits.
    """

    exits: Sequence[int]
    attacked: AttackedExits = "max-average"
    start: Start = "uniform"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """The truth's cross entropy, averaged over exits: of logits of shape (B, E, K)."""
        del model, images
        return lambda logits: _exit_losses(logits, labels.truth).mean(dim=1)

    def attack(
        self,
        adversary: Attacker,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
        **how: Any,
    ) -> torch.Tensor:
        """One attack, or for max-average the worst of one for each exit."""
        every = _Exits(model, self.exits)
        if self.attacked == "average":
            return super().attack(adversary, every, images, labels, **how)
        count = len(self.exits)
        targets = range(count) if self.attacked == "max-average" else (count - 1,)
        found = [
            adversary.attack(
                every, images, _one_exit(number, labels.truth), start=self.start, **how
            )
            for number in targets
        ]
        return found[0] if len(found) == 1 else _worst(every, found, labels)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """Mean over exits e of CE(q, S_e(x)) + CE(y, S_e(x′))."""
        every = _Exits(model, self.exits)
        clean, attacked = every(images), every(adversarial)
        natural = _exit_losses(clean, labels.target).mean()
        robust = _exit_losses(attacked, labels.truth).mean()
        return Loss(natural + robust, attacked[:, -1])


class _Exits(torch.nn.Module):
    """Logits of some exits side by side: shape (B, E, K)."""

    def __init__(self, model: Any, exits: Sequence[int]) -> None:
        super().__init__()
        self.model: Classifier = model
        self._exits, self.training = tuple(exits), model.training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model.exit_logits(images)
        return torch.stack([logits[number] for number in self._exits], dim=1)


def _exit_losses(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # (B, E, K) and (B, K) to (B, E).
    rows = [cross_entropy(exit_, target) for exit_ in logits.unbind(dim=1)]
    return torch.stack(rows, dim=1)


def _one_exit(number: int, truth: torch.Tensor) -> LossOfLogits:
    return lambda logits: cross_entropy(logits[:, number], truth)


@torch.no_grad()
def _worst(every: _Exits, found: list[torch.Tensor], labels: Labels) -> torch.Tensor:
    with evaluation_mode(every):
        means = [_exit_losses(every(images), labels.truth).mean(dim=1) for images in found]
    # (number of attacks, B): for each image the attack that is worst on average.
    choice = torch.stack(means).argmax(dim=0)
    rows = torch.arange(len(choice), device=choice.device)
    return torch.stack(found)[choice, rows]
