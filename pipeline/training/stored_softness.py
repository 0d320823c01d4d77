"""How soft the targets are that a store gives, measured before the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.labels.resident import LabelsOnDevice
from pipeline.labels.softness import Softness
from pipeline.training import targets
from pipeline.training.target_softness import TargetSoftness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.labels.read import SoftLabels
    from pipeline.params import TrainParams

__all__ = ["measure_targets"]

# Enough for three digits of a share; of a thousand classes it takes a second or two.
_MAX_ROWS = 2**16
_BLOCK_ELEMENTS = 2**20


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


def _evenly_spaced(samples: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    count = max(min(len(samples), most), 1)
    return samples[np.arange(count) * len(samples) // count]
