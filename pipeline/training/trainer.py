"""The one training loop: the teacher's and the student's, whatever the labels and objective."""

from __future__ import annotations

import contextlib
import copy
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ltd_pipe import rng
from ltd_pipe.device import PrecisionSettings
from ltd_pipe.distributed import World, images_per_epoch, require_shards, shard
from ltd_pipe.errors import ModelError
from ltd_pipe.models.registry import require_sizes
from ltd_pipe.objectives import StepInfo
from ltd_pipe.params import TrainParams
from ltd_pipe.training.collapse import first_collapse
from ltd_pipe.training.data import prefetch
from ltd_pipe.training.failures import (
    Interrupted,
    StopRequest,
    failures_explained,
    passes_explained,
)
from ltd_pipe.training.optim import learning_rate
from ltd_pipe.training.snapshots import Progress
from ltd_pipe.training.softness import TARGET_SUMS, TargetSoftness
from ltd_pipe.training.step import Step
from ltd_pipe.training.validation import validate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ltd_pipe.attacks import Adversary
    from ltd_pipe.images.stream import Batch, ImageStream
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives import Objective
    from ltd_pipe.params import FitParams
    from ltd_pipe.training.collapse import Collapse
    from ltd_pipe.training.data import BatchTransform
    from ltd_pipe.training.perturbations import Perturbations
    from ltd_pipe.training.snapshots import Row, Snapshots
    from ltd_pipe.training.targets import TeacherTargets

    # Disjoint sample indices, to train on and to validate with.
    Split = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Task:
    """What a run trains: on which images and targets, and against which attack.

    Without an adversary training is clean; teacher_targets replace the transform's; attacks begin
    from the perturbations, where there are some, after the first epoch.
    """

    objective: Objective
    transform: BatchTransform
    adversary: Adversary | None = None
    teacher_targets: TeacherTargets | None = None
    perturbations: Perturbations | None = None


@dataclass(frozen=True)
class RunContext:
    """How and where a run is computed; validation is always float32."""

    seed: int
    snapshots: Snapshots
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    world: World = field(default_factory=World)


class Watcher:
    """What the loop tells while it runs; a stage overrides what it shows."""

    def resumed(self, step: int, total: int, epoch: int) -> None:
        """Before a run goes on from a snapshot: steps done and in all, finished epochs."""

    def step(self, done: int, total: int, loss: float, accuracy: float, rate: float) -> None:
        """After a step: steps done and in all, mean loss and accuracy so far, images/s."""

    def epoch(self, history: list[Row]) -> None:
        """After an epoch: one row per epoch so far."""

    def validation(self, epoch: int) -> None:
        """Before an epoch's validation."""

    def stopping(self) -> None:
        """At once when the user asks the run to stop, in the signal's handler."""

    def collapse(self, collapse: Collapse) -> None:
        """After the epoch at which training was first seen to have collapsed."""


