"""The learning rate as a pure function of the step."""

from __future__ import annotations

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
    if params.schedule == "one-cycle":
        return peak * _triangle(progress, params.warmup_fraction)
    if params.schedule == "step":
        return peak * 0.1 ** sum(progress >= milestone for milestone in params.milestones)
    return peak


def _triangle(progress: float, top: float) -> float:
    if progress < top:
        return progress / top
    return (1.0 - progress) / (1.0 - top) if top < 1.0 else 1.0
