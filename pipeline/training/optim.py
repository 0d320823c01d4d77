"""The learning rate as a function of the step, SGD, and averages of the weights."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives import StepInfo
    from ltd_pipe.params import FitParams


def learning_rate(params: FitParams, step: int, steps: int) -> float:
    """Learning rate of a step, a pure function of the steps done before it and in all."""
    peak, warmup = params.learning_rate, params.warmup_fraction
    if warmup is None:
        warmup = 0.25 if params.schedule == "one-cycle" else 0.0
    # The middle of the step, so that neither the first nor the last step has rate 0.
    progress = (step + 0.5) / steps
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


def make_optimiser(
    model: torch.nn.Module, params: FitParams, *, scaled: bool = False
) -> torch.optim.SGD:
    """SGD with momentum over all weights of a model that is on its device.

    `scaled`: a GradScaler leaves out steps whose gradients overflow.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups: list[dict[str, object]] = [{"params": weights, "weight_decay": params.weight_decay}]
    if not params.decay_norms:
        # Scales, shifts and biases are vectors; everything that multiplies features is not.
        groups = [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": params.weight_decay},
            {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        groups,
        lr=params.learning_rate,
        momentum=params.momentum,
        nesterov=params.nesterov,
        # On a GPU the whole step is one kernel. A fused first step that is left out would make
        # momentum of whatever is in memory.
        fused=True if next(model.parameters()).is_cuda and not scaled else None,
    )


class WeightAverage:
    """An average of the weights in training, which is what is validated and kept.

    `ema_decay`: an exponential moving average of all weights and batch statistics; after n steps
    the decay is min(ema_decay, (1 + n) / (10 + n)), so that short runs are not averages of the
    initial weights. `swa_from`: stochastic weight averaging, the mean of the weights at the ends
    of epochs (Izmailov et al. 2018), before its first one the model itself; batch statistics are
    averaged alike, where the paper measures them anew: a pass over clean images would be the
    wrong one for a model that was trained on attacked images. Neither: the model as it is.
    """

    def __init__(self, model: Classifier, params: FitParams) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self._params = params

    @torch.no_grad()
    def update(self, model: Classifier, info: StepInfo) -> None:
        """Move towards the model's weights after an optimiser step."""
        share = self._share_of_new(info)
        if not share:
            return
        new = model.state_dict()
        pairs = [(average, new[name]) for name, average in self.model.state_dict().items()]
        # Counters can only be copied.
        followed = [pair for pair in pairs if share < 1.0 and pair[0].is_floating_point()]
        if followed:
            # One kernel for all weights: a loop would launch hundreds in each step.
            averages, values = map(list, zip(*followed, strict=True))
            torch._foreach_lerp_(averages, values, share)
        for average, value in pairs:
            if not (share < 1.0 and average.is_floating_point()):
                average.copy_(value)

    def _share_of_new(self, info: StepInfo) -> float:
        done = info.step + 1
        if self._params.swa_epoch is not None:
            epochs, rest = divmod(done, info.steps // info.epochs)
            return 0.0 if rest else 1.0 / max(epochs - self._params.swa_epoch, 1)
        if not self._params.ema_decay:
            return 1.0
        return 1.0 - min(self._params.ema_decay, (1 + done) / (10 + done))
