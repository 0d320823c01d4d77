"""What training minimises: each objective takes a target distribution, one-hot or soft.

With y the ground truth of a clean image x, q its target, x′ its adversarial image and S(·) the
student's softmax:

    clean    CE(q, S(x))                                                  the teacher
    at       CE(q, S(x′))                                                 Madry et al. 2018, eq. 2.1
    trades   CE(q, S(x)) + β · KL(S(x) ‖ S(x′))                           Zhang et al. 2019, eq. 5
    mart     CE(q, S(x′)) - log(1 - max_{k≠y} S_k(x′))
             + β · KL(S(x) ‖ S(x′)) · (1 - S_y(x))                        Wang et al. 2020, eq. 8

x′ maximises a loss within the ball: for `trades` the KL term; for `at` the cross entropy, either
of the ground truth y, CE(y, S(·)), or of the target itself, CE(q, S(·)); for `mart` that of the
ground truth. Where the soft label enters is our reading of LTD, not the paper's text;
docs/robustness.md has what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch.nn import functional

from pipeline.attacks import evaluation_mode

if TYPE_CHECKING:
    from collections.abc import Callable

    LossOfLogits = Callable[[torch.Tensor], torch.Tensor]
    Start = Literal["uniform", "normal"]

__all__ = [
    "Clean",
    "Labels",
    "Loss",
    "Madry",
    "Mart",
    "Objective",
    "Trades",
    "cross_entropy",
    "kl_divergence",
]

# As the authors' code has it: log(1 - p) stays finite where a wrong class has all the mass.
_ABOVE_ONE = 1.0001


@dataclass(frozen=True)
class Loss:
    """One step's loss.

    Attributes
    ----------
    value : Tensor, scalar
        To be differentiated.
    logits : Tensor of shape (B, K)
        Of the images the objective trains on: adversarial ones where there are.
    """

    value: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Labels:
    """What a batch is trained towards, and what it shows.

    Attributes
    ----------
    target, truth : Tensor of shape (B, K), dtype float32
        The distribution to train towards, and the ground truth as one-hot.
    """

    target: torch.Tensor
    truth: torch.Tensor


class Objective(Protocol):
    """Says what the attack maximises and what training then minimises.

    In two halves, since adversarial weight perturbation computes the loss twice on one attack.
    """

    @property
    def start(self) -> Start:
        """Where the attack begins."""

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """What the attack maximises; None: there is no attack.

        Parameters
        ----------
        model : Module
        images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
            Clean.
        labels : Labels

        Returns
        -------
        callable or None
            Maps logits of shape (B, K) to losses of shape (B,).
        """

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """What training minimises, the model in training mode.

        Parameters
        ----------
        model, images, labels
            As in `opposed`.
        adversarial : Tensor like images
            What maximises the opposed loss; the images themselves when there is none.
        """


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """CE(q, softmax(logits)) = -Σ_k q_k log softmax(logits)_k.

    Parameters
    ----------
    logits, target : Tensor of shape (B, K), dtype float32
        The target's rows are distributions.

    Returns
    -------
    Tensor of shape (B,)
    """
    return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1)


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q), summed over classes and not averaged over them.

    Parameters
    ----------
    log_p, log_q : Tensor of shape (B, K), dtype float32
        Log-probabilities.

    Returns
    -------
    Tensor of shape (B,)
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


@dataclass(frozen=True)
class Clean:
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


@dataclass(frozen=True)
class Madry:
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


@dataclass(frozen=True)
class Trades:
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


@dataclass(frozen=True)
class Mart:
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
