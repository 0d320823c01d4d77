"""Projected gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from pipeline.attacks.ball import Ball

__all__ = ["LossOfLogits", "input_gradient", "pgd"]

LossOfLogits = Callable[[torch.Tensor], torch.Tensor]


def pgd(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    loss: LossOfLogits,
    *,
    start: torch.Tensor,
    ball: Ball,
    step_size: float,
    steps: int,
) -> torch.Tensor:
    """Maximise a loss over the ball by steepest ascent (Madry et al. 2018, section 2.1).

    Nothing here waits for the device: no value is read back, and no branch depends on one.

    Parameters
    ----------
    model : callable
        Maps images to logits; a module must be in evaluation mode.
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
        Centres of the balls.
    loss : callable
        Maps logits of shape (B, K) to losses of shape (B,).
    start : Tensor like images
        Where the ascent begins; left as it is.
    ball : Ball
    step_size : float
        Length of a step in the ball's norm, pixel units.
    steps : int
        Gradient steps.

    Returns
    -------
    Tensor like images
        Within the ball, if there was a step or the start was, and within [0, 1]; detached.

    Raises
    ------
    ModelError
        When the model is in training mode.
    """
    points = start.detach().clone()
    for _ in range(steps):
        ball.climb_(points, input_gradient(model, points, loss), step_size)
        ball.project_(points, images)
    return points


def input_gradient(
    model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, loss: LossOfLogits
) -> torch.Tensor:
    """Gradient of the sum of losses at some images.

    Parameters
    ----------
    model, loss
        As in `pgd`.
    images : Tensor of shape (B, C, H, W), dtype float32

    Returns
    -------
    Tensor like images

    Raises
    ------
    ModelError
        When the model is in training mode.
    """
    if isinstance(model, torch.nn.Module) and model.training:
        raise ModelError(
            type(model).__name__,
            "is attacked in training mode",
            remedy="Call model.eval(), or attack inside evaluation_mode(model).",
        )
    # autograd.grad on the input alone: loss.backward() would also compute, and add to, the
    # gradients of all weights (42 against 30 images/s for a PGD-10 step of a ResNet-18).
    with torch.enable_grad():
        point = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(point)).sum(), point)
    return gradient
