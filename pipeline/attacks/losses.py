"""The margin by which a wrong class wins."""

from __future__ import annotations

import torch


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """max_{k≠y} z_k - z_y, which no scale of the logits can hide (Carlini and Wagner 2017).

    Parameters
    ----------
    logits : Tensor of shape (B, K), dtype float32
    labels : Tensor of shape (B,), dtype int64

    Returns
    -------
    Tensor of shape (B,)
        Positive where the image is classified wrongly.
    """
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(dim=1) - true
