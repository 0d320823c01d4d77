"""What training minimises: each objective takes a target distribution, one-hot or soft.

With q the target of a clean image x, x′ its adversarial image and S(·) the student's softmax:

    clean    CE(q, S(x))                                      the teacher
    at       CE(q, S(x′))                                     Madry et al. 2018, eq. 2.1
    trades   CE(q, S(x)) + beta · KL(S(x) ‖ S(x′))            Zhang et al. 2019, eq. 5

x′ maximises a loss within the ball: for `trades` the KL term; for `at` the cross entropy, either
of the ground truth y, CE(y, S(·)), or of the target itself, CE(q, S(·)). Where the soft label
enters is our reading of LTD, not the paper's text; docs/robustness.md has what was measured.
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
    Attack = Callable[[LossOfLogits], torch.Tensor]

__all__ = ["Loss", "Objective", "at", "clean", "cross_entropy", "kl_divergence", "trades"]


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


class Objective(Protocol):
    """Computes the loss of one batch."""

    def __call__(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        *,
        target: torch.Tensor,
        truth: torch.Tensor,
        attack: Attack,
    ) -> Loss:
        """Compute the loss.

        Parameters
        ----------
        model : Module
            In training mode.
        images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
        target, truth : Tensor of shape (B, K), dtype float32
            The distribution to train towards, and the ground truth as one-hot.
        attack : callable
            Maps a loss of logits to the images around these that maximise it.
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


def clean(
    model: torch.nn.Module,
    images: torch.Tensor,
    *,
    target: torch.Tensor,
    truth: torch.Tensor,
    attack: Attack,
) -> Loss:
    """Cross entropy on the images as they are; the attack is not called."""
    del truth, attack
    logits = model(images)
    return Loss(cross_entropy(logits, target).mean(), logits)


def at(attack_label: Literal["truth", "target"]) -> Objective:
    """Adversarial training on the images that maximise the loss of the truth or the target."""

    def objective(
        model: torch.nn.Module,
        images: torch.Tensor,
        *,
        target: torch.Tensor,
        truth: torch.Tensor,
        attack: Attack,
    ) -> Loss:
        del images  # the attack holds them
        opposed = truth if attack_label == "truth" else target
        adversarial = attack(lambda logits: cross_entropy(logits, opposed))
        logits = model(adversarial)
        return Loss(cross_entropy(logits, target).mean(), logits)

    return objective


def trades(beta: float) -> Objective:
    """TRADES with trade-off `beta` (1/λ in Zhang et al. 2019)."""

    def objective(
        model: torch.nn.Module,
        images: torch.Tensor,
        *,
        target: torch.Tensor,
        truth: torch.Tensor,
        attack: Attack,
    ) -> Loss:
        del truth  # the attack opposes the model's own clean answer
        with evaluation_mode(model), torch.no_grad():
            log_clean = functional.log_softmax(model(images), dim=1)
        adversarial = attack(
            lambda logits: kl_divergence(log_clean, functional.log_softmax(logits, dim=1))
        )
        # Two passes, as in the authors' code: batch normalisation sees clean and adversarial
        # images apart.
        logits, attacked = model(images), model(adversarial)
        robust = kl_divergence(
            functional.log_softmax(logits, dim=1), functional.log_softmax(attacked, dim=1)
        )
        natural = cross_entropy(logits, target)
        return Loss(natural.mean() + beta * robust.mean(), attacked)

    return objective
