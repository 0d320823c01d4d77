"""Adversarial weight perturbation (Wu et al. 2020, section 4): a step against the worst weights.

Before each step the weights go up the loss, each layer by γ of its own norm; the gradient of
the step is taken there, and the perturbation is taken back after it. The authors' code takes
one SGD step on a copy of the model and scales it per layer by ‖w‖ / ‖w_copy - w‖. That ratio is
ascent along the gradient whatever the copy's learning rate, so no copy is needed here.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["perturbed_weights"]

_TINY = 1e-20


@contextlib.contextmanager
def perturbed_weights(
    model: torch.nn.Module, loss: Callable[[], torch.Tensor], gamma: float
) -> Iterator[None]:
    """Move the weights up a loss for the block.

    Parameters
    ----------
    model : Module
        In training mode. Its batch statistics are left as they were, since the pass over the
        proxy is not a training pass.
    loss : callable
        Computes the loss at the model's weights.
    gamma : float
        Length of the perturbation of each weight, relative to the weight's norm.
    """
    weights = [weight for weight in model.parameters() if weight.dim() > 1]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = torch.autograd.grad(loss(), weights)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
        moves = [
            gamma * weight.norm() / (gradient.norm() + _TINY) * gradient
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        for weight, move in zip(weights, moves, strict=True):
            weight.add_(move)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, move in zip(weights, moves, strict=True):
                weight.sub_(move)
