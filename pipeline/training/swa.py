"""Stochastic weight averaging: the equal-weighted mean of the weights at the ends of epochs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier

__all__ = ["EpochAverage"]


class EpochAverage:
    """Mean of the weights at the end of each epoch from one on (Izmailov et al. 2018).

    Batch statistics are averaged as the weights are, where the paper measures them anew: a pass
    over clean images would be the wrong ones for a model that was trained on attacked images.

    Parameters
    ----------
    model : Classifier
        The model in training; it is copied.
    from_epoch : int
        The first epoch whose end counts. Before it the average is the model itself.
    steps_per_epoch : int
    """

    def __init__(self, model: Classifier, from_epoch: int, steps_per_epoch: int) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self._from_epoch, self._steps_per_epoch = from_epoch, steps_per_epoch

    @torch.no_grad()
    def update(self, model: Classifier, step: int) -> None:
        """Take the model in after optimiser step number `step`, when it was an epoch's last."""
        epochs, rest = divmod(step, self._steps_per_epoch)
        if rest:
            return
        before = max(epochs - self._from_epoch - 1, 0)
        averages = self.model.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point() and before:
                averages[name].lerp_(value, 1.0 / (before + 1))
            else:
                averages[name].copy_(value)
