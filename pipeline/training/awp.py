"""Adversarial weight perturbation (Wu et al. 2020, section 4): a step against the worst weights.

Before each step the weights go up the loss, each layer by γ of its own norm; the gradient of
the step is taken there, and the perturbation is taken back after it. The authors' code takes
one SGD step on a copy of the model and scales it per layer by ‖w‖ / ‖w_copy - w‖. That ratio is
ascent along the gradient whatever the copy's learning rate, so no copy is needed here.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Perturbation", "perturbed_weights"]

_TINY = 1e-20


@dataclass(frozen=True)
class Perturbation:
    """How the weights are perturbed.

    Attributes
    ----------
    gamma : float
        Length of the perturbation of each weight, relative to the weight's norm.
    from_epoch : int
        The epochs before it are trained without.
    """

    gamma: float
    from_epoch: int


@contextlib.contextmanager
def perturbed_weights(
    model: torch.nn.Module,
    gradients_of: Callable[[list[torch.Tensor]], list[torch.Tensor]],
    gamma: float,
) -> Iterator[None]:
    """Move the weights up a loss for the block.

    Parameters
    ----------
    model : Module
        In training mode. Its batch statistics are left as they were, since the pass over the
        proxy is not a training pass.
    gradients_of : callable
        Gradients of the loss at the model's weights, for the list of weights it is given.
    gamma : float
        Length of the perturbation of each weight, relative to the weight's norm.
    """
    weights: list[torch.Tensor] = [weight for weight in model.parameters() if weight.dim() > 1]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = gradients_of(weights)
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
