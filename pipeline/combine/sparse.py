"""The largest probabilities of computed rows, and what is lost by keeping only these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.labels.format import DistanceFacts, StoreAttributes, TopKFacts
from pipeline.labels.topk import largest, total_variation

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Distances", "sparse_rows"]


class Distances:
    """Total variation between dense rows and the sparse ones that stand for them."""

    def __init__(self) -> None:
        self._total, self._worst, self._rows, self._samples = 0.0, 0.0, 0, 0

    def add(self, distance: NDArray[np.float32]) -> None:
        """Take the distances of the next samples, of shape (n,) or (n, V)."""
        self._total += float(distance.sum(dtype=np.float64))
        self._worst = max(self._worst, float(distance.max()))
        self._rows += distance.size
        self._samples += len(distance)

    def noted(self, attributes: StoreAttributes) -> StoreAttributes:
        """The attributes with the distances of all rows."""
        assert attributes.top_k is not None  # noqa: S101
        mean = self._total / self._rows
        known = DistanceFacts.measured(mean, self._worst, self._samples)
        facts = TopKFacts(k=attributes.top_k.k, total_variation=known)
        return attributes.model_copy(update={"top_k": facts})


def sparse_rows(
    soft: NDArray[np.float32], top_k: int, distances: Distances
) -> dict[str, NDArray[Any]]:
    """The arrays of a top-k store for dense rows of shape (n, K) or (n, V, K)."""
    indices, probs = largest(soft, top_k)
    distances.add(total_variation(soft, indices, probs))
    return {"topk_indices": indices, "topk_probs": probs}
