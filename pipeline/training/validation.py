"""How the best checkpoint is chosen: clean and robust accuracy on the validation split."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ltd_pipe import rng
from ltd_pipe.attacks import Ball, Frozen, pgd
from ltd_pipe.device import full_float32
from ltd_pipe.images.manifest import to_unit
from ltd_pipe.params import TrainParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ltd_pipe.distributed import World
    from ltd_pipe.images.stream import ImageStream
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import FitParams
    from ltd_pipe.training.snapshots import Row
    from ltd_pipe.training.trainer import RunContext


def images_at_a_time(params: FitParams, world: World) -> int:
    """Images of a training step in each pass of each process."""
    return -(-params.batch_size // (world.size * params.accumulation_steps))


@full_float32()
def validate(
    model: Classifier,
    stream: ImageStream,
    samples: NDArray[np.int64],
    params: FitParams,
    context: RunContext,
) -> Row:
    """Clean accuracy, and a student's under PGD with the same starts at every epoch.

    The attack is the evaluation's, PGD on the cross entropy with steps of 2.5 · eps / steps from
    a uniform start, at the full eps and whatever the training attack is. It must be another one
    than training's for a collapse of single-step training to be seen. Each process measures its
    share of the samples, as many at a time as a training step does; without any, the row is empty.
    """
    if not len(samples):
        return {}
    student, world = isinstance(params, TrainParams), context.world
    model = Frozen(model).current() if student else model
    hits = torch.zeros(2, dtype=torch.int64, device=stream.device)
    at_a_time = images_at_a_time(params, world)
    for batch in stream.batches(samples[world.rank :: world.size], at_a_time):
        images = to_unit(batch.images)
        with torch.no_grad():
            right = still = model(images).argmax(dim=1) == batch.labels
        if isinstance(params, TrainParams):
            ball, steps = Ball(params.norm, params.eps), params.validation_attack_steps
            key = rng.stream_key(context.seed, "validation-start")
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
                still = model(attacked).argmax(dim=1) == batch.labels
        # An image that is wrong when clean is not robust, whatever the attack did to it. The
        # counts stay on the device, so that no batch waits for the one before.
        hits += torch.stack([right.sum(), (right & still).sum()])
    clean, robust = (count / len(samples) for count in world.sums(*hits.tolist()))
    row = {"validation/clean_accuracy": clean}
    return row | {"validation/robust_accuracy": robust} if student else row
