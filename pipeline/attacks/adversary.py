"""The attack of the training steps: PGD, or one step that costs little more than clean training.

FGSM with a random start (FGSM-RS, Wong et al. 2020, algorithm 3) is PGD of one step of 1.25 eps
from a uniform start. Training against one step can collapse: see `ltd_pipe.training.collapse`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ltd_pipe.attacks.pgd import initial_point, input_gradient, pgd
from ltd_pipe.device import evaluation_mode

if TYPE_CHECKING:
    import torch

    from ltd_pipe.attacks.pgd import Ball, LossOfLogits, Start


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
        n-fgsm (de Jorge et al. 2022) takes one step from noise that is uniform within `noise`
        balls. Nothing brings the point back into the ball, which is the method's point: it is
        within noise · eps + step_size of the image, and in [0, 1].
    start : {"uniform", "normal", "none"}, optional
        Where PGD begins; by default where the objective says.
    noise : float
        n-fgsm: in units of eps.
    warmup_epochs : float
        Over which eps and the step grow from 0.
    steps_by_epoch : tuple of int
        What `at` takes in place of `steps`; empty: that of each epoch.
    loss_scale : float
        Float16 has no gradients below 6e-8: scaled ones keep their signs.
    """

    ball: Ball
    step_size: float
    steps: int
    method: Literal["pgd", "n-fgsm"] = "pgd"
    start: Start | None = None
    noise: float = 2.0
    warmup_epochs: float = 0.0
    steps_by_epoch: tuple[int, ...] = ()
    loss_scale: float = 1.0

    def at(self, epochs: float) -> Adversary:
        """The adversary after so many epochs, with fractions, before the run's end.

        In warm-up, eps and the step grow linearly.
        """
        now = self
        if self.steps_by_epoch:
            now = replace(self, steps=self.steps_by_epoch[int(epochs)])
        if epochs >= self.warmup_epochs:
            return now
        share = epochs / self.warmup_epochs
        ball = replace(self.ball, eps=share * self.ball.eps)
        return replace(now, ball=ball, step_size=share * self.step_size)

    def attack(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        loss: LossOfLogits,
        *,
        start: Start,
        index: torch.Tensor,
        key: int,
        points: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Adversarial images of a batch, the model in evaluation mode meanwhile.

        Parameters
        ----------
        model, images, loss
            As for `pgd`.
        start : {"uniform", "normal", "none"}
            Where the objective's ascent begins.
        index : Tensor of shape (B,), dtype int64
            Sample indices.
        key : int
            Of the random starts, from `ltd_pipe.rng.stream_key`.
        points : Tensor like images, optional
            Where PGD begins, in place of a start of its own.
        """

        def scaled(logits: torch.Tensor) -> torch.Tensor:
            return loss(logits) if self.loss_scale == 1.0 else self.loss_scale * loss(logits)

        with evaluation_mode(model):
            if self.method == "n-fgsm":
                wide = replace(self.ball, eps=self.noise * self.ball.eps)
                points = wide.uniform(images, index, key)
                self.ball.step_(points, input_gradient(model, points, scaled), self.step_size)
                return points.clamp_(0.0, 1.0)
            if points is None:
                points = initial_point(self.start or start, self.ball, images, index, key)
            return pgd(
                model,
                images,
                scaled,
                start=points,
                ball=self.ball,
                step_size=self.step_size,
                steps=self.steps,
            )
