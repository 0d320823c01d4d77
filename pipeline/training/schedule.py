"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.params import FitParams

__all__ = ["learning_rate"]


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
