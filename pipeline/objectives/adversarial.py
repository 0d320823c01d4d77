"""Clean training, standard adversarial training, TRADES and MART; another loss for an attack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional

from ltd_pipe.attacks import cross_entropy, evaluation_mode, kl_divergence, margin
from ltd_pipe.objectives.base import Loss, Objective, ObjectiveWrapper

if TYPE_CHECKING:
    from ltd_pipe.attacks import Adversary, LossOfLogits
    from ltd_pipe.objectives.base import TrainBatch
    from ltd_pipe.params import TrainParams


class Clean(Objective):
    """Cross entropy on the images as they are: the teacher's training."""

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """CE(q, S(x))."""
        del adversarial
        logits = model(batch.images)
        return Loss(cross_entropy(logits, batch.target).mean(), logits)


@dataclass(frozen=True)
class Madry(Objective):
    """Standard adversarial training (Madry et al. 2018), against the loss of truth or target."""

    attack_label: Literal["truth", "target"] = "truth"

    @classmethod
    def from_params(cls, params: TrainParams, **_: Any) -> Objective:
        """With `attack_label`."""
        return cls(params.attack_label)

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """CE(y, S(·)) or CE(q, S(·))."""
        del model
        return partial(cross_entropy, target=getattr(batch, self.attack_label))

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """CE(q, S(x′))."""
        logits = model(adversarial)
        return Loss(cross_entropy(logits, batch.target).mean(), logits)


@dataclass(frozen=True)
class Trades(Objective):
    """TRADES (Zhang et al. 2019); beta weighs the robust term, 1/λ in the paper."""

    beta: float
    start = "normal"

    @classmethod
    def from_params(cls, params: TrainParams, **_: Any) -> Objective:
        """With `beta`."""
        return cls(params.beta)

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """KL(S(x) ‖ S(·)), from the model's own clean answer in evaluation mode."""
        return divergence_from_clean(model, batch)

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """CE(q, S(x)) + β · KL(S(x) ‖ S(x′))."""
        # Two passes, as in the authors' code: batch normalisation sees clean and adversarial
        # images apart.
        logits, attacked = model(batch.images), model(adversarial)
        robust = kl_divergence(
            functional.log_softmax(logits, dim=1), functional.log_softmax(attacked, dim=1)
        )
        natural = cross_entropy(logits, batch.target)
        return Loss(natural.mean() + self.beta * robust.mean(), attacked)


def divergence_from_clean(model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
    """KL(S(x) ‖ S(·)), which has no gradient at x itself."""
    with evaluation_mode(model), torch.no_grad():
        log_clean = functional.log_softmax(model(batch.images), dim=1)
    return lambda logits: kl_divergence(log_clean, functional.log_softmax(logits, dim=1))


# As the authors' code has it: log(1 - p) stays finite where a wrong class has all the mass.
_ABOVE_ONE = 1.0001


@dataclass(frozen=True)
class Mart(Objective):
    """Misclassification-aware training (Wang et al. 2020); beta is λ in the paper."""

    beta: float
    start = "normal"

    @classmethod
    def from_params(cls, params: TrainParams, **_: Any) -> Objective:
        """With `beta`."""
        return cls(params.beta)

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """CE(q, S(x′)) - log(1 - max_{k≠y} S_k(x′)) + β · KL(S(x) ‖ S(x′)) · (1 - S_y(x))."""
        logits, attacked = model(batch.images), model(adversarial)
        log_attacked = functional.log_softmax(attacked, dim=1)
        log_clean = functional.log_softmax(logits, dim=1)
        wrong = (log_attacked.exp() * (1.0 - batch.truth)).amax(dim=1)
        boosted = -(batch.target * log_attacked).sum(dim=1) - torch.log(_ABOVE_ONE - wrong)
        missed = 1.0 - (log_clean.exp() * batch.truth).sum(dim=1)
        consistency = kl_divergence(log_clean, log_attacked) * missed
        return Loss(boosted.mean() + self.beta * consistency.mean(), attacked)


class AttackLossOverride(ObjectiveWrapper):
    """Trains as the inner objective does, on images that are worst by another loss.

    Parameters
    ----------
    inner : Objective
    attack_loss : {"ce", "kl", "margin"}
        The ground truth's cross entropy, the divergence from the model's own clean answer, or
        the margin of the best wrong class.
    """

    def __init__(self, inner: Objective, attack_loss: Literal["ce", "kl", "margin"]) -> None:
        super().__init__(inner)
        self._name = attack_loss

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """The loss of this name, of the model's own logits."""
        if self._name == "kl":
            return divergence_from_clean(model, batch)
        if self._name == "margin":
            return partial(margin, labels=batch.truth.argmax(dim=1))
        return partial(cross_entropy, target=batch.truth)

    def attack(
        self, adversary: Adversary, model: torch.nn.Module, batch: TrainBatch, **how: Any
    ) -> torch.Tensor:
        """One attack on the model alone, also where the inner objective attacks otherwise."""
        return Objective.attack(self, adversary, model, batch, **how)
