"""What an objective is: what the attack maximises, and what training then minimises."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ltd_pipe.attacks import cross_entropy

if TYPE_CHECKING:
    import torch

    from ltd_pipe.attacks import Adversary, LossOfLogits, Start


@dataclass(frozen=True)
class StepInfo:
    """Where in the run a step is: steps and epochs done before it, and in all."""

    step: int = 0
    steps: int = 1
    epoch: int = 0
    epochs: int = 1
    learning_rate: float = 0.0

    @property
    def position(self) -> float:
        """Epochs done at the middle of this step, with fractions."""
        return (self.step + 0.5) * self.epochs / self.steps


@dataclass(frozen=True)
class TrainBatch:
    """Clean images of a step, and what they are trained towards.

    Attributes
    ----------
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
    target, truth : Tensor of shape (B, K), dtype float32
        The distributions to train towards, and the ground truth: one-hot, or a mixture.
    info : StepInfo
    """

    images: torch.Tensor
    target: torch.Tensor
    truth: torch.Tensor
    info: StepInfo = field(default_factory=StepInfo)


class Loss(NamedTuple):
    """One step's loss: the scalar to differentiate, and the logits of what it trains on.

    Logits have shape (B, K) and are those of the adversarial images where there are any.
    """

    value: torch.Tensor
    logits: torch.Tensor


class Objective(abc.ABC):
    """Says what the attack maximises and what training then minimises.

    In two halves, since adversarial weight perturbation computes the loss twice on one attack.
    A step may come in parts, one after the other or in several processes: each part is attacked,
    and its loss computed once or twice; then the step is ended.
    """

    # Where the attack begins, see `ltd_pipe.attacks.initial_point`.
    start: Start = "uniform"

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """What the attack maximises: by default the cross entropy of the truth."""
        del model
        return partial(cross_entropy, target=batch.truth)

    @abc.abstractmethod
    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """What training minimises, the model in training mode; in clean training x′ is x."""

    def attack(
        self, adversary: Adversary, model: torch.nn.Module, batch: TrainBatch, **how: Any
    ) -> torch.Tensor:
        """Adversarial images of a batch; `how` is what else the adversary is told."""
        loss = self.attack_loss(model, batch)
        return adversary.attack(model, batch.images, loss, start=self.start, **how)

    def end_step(  # noqa: B027  most have nothing to do
        self, sum_over_processes: Callable[[list[torch.Tensor]], None]
    ) -> None:
        """End a step, all of whose losses were computed.

        `sum_over_processes` adds float32 tensors up in place over all that take the step.
        """

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a snapshot must hold for the next step to be what it would have been."""
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Take what `state_dict` gave."""


class ObjectiveWrapper(Objective):
    """Does what another objective does; a subclass changes one respect."""

    def __init__(self, inner: Objective) -> None:
        self.inner, self.start = inner, inner.start

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """The inner objective's."""
        return self.inner.attack_loss(model, batch)

    def attack(
        self, adversary: Adversary, model: torch.nn.Module, batch: TrainBatch, **how: Any
    ) -> torch.Tensor:
        """The inner objective's."""
        return self.inner.attack(adversary, model, batch, **how)

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """The inner objective's."""
        return self.inner.loss(model, batch, adversarial)

    def end_step(self, sum_over_processes: Callable[[list[torch.Tensor]], None]) -> None:
        """End the inner objective's."""
        self.inner.end_step(sum_over_processes)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The inner objective's."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give it to the inner objective."""
        self.inner.load_state_dict(state)
