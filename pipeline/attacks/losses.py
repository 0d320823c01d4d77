"""Losses of each row of logits, between distributions or by margin: shape (B,) from (B, K)."""

from __future__ import annotations

import torch
from torch.nn import functional


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """CE(q, softmax(logits)) = -Σ_k q_k log softmax(logits)_k; q's rows are distributions."""
    return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1)


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of log-probabilities, summed over classes and not averaged over them."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def kl_from_target(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(q ‖ softmax(logits)), summed over classes; a class without mass costs nothing."""
    # xlogy(0, 0) is 0: a stored label may have classes that float16 rounded to nothing.
    certainty: torch.Tensor = torch.special.xlogy(target, target).sum(dim=1)
    return certainty + cross_entropy(logits, target)


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """max_{k≠y} z_k - z_y, which no scale of the logits can hide (Carlini and Wagner 2017).

    Labels are classes of shape (B,), dtype int64; positive where the image is misclassified.
    """
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(dim=1) - true
