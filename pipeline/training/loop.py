"""The one training loop: the teacher's and the student's, whatever the labels and objective."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pipeline import rng
from pipeline.images.mixing import PAIR
from pipeline.models.sizes import require_sizes
from pipeline.objectives import Moment
from pipeline.team import Team
from pipeline.training.ahead import ahead
from pipeline.training.clock import Clock
from pipeline.training.dropout import caller_generators_kept
from pipeline.training.ema import MovingAverage
from pipeline.training.interrupt import Interrupted, listen
from pipeline.training.lone_image import lone_image_explained
from pipeline.training.memory import out_of_memory_explained
from pipeline.training.meters import Meters
from pipeline.training.schedule import learning_rate
from pipeline.training.shares import images_per_epoch, require_shares, share_of
from pipeline.training.state import Progress
from pipeline.training.step import Step
from pipeline.training.swa import EpochAverage
from pipeline.training.synced_norm import synchronise
from pipeline.training.target_softness import TARGET_SUMS, TargetSoftness

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.attacks import Adversary
    from pipeline.images.stream import Batch, ImageStream
    from pipeline.models.classifier import Classifier
    from pipeline.objectives import Objective
    from pipeline.params import FitParams
    from pipeline.training.alarm import Alarm, Collapse
    from pipeline.training.awp import Perturbation
    from pipeline.training.ema import Average
    from pipeline.training.examples import Examples
    from pipeline.training.interrupt import StopRequest
    from pipeline.training.passes import Passes
    from pipeline.training.state import Snapshots

__all__ = ["Fit", "Watcher"]


class Watcher:
    """What the loop tells while it runs; a stage overrides what it shows."""

    def step(self, done: int, total: int, loss: float, accuracy: float, rate: float) -> None:
        """After a step: steps done and in all, mean loss and accuracy so far, images/s."""

    def epoch(self, history: list[dict[str, float]]) -> None:
        """After an epoch: one row per epoch so far."""

    def validation(self, epoch: int) -> None:
        """Before an epoch's validation."""

    def stopping(self) -> None:
        """At once when the user asks the run to stop, in the signal's handler."""

    def collapse(self, collapse: Collapse) -> None:
        """After the epoch at which training was first seen to have collapsed."""


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
    passes : Passes
        How those of training and attack are computed.
    validate_every : int
        Epochs.
    awp : Perturbation, optional
        Of the weights.
    team : Team
        Processes that take each step together, connected.
    alarm : Alarm, optional
        Told of, or stopped at, when training collapses.

    Raises
    ------
    ParamsError
        When a step's images cannot be shared among the processes.
    ModelError
        When the network cannot take the sizes that training images will have.
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
        passes: Passes,
        validate_every: int = 1,
        awp: Perturbation | None = None,
        team: Team | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        self.model, self._stream, self._samples, self._params = model, stream, samples, params
        self._examples, self._snapshots = examples, snapshots
        self._validate, self._select = validate, select
        self._seed, self._validate_every = seed, validate_every
        self.passes = passes
        self._adversarial, self._alarm = adversary is not None, alarm
        self.team = team or Team()
        self._unit = 1 if params.mixing.is_none else PAIR
        self._images = images_per_epoch(len(samples), params.batch_size)
        require_shares(self._images, params.batch_size, self.team.count, self._unit)
        self._sizes = [] if params.sizes is None else params.sizes.all()
        require_sizes(model, self._sizes)
        passes.apply(model)
        if params.sync_batch_norm and self.team.count > 1:
            synchronise(model)
        self.epochs = params.epochs
        self.steps_per_epoch = -(-self._images // params.batch_size)
        self.total_steps = self.steps_per_epoch * params.epochs
        self._step = Step(
            model=model,
            objective=objective,
            examples=examples,
            adversary=adversary,
            awp=awp,
            params=params,
            seed=seed,
            passes=passes,
            team=self.team,
        )
        self.average = _average(model, params, self.steps_per_epoch)
        self.best = MovingAverage(model, 0.0)
        self.progress = Progress()
        self._meters = Meters(stream.device)
        self._clock = Clock(params.snapshot_minutes)

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
            On SIGINT, SIGTERM, SIGHUP or SIGUSR1, after the step under way and a snapshot.
        """
        self._restore()
        self._clock.restart()
        # torchrun passes on to each process what the terminal has sent it already.
        generators = caller_generators_kept(self._stream.device)
        with generators, listen(patient=self.team.count > 1, told=watcher.stopping) as stop:
            while len(self.progress.history) < self._params.epochs and not self.stopped:
                self._epoch(watcher, stop)
        return self.progress.history

    @property
    def collapse(self) -> Collapse | None:
        """The collapse that the rows so far show; a resumed run finds the same."""
        return self._alarm.collapse(self.progress.history) if self._alarm else None

    @property
    def target_softness(self) -> TargetSoftness | None:
        """What the last epoch's targets were like; None where no teacher in the run gave them."""
        sums = self.progress.targets
        return TargetSoftness.of_sums(sums, int(sums["images"])) if sums else None

    @property
    def stopped(self) -> bool:
        """Whether the run ends here, before its last epoch, because it has collapsed."""
        return self._alarm is not None and self._alarm.stops and self.collapse is not None

    @property
    def images_per_second(self) -> float:
        """Training images per second of all processes, steps alone."""
        return self._clock.rate()

    def _epoch(self, watcher: Watcher, stop: StopRequest) -> None:
        # The epoch is the one without a row: a run that was stopped between an epoch's last
        # step and its validation finishes that epoch first.
        epoch = len(self.progress.history)
        done = self.progress.step - epoch * self.steps_per_epoch
        order = rng.permutation(rng.stream_key(self._seed, "order", epoch), self._samples)
        order = order[: self._images]
        mine, batch_size = share_of(order, self._params.batch_size, self.team, self._unit)
        self.model.train()
        self._clock.skip()
        batches = ahead(
            self._stream.batches(mine, batch_size, start=done),
            lambda batch: self._examples.fetch(batch, epoch),
            self._stream.device,
        )
        with contextlib.closing(batches), self.model.also_taking(self._sizes):
            for batch in batches:
                self._take(batch, epoch, done)
                done += 1
                self._tell(watcher)
                stopped, due = self.team.any(stop.received, self._snapshot_is_due())
                if stopped or due:
                    self._save()
                if stopped:
                    raise Interrupted
        self._finish_epoch(epoch, watcher, stop)
        watcher.epoch(self.progress.history)
        if (collapse := self.collapse) and collapse.epoch == epoch:
            watcher.collapse(collapse)
        self._save()

    def _take(self, batch: Batch, epoch: int, done: int) -> None:
        step = self.progress.step
        images = min(self._params.batch_size, self._images - done * self._params.batch_size)
        rate = learning_rate(self._params, step, self.total_steps)
        moment = Moment(step, self.total_steps, epoch, self._params.epochs)
        with (
            lone_image_explained(self.model.architecture),
            out_of_memory_explained(self._step, batch, moment, self.team),
        ):
            tally = self._step.take(batch, moment, rate, images)
        self._meters.add(tally, images, step)
        self.progress.step += 1
        self.average.update(self.model, self.progress.step)
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

    def _finish_epoch(self, epoch: int, watcher: Watcher, stop: StopRequest) -> None:
        sums = self._meters.read()
        row = {
            "epoch": epoch,
            "learning_rate": learning_rate(self._params, self.progress.step - 1, self.total_steps),
            "train/loss": sums["loss"] / sums["images"],
            self._accuracy_name(): sums["hits"] / sums["images"],
        }
        last = epoch + 1 == self._params.epochs
        if last or (epoch + 1) % self._validate_every == 0:
            watcher.validation(epoch)
            try:
                with stop.at_once():
                    row |= self._validate(self.average.model)
            except Interrupted:
                self._save()  # the next run begins with this validation
                raise
            self._keep_best(row)
        self.progress.history.append(row)
        self.progress.targets = sums if TARGET_SUMS[0] in sums else {}
        self._meters = Meters(self._stream.device)

    def _accuracy_name(self) -> str:
        return "train/robust_accuracy" if self._adversarial else "train/accuracy"

    def _keep_best(self, row: dict[str, float]) -> None:
        best = self.progress.best
        # Of equal ones the later is kept: it has seen more.
        if not best or self._select(row) >= self._select(best):
            self.progress.best = row
            self.best.update(self.average.model, self.progress.step)

    def _save(self) -> None:
        # Read first: weights that a broken loss has spoilt must not replace sound ones.
        self.progress.sums = self._meters.read()
        if self.team.leads:
            self._snapshots.save(self.progress, self._state(), self.passes.chosen)
        self._clock.restart()

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "best": self.best.model.state_dict(),
            **self._step.state(),
        }

    def _restore(self) -> None:
        found = self.team.from_first(self._snapshots.load)
        if found is None:
            return
        self.progress, state = found
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.best.model.load_state_dict(state["best"])
        self._step.restore(state)
        self._meters.restore(self.progress.sums)


def _average(model: Classifier, params: FitParams, steps_per_epoch: int) -> Average:
    if params.swa_epoch is None:
        return MovingAverage(model, params.ema_decay)
    return EpochAverage(model, params.swa_epoch, steps_per_epoch)
