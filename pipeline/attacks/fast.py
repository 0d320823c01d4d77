"""Attacks of one step, for training that costs little more than clean training.

FGSM with a random start (FGSM-RS, Wong et al. 2020, algorithm 3) is PGD of one step of 1.25 eps
from a uniform start, and needs no function of its own. Training against one step can collapse:
see `pipeline.training.alarm`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.attacks.pgd import input_gradient

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pipeline.attacks.ball import Ball
    from pipeline.attacks.pgd import LossOfLogits

__all__ = ["n_fgsm"]


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
        As for `pipeline.attacks.pgd`.
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
