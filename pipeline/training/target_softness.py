"""How soft the targets of a run are, and how often they contradict the ground truth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.params import TrainParams

__all__ = ["SOFTEN_THEMSELVES", "TARGET_SUMS", "TargetSoftness", "target_sums"]

# What `target_sums` adds up, in its order.
TARGET_SUMS = ("top_probabilities", "entropies", "contradictions")

# Where docs/robustness.md found first signs of harm, and what a sound teacher does not exceed.
_SOFTEST, _MOST_CONTRADICTIONS = 0.85, 0.03
# Objectives of which softness alone says nothing, see `TargetSoftness.warnings`.
SOFTEN_THEMSELVES = ("ard", "mtard")


@dataclass(frozen=True)
class TargetSoftness:
    """What the targets of the training samples are like, as they are trained on.

    Attributes
    ----------
    mean_top_probability : float
    mean_entropy : float
        In nats.
    contradictions : float
        Share whose largest probability is not on the true class.
    targets : int
        How many were measured; a sample has one per view.
    """

    mean_top_probability: float
    mean_entropy: float
    contradictions: float
    targets: int

    @classmethod
    def of_sums(cls, sums: Mapping[str, float], targets: int) -> TargetSoftness:
        """From what `target_sums` of so many targets add up to, by the names of TARGET_SUMS."""
        top, entropy, contradictions = (sums[name] / targets for name in TARGET_SUMS)
        return cls(top, entropy, contradictions, targets)

    @property
    def facts(self) -> dict[str, float]:
        """Plain values, for the student's checkpoint."""
        return asdict(self)

    def sentence(self) -> str:
        """For the summary of the run."""
        return (
            f"mean top probability of its labels {self.mean_top_probability:.3f}, mean entropy "
            f"{self.mean_entropy:.3f} nats; {self.contradictions:.2%} contradict the ground truth"
        )

    def warnings(self, params: TrainParams) -> list[str]:
        """What may have cost robustness, with where that was measured.

        Parameters
        ----------
        params : TrainParams
            Of the run. Softness alone says nothing where the student's logits are divided by the
            labels' temperature, too (ARD), or where the objective moves the temperature itself
            (B-MTARD). Rectification is recommended where it can be had and is not.
        """
        found = []
        if self.mean_top_probability <= _SOFTEST and params.objective not in SOFTEN_THEMSELVES:
            found.append(
                f"labels of a mean top probability of {self.mean_top_probability:.2f} are soft, "
                "which may cost robustness"
            )
        if self.contradictions > _MOST_CONTRADICTIONS:
            remedy = "; 'rectify: true' lowers the weight of these"
            without = params.rectify or params.objective == "mtard"
            found.append(
                f"{self.contradictions:.1%} of the labels contradict the ground truth"
                + ("" if without else remedy)
            )
        return [f"{what}: see docs/robustness.md" for what in found]


@torch.no_grad()
def target_sums(target: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """What the targets of a step add up to; stays on the device.

    Parameters
    ----------
    target, truth : Tensor of shape (B, K), dtype float32
        Rows are distributions; the truth of a mixed image is the class with most of it.

    Returns
    -------
    Tensor of shape (3,), dtype float32
        Sums over the rows: of the largest probability, of the entropy in nats, and of whether
        the largest probability is not on the true class.
    """
    top, found = target.max(dim=1)
    wrong = found != truth.argmax(dim=1)
    return torch.stack([top.sum(), torch.special.entr(target).sum(), wrong.sum()]).float()
