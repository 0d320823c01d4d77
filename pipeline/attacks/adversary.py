"""The attack of the training steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.attacks.mode import evaluation_mode
from pipeline.attacks.pgd import pgd
from pipeline.attacks.start import normal_start, uniform_start

if TYPE_CHECKING:
    import torch

    from pipeline.attacks.pgd import LossOfLogits
    from pipeline.attacks.start import Start

__all__ = ["Adversary"]


@dataclass(frozen=True)
class Adversary:
    """The attack of the training steps.

    Attributes
    ----------
    eps, step_size : float
        Pixel units.
    steps : int
    """

    eps: float
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
        start : {"uniform", "normal"}
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
                start=self._begin(images, index, key, start),
                eps=self.eps,
                step_size=self.step_size,
                steps=self.steps,
            )

    def _begin(
        self, images: torch.Tensor, index: torch.Tensor, key: int, start: Start
    ) -> torch.Tensor:
        if start == "normal":
            return normal_start(images, index, key)
        return uniform_start(images, index, self.eps, key)
