"""The one training loop: the teacher's and the student's, whatever the labels and objective."""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ltd_pipe import rng
from ltd_pipe.distributed import World, images_per_epoch, require_shares, share_of
from ltd_pipe.errors import MachineError, ModelError, StateError
from ltd_pipe.images.augmentation import PAIR
from ltd_pipe.models.registry import require_sizes
from ltd_pipe.objectives import Moment
from ltd_pipe.publish import remove_state, staged, unwritable
from ltd_pipe.training.data import ahead, lone_image_explained
from ltd_pipe.training.optim import EpochAverage, MovingAverage, learning_rate
from ltd_pipe.training.softness import TARGET_SUMS, TargetSoftness
from ltd_pipe.training.step import Step, caller_generators_kept, synchronise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    import numpy as np
    from numpy.typing import NDArray

    from ltd_pipe.attacks import Adversary
    from ltd_pipe.images.stream import Batch, ImageStream
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives import Objective
    from ltd_pipe.params import FitParams
    from ltd_pipe.provenance import StateRecord
    from ltd_pipe.training.alarm import Alarm, Collapse
    from ltd_pipe.training.data import Examples
    from ltd_pipe.training.optim import Average
    from ltd_pipe.training.precision import Passes
    from ltd_pipe.training.step import Perturbation


# --- Images per second of the training steps, and whether a snapshot is due.


# Often enough for a screen, too rarely to hold a device up.
_READ_SECONDS = 0.5


class Clock:
    """Times a run.

    Parameters
    ----------
    minutes : float
        Between snapshots; 0: none are due by time.
    """

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
    """Sums over the steps of an epoch, and the first step whose loss was not finite.

    Parameters
    ----------
    device : torch.device
        Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_NAMES), dtype=torch.float64, device=device)
        self._broken = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self._images, self._summed = 0, 2

    def add(self, tally: torch.Tensor, images: int, step: int) -> None:
        """Add a step.

        Parameters
        ----------
        tally : Tensor of shape (2,) or (5,), dtype float32
            Sum of the losses over its images, how many were classified right, and where a
            teacher gave the targets their `target_sums`.
        images : int
            Of the step.
        step : int
            Its number, for the error.
        """
        self._summed = len(tally)
        self._sums[: self._summed] += tally
        self._images += images
        finite = torch.isfinite(tally[0])
        self._broken = torch.where(finite, self._broken, self._broken.clamp(max=step))

    def read(self) -> dict[str, float]:
        """The sums so far; waits for the device.

        Returns
        -------
        dict
            `images`, `loss` and `hits`, and the TARGET_SUMS where tallies had them; empty
            before the first step.

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


# --- Ctrl-C, SIGTERM and their kin end a run between two steps, after a snapshot.


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved."""


class StopRequest:
    """Whether the user asked the run to stop.

    Parameters
    ----------
    patient : bool
        Take a second request for the first one, passed on by another process.
    told : callable, optional
        Called at the first one, in the signal's handler.
    """

    def __init__(self, *, patient: bool = False, told: Callable[[], None] | None = None) -> None:
        self.received, self._patient, self._told = False, patient, told
        self._at_once = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; the second one stops at once."""
        del number, frame
        if self.received and not self._patient:
            raise KeyboardInterrupt
        if not self.received and self._told is not None:
            self._told()
        self.received = True
        if self._at_once:
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Do not wait for the end of the block, which leaves nothing half done.

        Raises
        ------
        Interrupted
        """
        if self._patient:  # the others would wait for this process
            yield
            return
        if self.received:
            raise Interrupted
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextlib.contextmanager
def listen(
    *, patient: bool = False, told: Callable[[], None] | None = None
) -> Iterator[StopRequest]:
    """Turn what asks a process to end into a request that the block looks at when it is ready.

    SIGHUP comes when a terminal or an ssh session is closed, SIGUSR1 from batch systems. Where they
    are ignored, as under nohup, they stay so.

    Parameters
    ----------
    patient, told
        See `StopRequest`.
    """
    request = StopRequest(patient=patient, told=told)
    numbers = [signal.SIGINT, signal.SIGTERM]
    also = (signal.SIGHUP, signal.SIGUSR1)
    numbers += [number for number in also if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, request) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# --- Out of memory: how many images at a time would fit, found by trying.


@contextlib.contextmanager
def out_of_memory_explained(
    step: Step, batch: Batch, moment: Moment, world: World
) -> Iterator[None]:
    """Turn the block's lack of memory into an error that says what would fit.

    Parameters
    ----------
    step : Step
        Of which passes are tried with fewer images; the run is over by then.
    batch : Batch
        That did not fit.
    moment : Moment
    world : World

    Raises
    ------
    MachineError
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_about_memory(error):
            raise
        reason = str(error).splitlines()[0]
    else:
        return
    # Outside the handler: the traceback would keep the tensors that are in the way.
    size = len(batch.rows)
    fits = _largest_that_fits(step, batch, moment) if world.size == 1 else None
    raise MachineError(
        f"{batch.images.device}: {size} images per step",
        f"do not fit into memory ({reason[:120]})",
        remedy=_remedy(size, fits),
    )


def _is_about_memory(error: BaseException) -> bool:
    # The CPU's allocator says no more than RuntimeError.
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in text
        or "not enough memory" in text
    )


