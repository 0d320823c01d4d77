"""The one training loop: the teacher's and the student's, whatever the labels and objective."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline import rng
from pipeline.device import autocast
from pipeline.errors import ModelError
from pipeline.images.pixels import to_unit
from pipeline.objectives import Labels
from pipeline.training.awp import perturbed_weights
from pipeline.training.ema import MovingAverage
from pipeline.training.interrupt import Interrupted, listen
from pipeline.training.schedule import learning_rate
from pipeline.training.state import Progress
from pipeline.training.targets import onehot

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.attacks import Adversary
    from pipeline.device import Precision
    from pipeline.images.stream import Batch, ImageStream
    from pipeline.models.classifier import Classifier
    from pipeline.objectives import Loss, Objective
    from pipeline.params import FitParams
    from pipeline.training.examples import Examples
    from pipeline.training.state import Snapshots

__all__ = ["Fit", "Perturbation", "Watcher"]


@dataclass(frozen=True)
class Perturbation:
    """Of the weights; see `pipeline.training.awp`.

    Attributes
    ----------
    gamma : float
        Relative to each weight's norm.
    from_epoch : int
        The epochs before it are trained without.
    """

    gamma: float
    from_epoch: int


class Watcher:
    """What the loop tells while it runs; a stage overrides what it shows."""

    def step(self, done: int, total: int, loss: float, accuracy: float, rate: float) -> None:
        """After a step: steps done and in all, mean loss and accuracy so far, images/s."""

    def epoch(self, history: list[dict[str, float]]) -> None:
        """After an epoch: one row per epoch so far."""


class Fit:
    """One training run: from an initial model to its best and its last weights.

    Parameters
    ----------
    model : Classifier
        On its device.
    stream : ImageStream
        The training images.
    samples : ndarray of shape (N,), dtype int64
        Which of them are trained on; the validation split is not among them.
    params : FitParams
    objective : Objective
    examples : Examples
        Augments a batch and gives the targets that belong to its images.
    adversary : Adversary or None
        None for clean training.
    validate : callable
        Maps a Classifier in evaluation mode to a dict of measures; the largest
        (`select` of them) is the best checkpoint.
    select : callable
        Maps a row of measures to what is compared.
    snapshots : Snapshots
    seed : int
    precision : str
        `float32` or `bfloat16`, for the passes of training and attack.
    validate_every : int
        Epochs.
    awp : Perturbation, optional
        Of the weights.
    """

    def __init__(
        self,
        *,
        model: Classifier,
        stream: ImageStream,
        samples: NDArray[np.int64],
        params: FitParams,
        objective: Objective,
        examples: Examples,
        adversary: Adversary | None,
        validate: Callable[[Classifier], dict[str, float]],
        select: Callable[[dict[str, float]], tuple[float, ...]],
        snapshots: Snapshots,
        seed: int,
        precision: Precision = "float32",
        validate_every: int = 1,
        awp: Perturbation | None = None,
    ) -> None:
        self.model, self._stream, self._samples, self._params = model, stream, samples, params
        self._objective, self._examples, self._adversary = objective, examples, adversary
        self._validate, self._select, self._snapshots = validate, select, snapshots
        self._seed, self._precision, self._validate_every = seed, precision, validate_every
        self._awp = awp
        self._device = next(model.parameters()).device
        self._optimiser = torch.optim.SGD(
            model.parameters(),
            lr=params.learning_rate,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
            nesterov=params.nesterov,
        )
        self.average = MovingAverage(model, params.ema_decay)
        self.best = MovingAverage(model, 0.0)
        self.progress = Progress()
        self._clock = _Clock(params.snapshot_minutes)
        self.steps_per_epoch = -(-len(samples) // params.batch_size)
        self.total_steps = self.steps_per_epoch * params.epochs

    def run(self, watcher: Watcher) -> list[dict[str, float]]:
        """Train to the end, from the last snapshot where there is one.

        Returns
        -------
        list of dict
            One row per epoch. The best weights are in `self.best.model`, the last (averaged)
            ones in `self.average.model`.

        Raises
        ------
        Interrupted
            On SIGINT or SIGTERM, after the step under way and a snapshot.
        """
        self._restore()
        self._clock.restart()
        with listen() as stop:
            while len(self.progress.history) < self._params.epochs:
                self._epoch(watcher, stop)
        return self.progress.history

    @property
    def images_per_second(self) -> float:
        """Training images per second of this process, steps alone."""
        return self._clock.rate()

    def _epoch(self, watcher: Watcher, stop: Any) -> None:
        # The epoch is the one without a row: a run that was stopped between an epoch's last
        # step and its validation finishes that epoch first.
        epoch = len(self.progress.history)
        done = self.progress.step - epoch * self.steps_per_epoch
        order = rng.permutation(rng.stream_key(self._seed, "order", epoch), self._samples)
        self.model.train()
        self._clock.skip()
        for batch in self._stream.batches(order, self._params.batch_size, start=done):
            self._step(batch, epoch)
            self._clock.count(len(batch.labels))
            self._tell(watcher)
            if stop.received:
                self._save()
                raise Interrupted
            if self._clock.is_due():
                self._save()
        self._finish_epoch(epoch)
        watcher.epoch(self.progress.history)
        self._save()

    def _step(self, batch: Batch, epoch: int) -> None:
        rate = learning_rate(self._params, self.progress.step, self.total_steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        loss_of_model = self._prepared(batch, epoch)
        with self._perturbed(loss_of_model, epoch):
            loss = loss_of_model()
            self._refuse_divergence(loss.value)
            self._optimiser.zero_grad(set_to_none=True)
            loss.value.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        self.progress.step += 1
        self.average.update(self.model, self.progress.step)
        hits = (loss.logits.argmax(dim=1) == batch.labels).sum()
        self._add(images=len(batch.labels), loss=loss.value * len(batch.labels), hits=hits)

    def _perturbed(
        self, loss_of_model: Callable[[], Loss], epoch: int
    ) -> contextlib.AbstractContextManager[None]:
        if self._awp is None or epoch < self._awp.from_epoch:
            return contextlib.nullcontext()
        return perturbed_weights(self.model, lambda: loss_of_model().value, self._awp.gamma)

    def _refuse_divergence(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            raise ModelError(
                f"training step {self.progress.step}",
                "the loss is not finite",
                found=loss.item(),
                remedy="Lower learning_rate, or set precision: float32.",
            )

    def _prepared(self, batch: Batch, epoch: int) -> Callable[[], Loss]:
        # Augmented, joined with its targets and attacked: what is left is a function of the
        # weights alone.
        augmented, target = self._examples.draw(batch, epoch)
        images = to_unit(augmented)
        labels = Labels(target, onehot(batch.labels, self.model.num_classes))
        with autocast(self._device, self._precision):
            adversarial = self._attack(batch, images, labels, epoch)

        def loss_of_model() -> Loss:
            with autocast(self._device, self._precision):
                return self._objective.loss(self.model, images, adversarial, labels)

        return loss_of_model

    def _attack(
        self, batch: Batch, images: torch.Tensor, labels: Labels, epoch: int
    ) -> torch.Tensor:
        adversary = self._adversary
        opposed = self._objective.opposed(self.model, images, labels)
        if adversary is None or opposed is None:
            return images
        return adversary.attack(
            self.model,
            images,
            opposed,
            start=self._objective.start,
            index=batch.index,
            key=rng.stream_key(self._seed, "attack-start", epoch),
        )

    def _add(self, **amounts: torch.Tensor | float) -> None:
        for name, amount in amounts.items():
            value = amount.item() if isinstance(amount, torch.Tensor) else amount
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value

    def _tell(self, watcher: Watcher) -> None:
        sums = self.progress.sums
        loss, accuracy = sums["loss"] / sums["images"], sums["hits"] / sums["images"]
        watcher.step(self.progress.step, self.total_steps, loss, accuracy, self._clock.rate())

    def _finish_epoch(self, epoch: int) -> None:
        sums = self.progress.sums
        row = {
            "epoch": epoch,
            "learning_rate": self._optimiser.param_groups[0]["lr"],
            "train/loss": sums["loss"] / sums["images"],
            self._accuracy_name(): sums["hits"] / sums["images"],
        }
        last = epoch + 1 == self._params.epochs
        if last or (epoch + 1) % self._validate_every == 0:
            row |= self._validate(self.average.model)
            self._keep_best(row)
        self.progress.history.append(row)
        self.progress.sums = {}

    def _accuracy_name(self) -> str:
        return "train/accuracy" if self._adversary is None else "train/robust_accuracy"

    def _keep_best(self, row: dict[str, float]) -> None:
        best = self.progress.best
        # Of equal ones the later is kept: it has seen more.
        if not best or self._select(row) >= self._select(best):
            self.progress.best = row
            self.best.update(self.average.model, self.progress.step)

    def _save(self) -> None:
        tensors = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "best": self.best.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }
        self._snapshots.save(self.progress, tensors)
        self._clock.restart()

    def _restore(self) -> None:
        found = self._snapshots.load()
        if found is None:
            return
        self.progress, tensors = found
        self.model.load_state_dict(tensors["model"])
        self.average.model.load_state_dict(tensors["average"])
        self.best.model.load_state_dict(tensors["best"])
        self._optimiser.load_state_dict(tensors["optimiser"])


class _Clock:
    """Images per second of the training steps, and whether a snapshot is due."""

    def __init__(self, minutes: float) -> None:
        self._minutes, self._images, self._seconds = minutes, 0, 0.0
        self._mark = self._last = time.monotonic()

    def count(self, images: int) -> None:
        now = time.monotonic()
        self._images += images
        self._seconds += now - self._mark
        self._mark = now

    def rate(self) -> float:
        return self._images / max(self._seconds, 1e-9)

    def skip(self) -> None:
        """Leave what came since the last step (validation, a snapshot) out of the rate."""
        self._mark = time.monotonic()

    def is_due(self) -> bool:
        return self._minutes > 0 and time.monotonic() - self._last > 60 * self._minutes

    def restart(self) -> None:
        self._last = time.monotonic()
