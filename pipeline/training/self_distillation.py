"""ADR: the student's moving average softens its labels (Wu et al. 2024, arXiv 2305.12118)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pipeline.training import targets

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.objectives import Labels, Moment

__all__ = ["SelfDistillation", "annealed"]


def annealed(ends: tuple[float, float], moment: Moment) -> float:
    """Half a cosine wave from the first step's value towards the value after the last step."""
    first, last = ends
    wave = 0.5 * (1.0 + math.cos(math.pi * moment.step / moment.steps))
    return last + (first - last) * wave


@dataclass(frozen=True)
class SelfDistillation:
    """Answers of the moving average to the clean images, mixed with the truth.

    With p = softmax(average's logits / τ), the target is λ_i · p + (1 - λ_i) · onehot(y), where
    λ_i = clip(λ - (max_k p_k - p_y), 0, 1): equations 3 to 5, as third parties number them.
    Temperature τ and weight λ are annealed over all steps of the run.

    In the authors' code (yuyuwu5/ADR, adr.py and advTrainer.py) the average begins at the
    initial weights with its full decay; ours follows faster in the first steps. Their attack in
    adversarial training opposes this target (`attack_label: target`); TRADES' is as it was.

    Attributes
    ----------
    average : callable
        Gives the moving average as it is now: a model in evaluation mode.
    temperatures : tuple of float
        τ at the first step and after the last one.
    weights : tuple of float
        λ, likewise.
    """

    average: Callable[[], torch.nn.Module]
    temperatures: tuple[float, float]
    weights: tuple[float, float]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, labels: Labels) -> Labels:
        """The labels with these targets."""
        temperature = annealed(self.temperatures, labels.moment)
        weight = annealed(self.weights, labels.moment)
        soft = torch.softmax(self.average()(images).float() / temperature, dim=1)
        truth = labels.truth.argmax(dim=1)
        return replace(labels, target=targets.mixed(soft, truth, weight, rectify=True))
