"""Sparse soft labels: the k largest probabilities, the rest spread evenly.

As FKD's marginal smoothing (arXiv 2112.01528, equation 6) and TinyViT's sparse logits
(arXiv 2207.10666, equation 2): q_c = p_c for the k classes that are stored, and
(1 - Σ p) / (K - k) for each other class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["expand", "largest", "spread", "total_variation"]


def largest(
    soft: NDArray[np.floating[Any]], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """The k largest probabilities of each row and their classes.

    Parameters
    ----------
    soft : ndarray of shape (..., K), dtype float32
    k : int
        At most K.

    Returns
    -------
    tuple of ndarray of shape (..., k), dtype int64, and ndarray of shape (..., k), dtype float16
        Classes, and probabilities that fall; of equal ones the lower class comes first.
    """
    import torch

    rows = torch.from_numpy(np.ascontiguousarray(soft))
    classes = _largest_classes(rows, k).sort(dim=-1).values
    probs = rows.gather(-1, classes).to(torch.float16)
    # Stable, and after rounding: the order does not depend on how topk treats equal numbers.
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    return classes.gather(-1, order).numpy(), ranked.numpy()


def _largest_classes(rows: torch.Tensor, k: int) -> torch.Tensor:
    # One more than is kept: which of several equal ones topk takes is left to each machine.
    found = rows.topk(min(k + 1, rows.shape[-1]), dim=-1)
    classes = found.indices[..., :k].contiguous()
    tied = (found.values[..., k:] == found.values[..., k - 1 : k]).any(dim=-1)
    if tied.any():
        ordered = rows[tied].sort(dim=-1, descending=True, stable=True).indices
        classes[tied] = ordered[..., :k]
    return classes


def spread(indices: torch.Tensor, probs: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Rows over all classes, on the device of the arguments.

    Parameters
    ----------
    indices : Tensor of shape (..., k), any integers
        Classes, all different within a row, below num_classes.
    probs : Tensor of shape (..., k), dtype float16 or float32
    num_classes : int
        K.

    Returns
    -------
    Tensor of shape (..., K), dtype float32
        Rows sum to one.
    """
    import torch

    probs = probs.to(torch.float32)
    total = probs.sum(dim=-1, keepdim=True)
    # Rounding to float16 can bring the sum above one.
    others = (1.0 - total).clamp(min=0.0) / max(num_classes - probs.shape[-1], 1)
    rows = others.expand(*probs.shape[:-1], num_classes).clone()
    rows.scatter_(-1, indices.to(torch.int64), probs)
    return rows / rows.sum(dim=-1, keepdim=True)


def expand(
    indices: NDArray[np.integer[Any]], probs: NDArray[np.floating[Any]], num_classes: int
) -> NDArray[np.float32]:
    """`spread` for arrays: float32 rows of shape (..., K) that sum to one."""
    import torch

    classes = torch.from_numpy(indices.astype(np.int64))
    # Copied, since torch warns of memory that must not be written to.
    rows: NDArray[np.float32] = spread(
        classes, torch.from_numpy(np.array(probs)), num_classes
    ).numpy()
    return rows


def total_variation(
    soft: NDArray[np.float32], indices: NDArray[np.integer[Any]], probs: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Half the sum of the absolute differences between dense rows and what stands for them.

    Parameters
    ----------
    soft : ndarray of shape (..., K), dtype float32
    indices, probs : ndarray of shape (..., k)

    Returns
    -------
    ndarray of shape (...,), dtype float32
        In [0, 1].
    """
    difference = expand(indices, probs, soft.shape[-1])
    difference -= soft
    np.abs(difference, out=difference)
    distance: NDArray[np.float32] = 0.5 * difference.sum(axis=-1)
    return np.clip(distance, 0.0, 1.0)
