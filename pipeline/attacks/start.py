"""Where an attack begins, for each image a pure function of the key and its index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline import rng

if TYPE_CHECKING:
    import torch

    from pipeline.attacks.ball import Ball

__all__ = ["Start", "begin", "normal_start"]

Start = Literal["uniform", "normal", "none"]


def begin(
    start: Start, ball: Ball, images: torch.Tensor, index: torch.Tensor, key: int
) -> torch.Tensor:
    """The points that an attack begins at.

    Parameters
    ----------
    start : {"uniform", "normal", "none"}
        uniform: a random point of the ball (Madry et al. 2018); normal: 0.001 · N(0, 1) away,
        whatever the ball (Zhang et al. 2019), which the first projection brings inside a very
        small one; none: the image itself (Kurakin et al. 2017).
    ball : Ball
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
    index : Tensor of shape (B,), dtype int64
        Sample indices.
    key : int
        From `pipeline.rng.stream_key`.

    Returns
    -------
    Tensor like images
        For none the very images.
    """
    if start == "uniform":
        return ball.uniform(images, index, key)
    return normal_start(images, index, key) if start == "normal" else images


def normal_start(images: torch.Tensor, index: torch.Tensor, key: int) -> torch.Tensor:
    """A point close to each image, 0.001 · N(0, 1) away: where TRADES starts.

    The KL divergence from the clean prediction has no gradient at the image itself.
    """
    noise = rng.normal(key, index, tuple(images.shape[1:]))
    return (images + 0.001 * noise).clamp_(0.0, 1.0)