class Trainer:
    """One training run: from an initial model to its best and its last weights.

    Parameters
    ----------
    model : Classifier
        Freshly initialised, on its device.
    stream : ImageStream
        The training images.
    split : tuple of ndarray of shape (N,), dtype int64
        Disjoint sample indices, to train on and to validate with.
    params : FitParams
    task : Task
    context : RunContext

    Attributes
    ----------
    average, best : Classifier
        Of the weights as they are now, and at the best validation; in evaluation mode.
    progress : Progress

    Raises
    ------
    ParamsError
        When a step's images cannot be shared among the processes.
    ModelError
        When the network cannot take the sizes that training images will have.
    """

    def __init__(
        self,
        model: Classifier,
        stream: ImageStream,
        split: Split,
        params: FitParams,
        task: Task,
        context: RunContext,
    ) -> None:
        self.model, self.context, self.epochs = model, context, params.epochs
        self._stream, self._params, self._task = stream, params, task
        self._samples, self._validation = split
        self._images = images_per_epoch(len(self._samples), params.batch_size)
        shards = params.batch_size, context.world.size, params.unit
        require_shards(self._images, *shards, synced=params.sync_batch_norm)
        self._sizes = [] if params.sizes is None else params.sizes.all()
        require_sizes(model, self._sizes)
        self.steps_per_epoch = -(-self._images // params.batch_size)
        self.total_steps = self.steps_per_epoch * params.epochs
        self._step = Step(model, task, params, context)
        self.average = self._step.average.model
        self.best = copy.deepcopy(self.average)
        self.progress = Progress()
        self._meters = Meters(stream.device)
        self._clock = Clock(params.snapshot_minutes)

    def run(self, watcher: Watcher) -> list[Row]:
        """Train to the end, from the last snapshot where there is one; one row per epoch.

        Raises
        ------
        Interrupted
            On SIGINT, SIGTERM, SIGHUP or SIGUSR1, after the step under way and a snapshot.
        """
        if self._restore():
            watcher.resumed(self.progress.step, self.total_steps, len(self.progress.history))
        self._clock.restart()
        # torchrun passes on to each process what the terminal has sent it already.
        stop = StopRequest(keep_waiting=self.context.world.size > 1, on_request=watcher.stopping)
        device = self._stream.device
        # Dropout draws from torch's generators, which go back to where the caller had them.
        with torch.random.fork_rng([device] if device.type == "cuda" else []), stop:
            try:
                while len(self.progress.history) < self.epochs and not self.stopped:
                    self._epoch(watcher, stop)
            finally:
                self.context.snapshots.wait()
        return self.progress.history

    @property
    def collapse(self) -> Collapse | None:
        """The collapse that the rows so far show; a resumed run finds the same."""
        params, images = self._params, len(self._validation)
        if not isinstance(params, TrainParams) or params.overfitting_alarm == "off":
            return None
        return first_collapse(
            self.progress.history, images=images, warmup_epochs=params.eps_warmup_epochs
        )

    @property
    def stopped(self) -> bool:
        """Whether the run ends here, before its last epoch, because it has collapsed."""
        params = self._params
        stops = isinstance(params, TrainParams) and params.overfitting_alarm == "stop"
        return stops and self.collapse is not None

    @property
    def target_softness(self) -> TargetSoftness | None:
        """What the last epoch's targets were like; None where no teacher in the run gave them."""
        sums = self.progress.targets
        return TargetSoftness.of_sums(sums, int(sums["images"])) if sums else None

    @property
    def images_per_second(self) -> float:
        """Training images per second of all processes, steps alone."""
        return self._clock.rate()

    def _epoch(self, watcher: Watcher, stop: StopRequest) -> None:
        # The epoch is the one without a row: a run that was stopped between an epoch's last
        # step and its validation finishes that epoch first.
        epoch, world = len(self.progress.history), self.context.world
        done = self.progress.step - epoch * self.steps_per_epoch
        key = rng.stream_key(self.context.seed, "order", epoch)
        order = rng.permutation(key, self._samples)[: self._images]
        mine, batch_size = shard(order, self._params.batch_size, world, self._params.unit)
        self.model.train()
        self._clock.skip()
        batches = prefetch(
            self._stream.batches(mine, batch_size, start=done),
            lambda batch: self._task.transform.prefetch(batch, epoch),
            self._stream.device,
        )
        with contextlib.closing(batches), self.model.also_taking(self._sizes):
            for batch in batches:
                self._take(batch, epoch, done)
                done += 1
                self._tell(watcher)
                stopped, due = world.sums(stop.received, self._snapshot_is_due())
                if stopped or due:
                    self._save()
                if stopped:
                    raise Interrupted
        # Before the validation, in which one process alone may be stopped and save. Of several none
        # is: torchrun ends them all after half a minute.
        if world.size > 1 and self._validates(epoch):
            self._save()
        else:
            self._step.share_perturbations()
        self._finish_epoch(epoch, watcher, stop)
        watcher.epoch(self.progress.history)
        if (collapse := self.collapse) and collapse.epoch == epoch:
            watcher.collapse(collapse)
        self._save()

    def _take(self, batch: Batch, epoch: int, done: int) -> None:
        step = self.progress.step
        images = min(self._params.batch_size, self._images - done * self._params.batch_size)
        rate = learning_rate(self._params, step, self.total_steps)
        info = StepInfo(step, self.total_steps, epoch, self.epochs, rate)
        alone = self.context.world.size == 1
        parts = self._params.accumulation_steps
        with failures_explained(self._step, batch, info, parts, alone=alone):
            tally = self._step.take(batch, info, images)
        self._meters.add(tally, images, step)
        self.progress.step += 1
        self._clock.count(images)

    def _tell(self, watcher: Watcher) -> None:
        # What is shown may be half a second old: reading it makes the host wait for the device.
        if self._stream.device.type == "cpu" or self._clock.is_time_to_read():
            self.progress.sums = self._meters.read()
        sums = self.progress.sums
        images = max(sums.get("images", 0.0), 1.0)
        loss, accuracy = sums.get("loss", 0.0) / images, sums.get("hits", 0.0) / images
        watcher.step(self.progress.step, self.total_steps, loss, accuracy, self._clock.rate())

    def _snapshot_is_due(self) -> bool:
        every = self._params.snapshot_steps
        return bool(every and self.progress.step % every == 0) or self._clock.is_due()

    def _validates(self, epoch: int) -> bool:
        params = self._params
        every = params.validation_every if isinstance(params, TrainParams) else 1
        return epoch + 1 == self.epochs or (epoch + 1) % every == 0

    def _finish_epoch(self, epoch: int, watcher: Watcher, stop: StopRequest) -> None:
        sums = self._meters.read()
        self._clock.count(0)  # the wait for a device's last steps is theirs
        accuracy = "train/robust_accuracy" if self._task.adversary else "train/accuracy"
        row = {
            "epoch": epoch,
            "learning_rate": learning_rate(self._params, self.progress.step - 1, self.total_steps),
            "train/loss": sums["loss"] / sums["images"],
            accuracy: sums["hits"] / sums["images"],
        }
        params = self._params
        if self._validates(epoch):
            watcher.validation(epoch)
            try:
                explained = passes_explained(self.model, params, self.context.world)
                with stop.at_once(), explained:
                    samples = self._validation
                    row |= validate(self.average, self._stream, samples, params, self.context)
            except Interrupted:
                self._save()  # the next run begins with this validation
                raise
            # Of equal ones the later is kept: it has seen more.
            if not self.progress.best or _rank(row) >= _rank(self.progress.best):
                self.progress.best = row
                self.best.load_state_dict(self.average.state_dict())
        self.progress.history.append(row)
        self.progress.targets = sums if TARGET_SUMS[0] in sums else {}
        self._meters = Meters(self._stream.device)

    def _save(self) -> None:
        # Read first: weights that a broken loss has spoilt must not replace sound ones.
        self.progress.sums = self._meters.read()
        self._clock.count(0)
        self._step.share_perturbations()
        if self.context.world.is_main:
            tensors = {"best": self.best.state_dict(), **self._step.state_dict()}
            self.context.snapshots.save(self.progress, tensors, self.context.precision)
        self._clock.skip()
        self._clock.restart()

    def _restore(self) -> bool:
        found = self.context.world.broadcast(self.context.snapshots.load)
        if found is not None:
            self.progress, state = found
            self.best.load_state_dict(state["best"])
            self._step.load_state_dict(state)
            self._meters.restore(self.progress.sums)
        return found is not None


def _rank(row: Row) -> tuple[float, float]:
    # A teacher's rows have no robust accuracy.
    return row.get("validation/robust_accuracy", 0.0), row.get("validation/clean_accuracy", 0.0)


# --- Images per second of the training steps, and whether a snapshot is due.


# Often enough for a screen, too rarely to hold a device up.
_READ_SECONDS = 0.5


class Clock:
    """Times a run, with so many minutes between snapshots; 0: none are due by time."""

    def __init__(self, minutes: float) -> None:
        self._minutes, self._images, self._seconds = minutes, 0, 0.0
        self._mark = self._last = self._read = time.monotonic()

    def count(self, images: int) -> None:
        """Images of a step that was just done."""
        now = time.monotonic()
        self._images += images
        self._seconds += now - self._mark
        self._mark = now

    def rate(self) -> float:
        """Images per second so far."""
        return self._images / max(self._seconds, 1e-9)

    def skip(self) -> None:
        """Leave what came since the last step (validation, a snapshot) out of the rate."""
        self._mark = time.monotonic()

    def is_time_to_read(self) -> bool:
        """Whether the screen has not been told anything for a while."""
        now = time.monotonic()
        if now - self._read < _READ_SECONDS:
            return False
        self._read = now
        return True

    def is_due(self) -> bool:
        """Whether the last snapshot is too long ago."""
        return self._minutes > 0 and time.monotonic() - self._last > 60 * self._minutes

    def restart(self) -> None:
        """A snapshot was just taken."""
        self._last = time.monotonic()


# --- What an epoch adds up, on the device: reading it is what makes the host wait, so it is rare.


_NEVER = 2**62
# Of a step's tally, in its order; one without a teacher in the run has the first two.
_NAMES = ("loss", "hits", *TARGET_SUMS)


class Meters:
    """Sums over the steps of an epoch, and the first step whose loss was not finite."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_NAMES), dtype=torch.float64, device=device)
        self._broken = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self._images, self._summed = 0, 2

    def add(self, tally: torch.Tensor, images: int, step: int) -> None:
        """Add what `Step.take` gave of so many images; the step's number is for the error."""
        self._summed = len(tally)
        self._sums[: self._summed] += tally
        self._images += images
        finite = torch.isfinite(tally[0])
        self._broken = torch.where(finite, self._broken, self._broken.clamp(max=step))

    def read(self) -> dict[str, float]:
        """`images`, `loss`, `hits` and any TARGET_SUMS; empty before the first step.

        Raises
        ------
        ModelError
            When a loss was not finite.
        """
        if not self._images:
            return {}
        broken = int(self._broken)
        if broken != _NEVER:
            raise ModelError(
                f"training step {broken}",
                "the loss is not finite",
                remedy="Lower learning_rate, or set precision: float32.",
            )
        sums = dict(zip(_NAMES, self._sums.tolist(), strict=True))
        return {"images": float(self._images)} | {n: sums[n] for n in _NAMES[: self._summed]}

    def restore(self, sums: dict[str, float]) -> None:
        """Go on from what `read` said."""
        self._sums = self._sums.new_tensor([sums.get(name, 0.0) for name in _NAMES])
        self._summed = len(_NAMES) if TARGET_SUMS[0] in sums else 2
        self._images = int(sums.get("images", 0))
