"""Objectives that are another one, changed in one respect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.objectives.objective import Attacker, Labels, Loss, Objective

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from pipeline.attacks import LossOfLogits, Start

__all__ = ["Around", "Taught"]


@dataclass(frozen=True)
class Around(Objective):
    """Does what another objective does.

    Attributes
    ----------
    inner : Objective
    """

    inner: Objective

    @property
    def start(self) -> Start:  # type: ignore[override]
        """The inner objective's."""
        return self.inner.start

    def prepared(self, images: torch.Tensor, labels: Labels) -> Labels:
        """See `Objective`."""
        return self.inner.prepared(images, labels)

    def opposed(
        self, model: torch.nn.Module, images: torch.Tensor, labels: Labels
    ) -> LossOfLogits | None:
        """See `Objective`."""
        return self.inner.opposed(model, images, labels)

    def attack(
        self,
        adversary: Attacker,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
        **how: Any,
    ) -> torch.Tensor:
        """See `Objective`."""
        return self.inner.attack(adversary, model, images, labels, **how)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """See `Objective`."""
        return self.inner.loss(model, images, adversarial, labels)

    def finish(self, sum_over_processes: Callable[[list[torch.Tensor]], None]) -> None:
        """See `Objective`."""
        self.inner.finish(sum_over_processes)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `Objective`."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """See `Objective`."""
        self.inner.load_state_dict(state)


@dataclass(frozen=True)
class Taught(Around):
    """With targets that a teacher gives, in the run, for the very images of the step.

    Attributes
    ----------
    answer : callable
        Maps clean images and their labels to the labels to train with. It is asked once a
        step, before the attack; what it gives carries no gradient.
    """

    answer: Callable[[torch.Tensor, Labels], Labels]

    def prepared(self, images: torch.Tensor, labels: Labels) -> Labels:
        """The teacher's labels in place of the examples'."""
        return self.inner.prepared(images, self.answer(images, labels))
