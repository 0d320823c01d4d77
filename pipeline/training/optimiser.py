"""SGD, and what of the model its weight decay is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pipeline.params import FitParams

__all__ = ["make_optimiser"]


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
