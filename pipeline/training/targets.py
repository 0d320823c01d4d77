"""The distribution that each image is trained towards."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["mixed", "onehot", "rectified_weight", "smoothed"]


def onehot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """All mass on the true class: shape (B, K), dtype float32, from labels of shape (B,)."""
    return functional.one_hot(labels, num_classes).to(torch.float32)


def smoothed(labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """`smoothing` of the mass moved from the true class to all classes evenly.

    Szegedy et al. 2016, section 7: q = (1 - s) · onehot + s / K. Shape (B, K), float32.
    """
    return onehot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def rectified_weight(soft: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
    """Weight of each soft label, lowered where it contradicts the ground truth.

    λ_i = clip(λ - (max_k q_k - q_y), 0, 1), as in ADR (arXiv 2305.12118; yuyuwu5/ADR, adr.py): a
    teacher that puts more mass on another class loses that much of its weight.

    Parameters
    ----------
    soft : Tensor of shape (B, K), dtype float32
    labels : Tensor of shape (B,), dtype int64
    weight : float
        λ in [0, 1].

    Returns
    -------
    Tensor of shape (B,), dtype float32
    """
    true = soft.gather(1, labels[:, None]).squeeze(1)
    return (weight - (soft.amax(dim=1) - true)).clamp(0.0, 1.0)


def mixed(
    soft: torch.Tensor, labels: torch.Tensor, weight: float, *, rectify: bool
) -> torch.Tensor:
    """Soft labels and one-hot labels, weighted.

    Parameters
    ----------
    soft : Tensor of shape (B, K), dtype float32
        Rows are distributions.
    labels : Tensor of shape (B,), dtype int64
    weight : float
        Of the soft label, in [0, 1]; the rest is one-hot.
    rectify : bool
        Lower the weight per sample, see `rectified_weight`.

    Returns
    -------
    Tensor of shape (B, K), dtype float32
    """
    hard = onehot(labels, soft.shape[1])
    if not rectify:
        return weight * soft + (1.0 - weight) * hard
    share = rectified_weight(soft, labels, weight)[:, None]
    return share * soft + (1.0 - share) * hard
