"""Cross entropy and divergence, of each row, between distributions."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["cross_entropy", "kl_divergence", "kl_from_target"]


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


def kl_from_target(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(q ‖ softmax(logits)), summed over classes; a class without mass costs nothing.

    Parameters
    ----------
    target, logits : Tensor of shape (B, K), dtype float32
        The target's rows are distributions; zeros are allowed.

    Returns
    -------
    Tensor of shape (B,)
    """
    # xlogy(0, 0) is 0: a stored label may have classes that float16 rounded to nothing.
    certainty: torch.Tensor = torch.special.xlogy(target, target).sum(dim=1)
    return certainty + cross_entropy(logits, target)
