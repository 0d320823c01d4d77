"""Projected gradient descent in the L-infinity ball, in pixel space [0, 1].

One attack serves training, validation and evaluation; what is maximised is an argument. The
model is attacked in evaluation mode, so that the result for one image does not depend on the
others in its batch.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from pipeline import rng
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    LossOfLogits = Callable[[torch.Tensor], torch.Tensor]

__all__ = ["evaluation_mode", "normal_start", "pgd", "uniform_start"]


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for the block, then back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def uniform_start(images: torch.Tensor, index: torch.Tensor, eps: float, key: int) -> torch.Tensor:
    """A random point of the ball around each image (Madry et al. 2018).

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
    index : Tensor of shape (B,), dtype int64
        Sample indices; each sample's start is a pure function of (key, index).
    eps : float
        Radius in pixel units.
    key : int
        From `pipeline.rng.stream_key`.

    Returns
    -------
    Tensor like images
    """
    noise = rng.uniform(key, index, tuple(images.shape[1:]))
    return (images + eps * (2.0 * noise - 1.0)).clamp_(0.0, 1.0)


def normal_start(images: torch.Tensor, index: torch.Tensor, key: int) -> torch.Tensor:
    """A point close to each image, 0.001 · N(0, 1) away: where TRADES starts.

    The KL divergence from the clean prediction has no gradient at the image itself.
    """
    noise = rng.normal(key, index, tuple(images.shape[1:]))
    return (images + 0.001 * noise).clamp_(0.0, 1.0)


def pgd(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    loss: LossOfLogits,
    *,
    start: torch.Tensor,
    eps: float,
    step_size: float,
    steps: int,
) -> torch.Tensor:
    """Maximise a loss over the ball by signed gradient steps (Madry et al. 2018, section 2.1).

    Parameters
    ----------
    model : callable
        Maps images to logits; a module must be in evaluation mode.
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
        Centres of the balls.
    loss : callable
        Maps logits of shape (B, K) to losses of shape (B,).
    start : Tensor like images
        Where the ascent begins, within the ball.
    eps, step_size : float
        Pixel units.
    steps : int
        Gradient steps.

    Returns
    -------
    Tensor like images
        Within eps of the images and within [0, 1]; detached.

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
    low, high = (images - eps).clamp_(min=0.0), (images + eps).clamp_(max=1.0)
    adversarial = start.detach()
    for _ in range(steps):
        gradient = _input_gradient(model, adversarial, loss)
        adversarial = torch.clamp(adversarial + step_size * gradient.sign(), low, high)
    return adversarial


def _input_gradient(
    model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, loss: LossOfLogits
) -> torch.Tensor:
    # autograd.grad on the input alone: loss.backward() would also compute, and add to, the
    # gradients of all weights (42 against 30 images/s for a PGD-10 step of a ResNet-18).
    with torch.enable_grad():
        point = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(point)).sum(), point)
    return gradient
