"""The student: adversarial training on one-hot, smoothed or the teacher's soft labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline import objectives, rng
from pipeline.attacks import pgd, uniform_start
from pipeline.errors import JoinError
from pipeline.images.pixels import to_unit
from pipeline.labels.resident import LabelsOnDevice
from pipeline.objectives import cross_entropy
from pipeline.training import targets
from pipeline.training.loop import Adversary, Fit, Perturbation

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.device import Precision
    from pipeline.images.stream import Batch, ImageStream
    from pipeline.labels.read import SoftLabels
    from pipeline.models.classifier import Classifier
    from pipeline.objectives import Objective
    from pipeline.params import TrainParams
    from pipeline.training.state import Snapshots

    TargetOf = Callable[[Batch], torch.Tensor]

__all__ = ["student_fit", "target_function", "validate_robustness"]


def target_function(
    params: TrainParams,
    num_classes: int,
    store: SoftLabels | None,
    data: str,
    device: torch.device,
) -> TargetOf:
    """What maps a batch to its target distributions.

    Parameters
    ----------
    params : TrainParams
        `label_kind` and what belongs to it.
    num_classes : int
        K.
    store : SoftLabels or None
        Needed for kind `ltd`. Each batch's sample hashes are checked against the store's
        before its rows are used.
    data : str
        How the user knows the images, for the error.
    device : torch.device
        Where batches are.

    Returns
    -------
    callable
        From Batch to Tensor of shape (B, K), float32; it raises JoinError at the first sample
        whose label belongs to another image.
    """
    if params.label_kind == "onehot":
        return lambda batch: targets.onehot(batch.labels, num_classes)
    if params.label_kind == "smooth":
        return lambda batch: targets.smoothed(batch.labels, num_classes, params.smoothing)
    if store is None:
        raise ValueError("label_kind 'ltd' needs a store")
    _require_plain_images(store)
    labels = LabelsOnDevice(store, device, temperature=params.label_temperature)

    def joined(batch: Batch) -> torch.Tensor:
        store.join(batch.rows, batch.sample_hash, data)
        soft = labels.rows(batch.rows)
        return targets.mixed(soft, batch.labels, params.soft_weight, rectify=params.rectify)

    return joined


def _require_plain_images(store: SoftLabels) -> None:
    # The label of an augmented view belongs to that view alone.
    augmentation = store.attributes.views.augmentation
    if augmentation is not None:
        raise JoinError(
            store.path,
            f"these are labels of augmented views ({augmentation})",
            remedy="Training reads labels of the images as they are.",
        )


def validate_robustness(
    model: Classifier,
    stream: ImageStream,
    samples: NDArray[np.int64],
    params: TrainParams,
    seed: int,
) -> dict[str, float]:
    """Clean and PGD accuracy on the validation split, with the same starts at every epoch.

    Returns
    -------
    dict
        `validation/clean_accuracy` and `validation/robust_accuracy`; empty without samples.
    """
    if not len(samples):
        return {}
    clean = robust = 0
    key = rng.stream_key(seed, "validation-start")
    for batch in stream.batches(samples, params.batch_size):
        images = to_unit(batch.images)
        onehot = targets.onehot(batch.labels, model.num_classes)
        attacked = pgd(
            model,
            images,
            lambda logits, onehot=onehot: cross_entropy(logits, onehot),  # type: ignore[misc]
            start=uniform_start(images, batch.index, params.eps, key),
            eps=params.eps,
            step_size=params.step_size,
            steps=params.validation_attack_steps,
        )
        with torch.no_grad():
            right = model(images).argmax(dim=1) == batch.labels
            still = model(attacked).argmax(dim=1) == batch.labels
        clean += int(right.sum())
        # An image that is wrong when clean is not robust, whatever the attack did to it.
        robust += int((right & still).sum())
    total = len(samples)
    return {
        "validation/clean_accuracy": clean / total,
        "validation/robust_accuracy": robust / total,
    }


def _objective(params: TrainParams) -> Objective:
    if params.objective == "trades":
        return objectives.Trades(params.beta)
    if params.objective == "mart":
        return objectives.Mart(params.beta)
    return objectives.Madry(params.attack_label)


def student_fit(
    model: Classifier,
    stream: ImageStream,
    training: NDArray[np.int64],
    validation: NDArray[np.int64],
    params: TrainParams,
    *,
    target_of: TargetOf,
    snapshots: Snapshots,
    seed: int,
    precision: Precision,
) -> Fit:
    """Put together the student's run; the best checkpoint has the highest robust accuracy.

    Parameters
    ----------
    model : Classifier
        Freshly initialised, on its device, with the student's temperature.
    stream : ImageStream
        Over the training images.
    training, validation : ndarray of shape (N,), dtype int64
        Disjoint sample indices.
    params : TrainParams
    target_of : callable
        From `target_function`.
    snapshots : Snapshots
    seed : int
    precision : str
        Of the training passes; validation is always float32.

    Returns
    -------
    Fit
    """
    return Fit(
        model=model,
        stream=stream,
        samples=training,
        params=params,
        objective=_objective(params),
        target_of=target_of,
        adversary=Adversary(params.eps, params.step_size, params.attack_steps),
        validate=lambda candidate: validate_robustness(candidate, stream, validation, params, seed),
        select=lambda row: (
            row.get("validation/robust_accuracy", 0.0),
            row.get("validation/clean_accuracy", 0.0),
        ),
        snapshots=snapshots,
        seed=seed,
        precision=precision,
        validate_every=params.validation_every,
        awp=Perturbation(params.awp_gamma, params.awp_from_epoch) if params.awp_gamma else None,
    )
