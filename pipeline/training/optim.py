"""Stochastic weight averaging: the equal-weighted mean of the weights at the ends of epochs."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import FitParams


# --- The learning rate as a pure function of the step.


def learning_rate(params: FitParams, step: int, total: int) -> float:
    """Learning rate of one step.

    Parameters
    ----------
    params : FitParams
        `learning_rate`, `schedule`, `warmup_fraction`, `milestones`.
    step : int
        In [0, total).
    total : int
        Steps of the whole run.

    Returns
    -------
    float
    """
    peak = params.learning_rate
    # The middle of the step, so that neither the first nor the last step has rate 0.
    progress = (step + 0.5) / total
    warmup = _warmup(params)
    if progress < warmup:
        return peak * progress / warmup
    if params.schedule == "one-cycle":
        return peak * ((1.0 - progress) / (1.0 - warmup) if warmup < 1.0 else 1.0)
    if params.schedule == "cosine":
        rest = (progress - warmup) / (1.0 - warmup)
        return peak * 0.5 * (1.0 + math.cos(math.pi * rest))
    if params.schedule == "step":
        return peak * 0.1 ** sum(progress >= milestone for milestone in params.milestones)
    return peak


def _warmup(params: FitParams) -> float:
    if params.warmup_fraction is not None:
        return params.warmup_fraction
    return 0.25 if params.schedule == "one-cycle" else 0.0


# --- SGD, and what of the model its weight decay is for.


def make_optimiser(model: torch.nn.Module, params: FitParams) -> torch.optim.SGD:
    """SGD with momentum over all weights.

    Parameters
    ----------
    model : Module
        On its device: a GPU runs the whole step as one kernel.
    params : FitParams
        `learning_rate`, `momentum`, `nesterov`, `weight_decay`, `decay_norms`.

    Returns
    -------
    SGD
    """
    return torch.optim.SGD(
        _groups(model, params),
        lr=params.learning_rate,
        momentum=params.momentum,
        nesterov=params.nesterov,
        fused=True if next(model.parameters()).is_cuda else None,
    )


def _groups(model: torch.nn.Module, params: FitParams) -> list[dict[str, object]]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if params.decay_norms:
        return [{"params": weights, "weight_decay": params.weight_decay}]
    # Scales, shifts and biases are vectors; everything that multiplies features is not.
    return [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": params.weight_decay},
        {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
    ]


# --- The moving average of the weights: the model that is validated and kept.


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


# --- Stochastic weight averaging: the equal-weighted mean of the weights at the ends of epochs.


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