def _remedy(size: int, fits: int | None) -> str:
    if fits is None:
        parts = 2
        tried = "Take fewer images at a time"
    elif fits == 0:
        return "Not even one image fits: take a smaller network or smaller images."
    else:
        parts = -(-size // fits)
        tried = f"{fits} at a time do"
    return (
        f"{tried}: set accumulation_steps: {parts}, which makes the same steps, "
        f"or batch_size: {fits or size // parts}."
    )


def _largest_that_fits(step: Step, batch: Batch, moment: Moment) -> int:
    size = len(batch.rows) // 2
    while size:
        gc.collect()
        if batch.images.is_cuda:
            torch.cuda.empty_cache()
        try:
            step.differentiate(step.attacked(batch.part(slice(size)), moment, size))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_about_memory(error):
                raise
            size //= 2
        else:
            return size
    return 0


# --- Snapshots: what a run needs to continue as if it had never stopped.
#
# Everything random is a function of (seed, stream, epoch, sample index), so the state is the
# weights, their average, the optimiser and the number of steps done; there is no generator. What
# was chosen by a measurement, which could end otherwise, is kept with it.


_KEPT = 2


@dataclass
class Progress:
    """How far a run has come.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    history : list of dict
        One row per finished epoch: what was measured.
    sums : dict of str to float
        Sums over the steps of the epoch under way.
    best : dict
        Row of the best checkpoint so far, empty before the first.
    targets : dict of str to float
        The last finished epoch's sums, where a teacher in the run gave its targets.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)


class Snapshots:
    """The state of one run, in a folder named by the hash of all that decides its result.

    The last two are kept: when a power cut or a bad disk has spoilt the last one, the run goes
    on from the one before, to the same end.

    Parameters
    ----------
    folder : Path
        `STATE/<kind>-<key>`: an equal key, and only that, continues a run. What is measured
        (`Passes`) is not in the key.
    record : StateRecord, optional
        Kept beside the first one.
    """

    def __init__(self, folder: Path, record: StateRecord | None = None) -> None:
        self.folder, self._record = folder, record

    def save(
        self, progress: Progress, tensors: dict[str, Any], passes: dict[str, Any] | None = None
    ) -> None:
        """Write the state beside the last ones, rename it, and forget all but two.

        Parameters
        ----------
        progress : Progress
        tensors : dict
        passes : dict, optional
            How passes are computed (`Passes.chosen`).
        """
        # An epoch's last step has two: before its validation, and after.
        name = f"step-{progress.step:09d}-epoch-{len(progress.history):06d}.pt"
        target = self.folder / name
        if self._record is not None:
            self._record.write()
        with staged(target) as beside:
            try:
                torch.save(
                    {"progress": asdict(progress), "tensors": tensors, "passes": passes}, beside
                )
            except RuntimeError as error:  # torch's writer does not say OSError
                raise unwritable(target, error) from error
        for old in self._files()[_KEPT:]:
            old.unlink(missing_ok=True)

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        """The last state that can be read, or None when there is none.

        Raises
        ------
        StateError
            When there are some, and all are damaged.
        """
        found = self._newest()
        return found and found[:2]

    def passes(self) -> dict[str, Any] | None:
        """How the run's passes are computed; None when there is no state.

        Raises
        ------
        StateError
            When there are some, and all are damaged.
        """
        # Mapped, the tensors are not read; it is the same in all snapshots of a run.
        found = self._newest(mmap=True)
        return found and found[2]

    def _newest(
        self, *, mmap: bool = False
    ) -> tuple[Progress, dict[str, Any], dict[str, Any] | None] | None:
        first_error: Exception | None = None
        for file in self._files():
            try:
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
                return Progress(**content["progress"]), content["tensors"], content["passes"]
            except PermissionError:
                raise  # it is whole, and of somebody else
            except Exception as error:
                first_error = first_error or error
        if first_error is None:
            return None
        raise StateError(
            self._files()[0],
            f"the snapshot cannot be read ({type(first_error).__name__})",
            remedy="Start over with --fresh.",
        ) from first_error

    def clear(self) -> None:
        """Forget the run."""
        remove_state(self.folder)

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)


# --- The one training loop: the teacher's and the student's, whatever the labels and objective.


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
    world : World
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
        world: World | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        self.model, self._stream, self._samples, self._params = model, stream, samples, params
        self._examples, self._snapshots = examples, snapshots
        self._validate, self._select = validate, select
        self._seed, self._validate_every = seed, validate_every
        self.passes = passes
        self._adversarial, self._alarm = adversary is not None, alarm
        self.world = world or World()
        self._unit = 1 if params.mixing.is_none else PAIR
        self._images = images_per_epoch(len(samples), params.batch_size)
        require_shares(self._images, params.batch_size, self.world.size, self._unit)
        self._sizes = [] if params.sizes is None else params.sizes.all()
        require_sizes(model, self._sizes)
        passes.apply(model)
        if params.sync_batch_norm and self.world.size > 1:
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
            world=self.world,
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
        with generators, listen(patient=self.world.size > 1, told=watcher.stopping) as stop:
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
        mine, batch_size = share_of(order, self._params.batch_size, self.world, self._unit)
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
                stopped, due = self.world.any(stop.received, self._snapshot_is_due())
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
            out_of_memory_explained(self._step, batch, moment, self.world),
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
        if self.world.is_main:
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
        found = self.world.broadcast(self._snapshots.load)
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
