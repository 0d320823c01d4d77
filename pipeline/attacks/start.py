"""Where an attack begins, for each image a pure function of the key and its index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline import rng

if TYPE_CHECKING:
    import torch

__all__ = ["Start", "normal_start", "uniform_start"]

Start = Literal["uniform", "normal"]


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
