"""What an objective is: what the attack maximises, and what training then minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from pipeline.attacks import LossOfLogits, Start

__all__ = ["Labels", "Loss", "Objective"]


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
