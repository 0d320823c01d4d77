"""How soft the targets of a run are, and how often they contradict the ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.on_device import LabelsOnDevice
from ltd_pipe.labels.softness import Softness, evenly_spaced, refuse_uniform
from ltd_pipe.training.targets import mixed

if TYPE_CHECKING:
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.params import TrainParams

# What `target_sums` adds up, in its order.
TARGET_SUMS = ("top_probabilities", "entropies", "contradictions")

# Where docs/robustness.md found first signs of harm, and what a sound teacher does not exceed.
_SOFTEST, _MOST_CONTRADICTIONS = 0.85, 0.03
# Softness alone says nothing where the student's logits are divided by the labels' temperature,
# too, or where the objective moves the temperature itself.
SOFTEN_THEMSELVES = ("ard", "mtard")


@dataclass(frozen=True)
class TargetSoftness:
    """What the targets of the training samples are like, as they are trained on.

    Entropy is in nats; contradictions are the share whose largest probability is not on the true
    class; `targets` is how many were measured, one per view of a sample.
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

    def sentence(self) -> str:
        """For the summary of the run."""
        return (
            f"mean top probability of its labels {self.mean_top_probability:.3f}, mean entropy "
            f"{self.mean_entropy:.3f} nats; {self.contradictions:.2%} contradict the ground truth"
        )

    def warnings(self, params: TrainParams) -> list[str]:
        """What may have cost robustness, with where that was measured.

        Rectification is recommended where it can be had and is not.
        """
        found = []
        if self.mean_top_probability <= _SOFTEST and params.objective not in SOFTEN_THEMSELVES:
            found.append(
                f"labels of a mean top probability of {self.mean_top_probability:.2f} are soft, "
                "which may cost robustness"
            )
        if self.contradictions > _MOST_CONTRADICTIONS:
            remedy = "; if the teacher is at fault, 'rectify: true' lowers the weight of these"
            # An attack on what the labels say takes the teacher for right.
            opposed = params.attack_label != "truth"
            without = params.rectify or params.objective == "mtard" or opposed
            found.append(
                f"{self.contradictions:.1%} of the labels contradict the ground truth"
                + ("" if without else remedy)
            )
        return [f"{what}: see docs/robustness.md of ltd-pipe" for what in found]


@torch.no_grad()
def target_sums(target: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """What the targets of a step add up to, by TARGET_SUMS: shape (3,), float32, on the device.

    Target and truth are distributions of shape (B, K); the class of a mixed image is the one with
    most of its truth.
    """
    top, found = target.max(dim=1)
    wrong = found != truth.argmax(dim=1)
    return torch.stack([top.sum(), torch.special.entr(target).sum(), wrong.sum()]).float()


# Enough for three digits of a share; of a thousand classes it takes a second or two.
_MAX_ROWS = 2**16
_BLOCK_ELEMENTS = 2**20
# Of more contradictions no teacher knows what it says.
_MOSTLY = 0.5


def measure_targets(
    params: TrainParams, store: SoftLabels, samples: NDArray[np.int64]
) -> TargetSoftness:
    """Measure the targets that a store gives for the training samples, as they are mixed.

    Of many, evenly spaced ones are measured: 65,536 targets at most.
    """
    chosen = samples[evenly_spaced(len(samples), _MAX_ROWS // store.num_views)]
    labels = LabelsOnDevice(
        store, torch.device("cpu"), temperature=params.label_temperature, resident=False
    )
    softness = Softness(store.num_classes)
    step = max(_BLOCK_ELEMENTS // store.num_classes, 1)
    for view in range(store.num_views):
        for at in range(0, len(chosen), step):
            rows = chosen[at : at + step]
            truth = store.labels[rows]
            # Of unknown class: nothing is mixed in by default, and nothing contradicted.
            classes = torch.from_numpy(truth.astype(np.int64)).clamp(0)
            soft = labels.rows(rows, view=view)
            targets = mixed(soft, classes, params.soft_weight, rectify=params.rectify)
            softness.add(truth, targets.numpy())
    found = softness.summary()
    return TargetSoftness(
        found.mean_top_probability,
        found.mean_entropy,
        found.disagreement or 0.0,
        len(chosen) * store.num_views,
    )


def require_teaching(
    found: TargetSoftness, params: TrainParams, num_classes: int, where: object
) -> None:
    """Refuse targets as good as uniform, or most of which contradict the ground truth.

    Raises
    ------
    StoreError
        Unless `allow_poor_labels` takes them.
    """
    if params.allow_poor_labels:
        return
    allow = "--allow-poor-labels trains on them all the same."
    if params.objective not in SOFTEN_THEMSELVES:
        remedy = (
            "Take the logits at a lower train.label_temperature, or label at --temperature "
            f"auto:0.95. {allow}"
        )
        top = found.mean_top_probability
        refuse_uniform(where, "the targets are", top, num_classes, remedy)
    if found.contradictions > _MOSTLY:
        raise StoreError(
            where,
            "the targets contradict the ground truth",
            expected=f"for at most {_MOSTLY:.0%}",
            found=f"for {found.contradictions:.1%}",
            remedy="Look at the teacher's accuracy, normalisation and order of classes; "
            f"'rectify: true' mixes in the truth. {allow}",
        )
