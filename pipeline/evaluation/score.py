"""A measured accuracy, with all that it says nothing without."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.accuracy import wilson_interval

if TYPE_CHECKING:
    import torch

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """What stood under one attack.

    Attributes
    ----------
    key : str
        How it is filed, such as `pgd-100x5`.
    name : str
        What people call it, such as `PGD-100 x 5`.
    standing : Tensor of shape (n,), dtype bool
        The images that stayed right.
    facts : dict
        Norm, eps, steps and whatever else decides it; plain values.
    """

    key: str
    name: str
    standing: torch.Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def hits(self) -> int:
        """How many stayed right."""
        return int(self.standing.sum())

    @property
    def accuracy(self) -> float:
        """Their share."""
        return self.hits / len(self.standing)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's at 95 %."""
        return wilson_interval(self.hits, len(self.standing))

    def row(self) -> dict[str, Any]:
        """All of it as plain values."""
        low, high = self.interval
        measured = {"n": len(self.standing), "accuracy": self.accuracy, "low": low, "high": high}
        return {"key": self.key, "name": self.name, **measured, **self.facts}

    def by_class(self, labels: torch.Tensor, number: int) -> dict[str, Any]:
        """The same of one class alone; accuracy is None where it has no images."""
        own = self.standing[labels == number]
        hits, n = int(own.sum()), len(own)
        low, high = wilson_interval(hits, n)
        return {"n": n, "accuracy": hits / n if n else None, "low": low, "high": high}
