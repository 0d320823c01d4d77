"""The student: adversarial training on one-hot, smoothed or the teacher's soft labels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pipeline import rng
from pipeline.attacks import Adversary, Ball, Frozen, pgd
from pipeline.images.pixels import to_unit
from pipeline.team import Team
from pipeline.training import targets
from pipeline.training.alarm import Alarm
from pipeline.training.awp import Perturbation
from pipeline.training.examples import fresh_examples
from pipeline.training.loop import Fit
from pipeline.training.objective import Ingredients, choose_objective
from pipeline.training.stored_examples import stored_examples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.images.stream import ImageStream
    from pipeline.labels.read import SoftLabels
    from pipeline.models.classifier import Classifier
    from pipeline.params import TrainParams
    from pipeline.training.examples import Examples
    from pipeline.training.live_teacher import LiveTeacher
    from pipeline.training.passes import Passes
    from pipeline.training.state import Snapshots

__all__ = [
    "student_examples",
    "student_fit",
    "threat_model",
    "training_adversary",
    "validate_robustness",
]


def student_examples(
    params: TrainParams,
    num_classes: int,
    store: SoftLabels | None,
    data: str,
    device: torch.device,
    seed: int,
) -> Examples:
    """What the student learns from: images with their target distributions.

    A teacher in the run, for the kinds `live` and `adr`, replaces them later by its own.

    Parameters
    ----------
    params : TrainParams
        `label_kind` and what belongs to it; the augmentation.
    num_classes : int
        K.
    store : SoftLabels or None
        Needed for kind `ltd`, unless labels weigh nothing. Each batch's sample hashes are
        checked against the store's before its rows are used.
    data : str
        How the user knows the images, for the error.
    device : torch.device
        Where batches are.
    seed : int
        The run's.

    Raises
    ------
    JoinError
        When the store's labels belong to other views than the parameters ask for.
    """
    if params.reads_store:
        if store is None:
            raise ValueError("label_kind 'ltd' needs a store")
        return stored_examples(params, store, data, device, seed)
    smoothing = params.smoothing if params.label_kind == "smooth" else 0.0
    return fresh_examples(
        params,
        seed,
        lambda batch: targets.smoothed(batch.labels, num_classes, smoothing),
    )


def validate_robustness(
    model: Classifier,
    stream: ImageStream,
    samples: NDArray[np.int64],
    params: TrainParams,
    seed: int,
    team: Team,
) -> dict[str, float]:
    """Clean and PGD accuracy on the validation split, with the same starts at every epoch.

    The attack is the evaluation's, PGD on the cross entropy with steps of 2.5 · eps / steps from
    a uniform start, at the full eps and whatever the training attack is. It must be another one
    than training's for a collapse of single-step training to be seen. Each process of the team
    measures its share of the samples.

    Returns
    -------
    dict
        `validation/clean_accuracy` and `validation/robust_accuracy`; empty without samples.
    """
    if not len(samples):
        return {}
    model = Frozen(model).current()
    key, ball = rng.stream_key(seed, "validation-start"), Ball(params.norm, params.eps)
    steps = params.validation_attack_steps
    hits = torch.zeros(2, dtype=torch.int64, device=stream.device)
    for batch in stream.batches(samples[team.rank :: team.count], params.batch_size):
        images = to_unit(batch.images)
        attacked = pgd(
            model,
            images,
            partial(functional.cross_entropy, target=batch.labels, reduction="none"),
            start=ball.uniform(images, batch.index, key),
            ball=ball,
            step_size=2.5 * ball.eps / steps,
            steps=steps,
        )
        with torch.no_grad():
            right = model(images).argmax(dim=1) == batch.labels
            still = model(attacked).argmax(dim=1) == batch.labels
        # An image that is wrong when clean is not robust, whatever the attack did to it. The
        # counts stay on the device, so that no batch waits for the one before.
        hits += torch.stack([right.sum(), (right & still).sum()])
    clean, robust = team.totals(*hits.tolist())
    return {
        "validation/clean_accuracy": clean / len(samples),
        "validation/robust_accuracy": robust / len(samples),
    }


def training_adversary(params: TrainParams) -> Adversary:
    """The attack that the student is trained against."""
    return Adversary(
        Ball(params.norm, params.eps),
        params.step,
        params.steps,
        # FGSM-RS is PGD of one step, from a uniform start whatever the objective.
        method="n-fgsm" if params.attack == "n-fgsm" else "pgd",
        start="uniform" if params.attack == "fgsm-rs" else params.attack_start,
        noise=params.attack_noise,
        warmup_epochs=params.eps_warmup_epochs,
    )


def threat_model(params: TrainParams) -> dict[str, Any]:
    """What the student is trained to withstand, and how: for its checkpoint's facts.

    Returns
    -------
    dict
        `norm` and `eps`, and the training attack's `name`, `steps` and `step_size` as they were
        decided where the parameters leave them open. Pixel units.
    """
    return {
        "norm": params.norm,
        "eps": params.eps,
        "attack": {"name": params.attack, "steps": params.steps, "step_size": params.step},
    }


def student_fit(
    model: Classifier,
    stream: ImageStream,
    training: NDArray[np.int64],
    validation: NDArray[np.int64],
    params: TrainParams,
    *,
    examples: Examples,
    snapshots: Snapshots,
    seed: int,
    passes: Passes,
    teacher: LiveTeacher | None = None,
    team: Team | None = None,
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
    examples : Examples
        From `student_examples`.
    snapshots : Snapshots
    seed : int
    passes : Passes
        How the training passes are computed; validation is always float32.
    teacher : LiveTeacher, optional
        Needed where the parameters ask a teacher in the run.
    team : Team, optional
        Processes that train together.

    Returns
    -------
    Fit

    Raises
    ------
    ModelError, ParamsError
        When the network has not the exits that are to be trained.
    """
    team = team or Team()
    if teacher is not None:
        teacher = teacher.placed(stream.device, channels_last=passes.channels_last)
    # The average is the run's own, which exists once the run is put together.
    ingredients = Ingredients(model, lambda: fit.average.model, teacher)
    fit = Fit(
        model=model,
        stream=stream,
        samples=training,
        params=params,
        objective=choose_objective(params, ingredients),
        examples=examples,
        adversary=training_adversary(params),
        validate=lambda candidate: validate_robustness(
            candidate, stream, validation, params, seed, team
        ),
        select=lambda row: (
            row.get("validation/robust_accuracy", 0.0),
            row.get("validation/clean_accuracy", 0.0),
        ),
        snapshots=snapshots,
        seed=seed,
        passes=passes,
        validate_every=params.validation_every,
        awp=Perturbation(params.awp_gamma, params.awp_from_epoch) if params.awp_gamma else None,
        team=team,
        alarm=_alarm(params, len(validation)),
    )
    return fit


def _alarm(params: TrainParams, images: int) -> Alarm | None:
    if params.overfitting_alarm == "off":
        return None
    return Alarm(images, params.eps_warmup_epochs, stops=params.overfitting_alarm == "stop")
