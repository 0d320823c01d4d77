"""The loss around images: along the gradient, and along a random direction.

Where attacks can be believed it is smooth, and the gradient leads up faster than chance does. A
surface that is flat, or rough, along the gradient is what masking looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pipeline import rng
from pipeline.attacks import input_gradient
from pipeline.evaluation.pgd import scaled

if TYPE_CHECKING:
    from pipeline.attacks import Ball
    from pipeline.evaluation.bench import Bench

__all__ = ["Surface", "loss_surface"]

_IMAGES = 16
# Both axes reach two radii to each side: what is beyond the ball shows how the surface goes on.
_REACH, _STEPS = 2.0, 10


@dataclass(frozen=True)
class Surface:
    """The mean cross entropy of some images on a grid around them.

    Attributes
    ----------
    offsets : list of float
        Along both axes, in the ball's norm and pixel units; 0 is the image.
    loss : list of list of float
        `loss[i][j]`: at `offsets[i]` along the gradient and `offsets[j]` along the random
        direction, clipped to [0, 1].
    n : int
        Number of images.
    rises : float
        Share of the images whose loss is higher one radius along their gradient.
    beats_random : float
        Share of the images for which that is higher than one radius along the random direction.
    """

    offsets: list[float]
    loss: list[list[float]]
    n: int
    rises: float
    beats_random: float

    def facts(self) -> dict[str, Any]:
        """Plain values that explain themselves."""
        return {
            "what": "mean cross entropy around images that are right when clean; loss[i][j] is at "
            "offsets[i] along the gradient's direction and offsets[j] along a random one, in "
            "pixel units of the norm",
            "n": self.n,
            "offsets": self.offsets,
            "loss": self.loss,
            "share_whose_loss_rises_along_the_gradient": self.rises,
            "share_where_the_gradient_beats_the_random_direction": self.beats_random,
        }


@torch.no_grad()
def loss_surface(bench: Bench, ball: Ball, right: torch.Tensor) -> Surface:
    """Measure the loss around up to 16 images that are right when clean.

    Parameters
    ----------
    bench : Bench
    ball : Ball
        Its norm decides what a direction is: signs, or a unit vector.
    right : Tensor of shape (n,), dtype bool
        One image at least.
    """
    rows = right.nonzero().flatten()[:_IMAGES]
    images, labels, index = bench.test.take(rows)
    up = _direction(ball, input_gradient(bench.model, images, scaled()(labels)))
    key = rng.stream_key(bench.seed, "loss-surface")
    side = _direction(ball, rng.normal(key, index, tuple(images.shape[1:])))

    def loss(along: float, across: float) -> torch.Tensor:
        at = (images + along * up + across * side).clamp(0.0, 1.0)
        return functional.cross_entropy(bench.model(at).float(), labels, reduction="none")

    offsets = [ball.eps * _REACH * step / _STEPS for step in range(-_STEPS, _STEPS + 1)]
    # NaN and infinity, which a masked model may give, have no place in JSON.
    grid = [
        [float(loss(along, across).mean().nan_to_num()) for across in offsets] for along in offsets
    ]
    here, gradient, random = loss(0.0, 0.0), loss(ball.eps, 0.0), loss(0.0, ball.eps)
    return Surface(
        offsets=offsets,
        loss=grid,
        n=len(rows),
        rises=float((gradient > here).float().mean()),
        beats_random=float((gradient > random).float().mean()),
    )


def _direction(ball: Ball, vectors: torch.Tensor) -> torch.Tensor:
    return ball.climb_(torch.zeros_like(vectors), vectors, 1.0)
