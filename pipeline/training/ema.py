"""The moving average of the weights: the model that is validated and kept."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier

__all__ = ["MovingAverage"]


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
        """Move towards the model's weights after optimiser step number `step`."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages = self.model.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point() and decay:
                averages[name].lerp_(value, 1.0 - decay)
            else:
                averages[name].copy_(value)
