"""How soft the targets are that a store gives, measured before the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import StoreError
from pipeline.labels.resident import LabelsOnDevice
from pipeline.labels.softness import Softness, uniform_below
from pipeline.training import targets
from pipeline.training.target_softness import SOFTEN_THEMSELVES, TargetSoftness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.labels.read import SoftLabels
    from pipeline.params import TrainParams

__all__ = ["measure_targets", "require_teaching"]

# Enough for three digits of a share; of a thousand classes it takes a second or two.
_MAX_ROWS = 2**16
_BLOCK_ELEMENTS = 2**20
# Of more contradictions no teacher knows what it says.
_MOSTLY = 0.5


def measure_targets(
    params: TrainParams, store: SoftLabels, samples: NDArray[np.int64]
) -> TargetSoftness:
    """Measure the targets that a store gives for the training samples.

    Temperature, mixing with one-hot labels and rectification are taken into account.

    Parameters
    ----------
    params : TrainParams
    store : SoftLabels
    samples : ndarray of shape (N,), dtype int64
        Trained on. Of many, evenly spaced ones are measured: 65,536 targets at most.
    """
    chosen = _evenly_spaced(samples, _MAX_ROWS // store.num_views)
    labels = LabelsOnDevice(
        store, torch.device("cpu"), temperature=params.label_temperature, resident=False
    )
    softness = Softness(store.num_classes)
    step = max(_BLOCK_ELEMENTS // store.num_classes, 1)
    for view in range(store.num_views):
        for at in range(0, len(chosen), step):
            rows = chosen[at : at + step]
            truth = store.labels[rows]
            mixed = targets.mixed(
                labels.rows(rows, view=view),
                # Of unknown class: nothing is mixed in by default, and nothing contradicted.
                torch.from_numpy(truth.astype(np.int64)).clamp(0),
                params.soft_weight,
                rectify=params.rectify,
            )
            softness.add(truth, mixed.numpy())
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

    Parameters
    ----------
    found : TargetSoftness
    params : TrainParams
        Of the run; `allow_poor_labels` takes them.
    num_classes : int
    where : object
        The store, for the error.

    Raises
    ------
    StoreError
    """
    if params.allow_poor_labels:
        return
    allow = "--allow-poor-labels trains on them all the same."
    limit = uniform_below(num_classes)
    if found.mean_top_probability < limit and params.objective not in SOFTEN_THEMSELVES:
        raise StoreError(
            where,
            "the targets are as good as uniform: mean top probability",
            expected=f"{limit:.3g} or more",
            found=f"{found.mean_top_probability:.3g}",
            remedy="Take the logits at a lower train.label_temperature, or label at "
            f"--temperature auto:0.95. {allow}",
        )
    if found.contradictions > _MOSTLY:
        raise StoreError(
            where,
            "the targets contradict the ground truth",
            expected=f"for at most {_MOSTLY:.0%}",
            found=f"for {found.contradictions:.1%}",
            remedy="Look at the teacher's accuracy, normalisation and order of classes; "
            f"'rectify: true' mixes in the truth. {allow}",
        )


def _evenly_spaced(samples: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    count = max(min(len(samples), most), 1)
    return samples[np.arange(count) * len(samples) // count]
