"""Attacks of one step, for training that costs little more than clean training.

FGSM with a random start (FGSM-RS, Wong et al. 2020, algorithm 3) is PGD of one step of 1.25 eps
from a uniform start, and needs no function of its own. Training against one step can collapse:
see `ltd_pipe.training.alarm`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ltd_pipe.attacks.frozen import evaluation_mode
from ltd_pipe.attacks.pgd import begin, input_gradient, pgd

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ltd_pipe.attacks.pgd import Ball, LossOfLogits, Start


def n_fgsm(
    model: Callable[[torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    loss: LossOfLogits,
    *,
    ball: Ball,
    step_size: float,
) -> torch.Tensor:
    """One step from strong noise, with no way back into the ball (de Jorge et al. 2022).

    The result may leave the ball, which is the method's point: with noise within k · eps it is
    within k · eps + step_size of the image, three times eps as the authors have it. It is in
    [0, 1], as the noisy image is: their code clips both to the range of pixels.

    Parameters
    ----------
    model, loss
        As for `ltd_pipe.attacks.pgd`.
    noisy : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
        The images with noise added, uniform within k · eps; left as they are.
    ball : Ball
        Whose steepest step is taken; its radius plays no part.
    step_size : float
        Pixel units; eps in the paper.

    Returns
    -------
    Tensor like noisy
        Detached.
    """
    points = noisy.detach().clone()
    ball.climb_(points, input_gradient(model, points, loss), step_size)
    return points.clamp_(0.0, 1.0)


# --- The attack of the training steps.


Method = Literal["pgd", "n-fgsm"]


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
        1 for n-fgsm.
    method : {"pgd", "n-fgsm"}
        See `pgd` and `n_fgsm`; the latter's images may leave the ball.
    start : {"uniform", "normal", "none"}, optional
        Where PGD begins; by default where the objective says.
    noise : float
        n-fgsm: in units of eps.
    warmup_epochs : float
        Over which eps and the step grow from 0.
    """

    ball: Ball
    step_size: float
    steps: int
    method: Method = "pgd"
    start: Start | None = None
    noise: float = 2.0
    warmup_epochs: float = 0.0

    def at(self, epochs: float) -> Adversary:
        """The adversary at a moment of the run: a pure function of it.

        During warm-up eps and the step are a share of themselves that grows linearly; so does
        the noise, which is in units of eps.

        Parameters
        ----------
        epochs : float
            Done so far, with fractions: (step + 0.5) / steps per epoch, the middle of the step.
        """
        if epochs >= self.warmup_epochs:
            return self
        share = epochs / self.warmup_epochs
        ball = replace(self.ball, eps=share * self.ball.eps)
        return replace(self, ball=ball, step_size=share * self.step_size)

    def attack(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        loss: LossOfLogits,
        *,
        start: Start,
        index: torch.Tensor,
        key: int,
        epochs: float = math.inf,
    ) -> torch.Tensor:
        """Adversarial images of a batch, the model in evaluation mode meanwhile.

        Parameters
        ----------
        model : Module
        images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
            Left as they are.
        loss : callable
            What is maximised: maps logits of shape (B, K) to losses of shape (B,).
        start : {"uniform", "normal", "none"}
            Where the objective's ascent begins; see `ltd_pipe.attacks.pgd`.
        index : Tensor of shape (B,), dtype int64
            Sample indices.
        key : int
            Of the random starts, from `ltd_pipe.rng.stream_key`.
        epochs : float
            When this is, see `at`; by default after the warm-up.

        Returns
        -------
        Tensor like images
            In [0, 1], and for PGD in the ball.
        """
        now = self.at(epochs)
        with evaluation_mode(model):
            return now._from(now.start or start, model, images, loss, index, key)

    def _from(
        self,
        start: Start,
        model: torch.nn.Module,
        images: torch.Tensor,
        loss: LossOfLogits,
        index: torch.Tensor,
        key: int,
    ) -> torch.Tensor:
        if self.method == "n-fgsm":
            wide = replace(self.ball, eps=self.noise * self.ball.eps)
            noisy = wide.uniform(images, index, key)
            return n_fgsm(model, noisy, loss, ball=self.ball, step_size=self.step_size)
        return pgd(
            model,
            images,
            loss,
            start=begin(start, self.ball, images, index, key),
            ball=self.ball,
            step_size=self.step_size,
            steps=self.steps,
        )
