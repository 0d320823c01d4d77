"""The moving average of the weights: the model that is validated and kept."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier

__all__ = ["Average", "MovingAverage"]


class Average(Protocol):
    """Weights that follow the model in training.

    Attributes
    ----------
    model : Classifier
        In evaluation mode; its weights need no gradients.
    """

    model: Classifier

    def update(self, model: Classifier, step: int) -> None:
        """Move towards the model's weights after optimiser step number `step`."""


class MovingAverage:
    """Exponential moving average of all weights and batch statistics.

    Parameters
    ----------
    model : Classifier
        The model in training; it is copied.
    decay : float
        In [0, 1). After n steps the effective decay is min(decay, (1 + n) / (10 + n)), so that
        short runs are not averages of the initial weights. 0 follows the model exactly.
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: Classifier, step: int) -> None:
        """See `Average`."""
        decay = min(self._decay, (1 + step) / (10 + step)) if self._decay else 0.0
        followed, copied = _pairs(self.model, model, averages=decay > 0)
        if followed:
            # One kernel for all weights: a loop would launch hundreds in each step.
            averages, values = map(list, zip(*followed, strict=True))
            torch._foreach_lerp_(averages, values, 1.0 - decay)
        for average, value in copied:
            average.copy_(value)


def _pairs(
    average: Classifier, model: Classifier, *, averages: bool
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Tensors that are averaged, and those that can only be copied, such as counters."""
    theirs = model.state_dict()
    pairs = [(mine, theirs[name]) for name, mine in average.state_dict().items()]
    followed = [pair for pair in pairs if averages and pair[0].is_floating_point()]
    copied = [pair for pair in pairs if not (averages and pair[0].is_floating_point())]
    return followed, copied
