"""Projected gradient descent in the L-infinity or the L2 ball (Madry et al. 2018, section 2.1).

Everything is done per image, in pixel space, and in place where a name ends with `_`. Nothing
waits for the device: no value is read back, and no branch depends on one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ltd_pipe import rng
from ltd_pipe.errors import ModelError

LossOfLogits = Callable[[torch.Tensor], torch.Tensor]
Norm = Literal["linf", "l2"]
Start = Literal["uniform", "normal", "none"]


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
    """Maximise a loss over the ball by steepest ascent.

    Parameters
    ----------
    model : callable
        Maps images to logits; a module must be in evaluation mode, or ModelError is raised.
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
        Centres of the balls.
    loss : callable
        Maps logits of shape (B, K) to losses of shape (B,).
    start : Tensor like images
        Where the ascent begins, see `initial_point`; left as it is.
    ball : Ball
    step_size : float
        Length of a step in the ball's norm, pixel units.
    steps : int
        Gradient steps.

    Returns
    -------
    Tensor like images
        Within the ball, if there was a step or the start was, and within [0, 1]; detached.
    """
    points = start.detach().clone()
    for _ in range(steps):
        ball.step_(points, input_gradient(model, points, loss), step_size)
        ball.project_(points, images)
    return points


def input_gradient(
    model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, loss: LossOfLogits
) -> torch.Tensor:
    """Gradient of the sum of losses at some images; arguments and errors are those of `pgd`."""
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


def initial_point(
    start: Start, ball: Ball, images: torch.Tensor, index: torch.Tensor, key: int
) -> torch.Tensor:
    """Where an attack begins, for each image a pure function of the key and its index.

    uniform: a random point of the ball (Madry et al. 2018); normal: 0.001 · N(0, 1) away (Zhang
    et al. 2019), where the KL divergence from the clean answer has a gradient; none: the image
    itself (Kurakin et al. 2017). The first projection brings a normal start into a small ball.

    Parameters
    ----------
    start : {"uniform", "normal", "none"}
    ball : Ball
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
    index : Tensor of shape (B,), dtype int64
        Sample indices.
    key : int
        From `ltd_pipe.rng.stream_key`.
    """
    if start == "uniform":
        return ball.uniform(images, index, key)
    if start == "normal":
        noise = rng.normal(key, index, tuple(images.shape[1:]))
        return (images + 0.001 * noise).clamp_(0.0, 1.0)
    return images


@dataclass(frozen=True)
class Ball:
    """The threat model: all images within eps of an image, each pixel in [0, 1].

    Attributes
    ----------
    norm : {"linf", "l2"}
        linf: no pixel moves by more than eps; l2: the Euclidean norm over all pixels and
        channels of one image is at most eps.
    eps : float
        Radius, pixel units, not negative; kept to within float32's rounding, 6e-8 per pixel.
    """

    norm: Norm
    eps: float

    def uniform(self, images: torch.Tensor, index: torch.Tensor, key: int) -> torch.Tensor:
        """A random point of the ball around each image; arguments as in `initial_point`."""
        if self.norm == "linf":
            unit = 2.0 * rng.uniform(key, index, tuple(images.shape[1:])) - 1.0
        else:
            # All but two coordinates of a uniform point on the sphere of two more dimensions
            # are uniform in the ball (Voelker et al. 2017), without a power of 1 / dimensions.
            size = math.prod(images.shape[1:])
            noise = rng.normal(key, index, (size + 2,))
            unit = (noise[:, :size] / _length(noise)).reshape(images.shape)
        return (images + self.eps * unit).clamp_(0.0, 1.0)

    def step_(self, points: torch.Tensor, gradient: torch.Tensor, step_size: float) -> torch.Tensor:
        """Move points along the steepest ascent of this norm: the sign, or the unit gradient.

        An image whose gradient is zero stays where it is; otherwise the gradient's scale does
        not matter. The gradient is left as it is: it may be a tensor that the model keeps.
        """
        if self.norm == "linf":
            direction = gradient.sign()
        else:
            # Twice: the squares of a gradient of 1e-25 would be zero in float32.
            direction = gradient / _length(gradient, torch.inf)
            direction.div_(_length(direction))
        return points.add_(direction, alpha=step_size)

    def project_(self, points: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Bring points back into the ball around each image, and into [0, 1]."""
        if self.norm == "linf":
            points.clamp_(images - self.eps, images + self.eps)
        else:
            points.sub_(images)
            points.mul_((self.eps / _length(points)).clamp_(max=1.0)).add_(images)
        # The centre is in [0, 1], so clipping brings every pixel closer to it: what was inside
        # the ball stays inside.
        return points.clamp_(0.0, 1.0)


def _length(rows: torch.Tensor, order: float = 2.0) -> torch.Tensor:
    # Of each row, in a shape that divides the rows; never zero, so that 0 / 0 is 0.
    axes = tuple(range(1, rows.dim()))
    length: torch.Tensor = torch.linalg.vector_norm(rows, ord=order, dim=axes, keepdim=True)
    return length.clamp_(min=torch.finfo(rows.dtype).tiny)
