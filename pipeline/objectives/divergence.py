"""Cross entropy and divergence, of each row, between distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    import torch

__all__ = ["cross_entropy", "kl_divergence"]


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """CE(q, softmax(logits)) = -Σ_k q_k log softmax(logits)_k.

    Parameters
    ----------
    logits, target : Tensor of shape (B, K), dtype float32
        The target's rows are distributions.

    Returns
    -------
    Tensor of shape (B,)
    """
    return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1)


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q), summed over classes and not averaged over them.

    Parameters
    ----------
    log_p, log_q : Tensor of shape (B, K), dtype float32
        Log-probabilities.

    Returns
    -------
    Tensor of shape (B,)
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
