"""The attack of the training steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.attacks.mode import evaluation_mode
from pipeline.attacks.pgd import pgd
from pipeline.attacks.start import begin

if TYPE_CHECKING:
    import torch

    from pipeline.attacks.ball import Ball
    from pipeline.attacks.pgd import LossOfLogits
    from pipeline.attacks.start import Start

__all__ = ["Adversary"]


@dataclass(frozen=True)
class Adversary:
    """The attack of the training steps.

    Attributes
    ----------
    ball : Ball
        The threat model.
    step_size : float
        Length of a step in the ball's norm, pixel units.
    steps : int
    """

    ball: Ball
    step_size: float
    steps: int

    def attack(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        loss: LossOfLogits,
        *,
        start: Start,
        index: torch.Tensor,
        key: int,
    ) -> torch.Tensor:
        """Adversarial images of a batch, the model in evaluation mode meanwhile.

        Parameters
        ----------
        model : Module
        images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
        loss : callable
            What is maximised: maps logits of shape (B, K) to losses of shape (B,).
        start : {"uniform", "normal", "none"}
            Where the ascent begins; see `pipeline.attacks.start`.
        index : Tensor of shape (B,), dtype int64
            Sample indices.
        key : int
            Of the random starts, from `pipeline.rng.stream_key`.

        Returns
        -------
        Tensor like images
        """
        with evaluation_mode(model):
            return pgd(
                model,
                images,
                loss,
                start=begin(start, self.ball, images, index, key),
                ball=self.ball,
                step_size=self.step_size,
                steps=self.steps,
            )
