"""An objective whose attack maximises another loss than the objective's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional

from ltd_pipe.attacks import evaluation_mode, margin
from ltd_pipe.objectives.base import Around, Loss, Objective, cross_entropy, kl_divergence

if TYPE_CHECKING:
    from ltd_pipe.attacks import LossOfLogits, Start
    from ltd_pipe.objectives.base import Attacker, Labels


# --- Clean training: the teacher.


@dataclass(frozen=True)
class Clean(Objective):
    """Cross entropy on the images as they are."""

    start: Start = "uniform"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """No attack."""
        del model, images, labels
        return None

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """CE(q, S(x))."""
        del adversarial
        logits = model(images)
        return Loss(cross_entropy(logits, labels.target).mean(), logits)


# --- Standard adversarial training (Madry et al. 2018).


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


# --- TRADES (Zhang et al. 2019).


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


# --- MART (Wang et al. 2020).


# As the authors' code has it: log(1 - p) stays finite where a wrong class has all the mass.
_ABOVE_ONE = 1.0001


@dataclass(frozen=True)
class Mart(Objective):
    """MART: misclassification-aware adversarial training.

    Attributes
    ----------
    beta : float
        Weight of the consistency term, λ in the paper.
    """

    beta: float
    start: Start = "normal"

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
        """CE(q, S(x′)) - log(1 - max_{k≠y} S_k(x′)) + β · KL(S(x) ‖ S(x′)) · (1 - S_y(x))."""
        logits, attacked = model(images), model(adversarial)
        log_attacked = functional.log_softmax(attacked, dim=1)
        log_clean = functional.log_softmax(logits, dim=1)
        wrong = (log_attacked.exp() * (1.0 - labels.truth)).amax(dim=1)
        margin = -torch.log(_ABOVE_ONE - wrong)
        boosted = -(labels.target * log_attacked).sum(dim=1) + margin
        missed = 1.0 - (log_clean.exp() * labels.truth).sum(dim=1)
        consistency = kl_divergence(log_clean, log_attacked) * missed
        return Loss(boosted.mean() + self.beta * consistency.mean(), attacked)


# --- An objective whose attack maximises another loss than the objective's own.


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
        answer, which has no gradient at the image itself; margin: see `ltd_pipe.attacks.losses`.
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
