"""What the teacher's and the student's commands share: the watcher on screen and in dvclive."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.device import deterministic
from ltd_pipe.distributed import World
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.publish import exclusive
from ltd_pipe.stages import options
from ltd_pipe.stages.console import bar, doing, tell
from ltd_pipe.training import run
from ltd_pipe.training.failures import Interrupted
from ltd_pipe.training.trainer import Trainer, Watcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ltd_pipe.device import PrecisionSettings
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.params import Params
    from ltd_pipe.training.collapse import Collapse
    from ltd_pipe.training.snapshots import Row
    from ltd_pipe.training.trainer import Split

_INTERRUPTED = 130


@contextlib.contextmanager
def begun(out: Path, *, replace: bool) -> Iterator[World]:
    """Connect the processes, and keep other runs out of a folder, while the block runs.

    A model that is there already is refused first, unless it may be replaced.
    """
    options.refuse_store(out)
    options.refuse_existing(out / "model.safetensors", force=replace, kind=options.CHECKPOINT)
    options.note_pipeline(out)
    world = World.from_environment()
    with world.connected(), exclusive(out) if world.is_main else contextlib.nullcontext():
        yield world


def fit(
    kind: run.Kind,
    params: Params,
    beton: Beton,
    split: Split,
    out: Path,
    world: World,
    *,
    fresh: bool,
    trainer_of: Callable[..., Trainer],
    facts_of: Callable[[Trainer], dict[str, Any]],
    **decides: Any,
) -> tuple[Trainer, dict[str, Any]] | None:
    """Train a teacher or student with progress shown, and write it with what it says of itself.

    The first process gets both. `trainer_of` is `run.teacher_trainer` or `run.student_trainer`,
    with what these take by name; `facts_of` gives what such a checkpoint alone says of itself; for
    the rest see `run.open_run`.

    Raises
    ------
    Interrupted
        With a line that says how to go on.
    """
    section = params.teacher if kind == "teacher" else params.train
    with deterministic():
        with doing("measuring precision"):
            model, context = run.open_run(
                kind, params, beton.manifest, out, world, fresh=fresh, tell=tell, **decides
            )
        with doing("loading images"):
            stream = ImageStream(beton, model.mean.device)
            trainer = trainer_of(model, stream, split, section, context)
        timing = _train_on_screen(trainer, "teacher" if kind == "teacher" else out.name, out)
        if not world.is_main:
            return None
        facts = run.common_facts(kind, section, beton, params.seed, context.precision)
        facts |= facts_of(trainer)
    run.save_results(trainer, out, facts, timing, last=kind == "student")
    return trainer, facts


def _train_on_screen(trainer: Trainer, description: str, out: Path) -> dict[str, float]:
    """Train, shown by the first of several processes; the times that it took.

    Of a run that went on from a snapshot no seconds: those before it are not known.
    """
    begin = time.monotonic()
    if not trainer.context.world.is_main:
        try:
            trainer.run(Watcher())
        except Interrupted:
            raise SystemExit(_INTERRUPTED) from None  # the first process says it for all
        return {}
    _tell_precision(trainer.context.precision)
    with contextlib.closing(_Screen(description, trainer, out / "live")) as screen:
        try:
            trainer.run(screen)
        except Interrupted as error:
            # Which would start over once more; what --fresh was allowed to replace is still there.
            fresh = click.get_current_context().params.get("fresh")
            how = ", with --force instead of --fresh," if fresh else ""
            raise Interrupted(
                f"Interrupted after step {trainer.progress.step} of {trainer.total_steps}; "
                f"run the same command again{how} to go on."
            ) from error
    timing = {"images_per_second": round(trainer.images_per_second, 1)}
    return timing | ({} if screen.resumes else {"seconds": round(time.monotonic() - begin, 3)})


def _tell_precision(settings: PrecisionSettings) -> None:
    if settings.resumed and settings.measured:
        tell(f"passes in {settings}, as when this run began (not measured again)")
    elif settings.measured:
        rates = "; ".join(f"{name}: {rate:,.0f}" for name, rate in settings.measured.items())
        tell(f"passes in {settings} (images/s of an attack's pass: {rates})")


class _Screen(Watcher):
    """A progress bar for the steps; dvclive's plots for the epochs."""

    def __init__(self, description: str, trainer: Trainer, live: Path) -> None:
        self._progress, self._live, self._validated = bar(), live, ""
        self._plots: Any = None
        self.resumes = False
        self._name, self._epochs, self._stopping = description, trainer.epochs, False
        self._task = self._progress.add_task(self._what(0), total=trainer.total_steps, note="")
        self._progress.start()

    def close(self) -> None:
        self._progress.stop()
        if self._plots is not None:
            self._plots.end()

    def _what(self, epoch: int) -> str:
        return f"{self._name}, epoch {min(epoch + 1, self._epochs)} of {self._epochs}"

    def resumed(self, step: int, total: int, epoch: int) -> None:
        self.resumes = True
        self._progress.update(self._task, completed=step, description=self._what(epoch))
        self._progress.console.print(f"goes on after step {step} of {total}", highlight=False)

    def step(self, done: int, total: int, loss: float, accuracy: float, rate: float) -> None:
        note = f"loss {loss:.3f}  {rate:,.0f} images/s  accuracy {accuracy:.1%}  {self._validated}"
        self._progress.update(self._task, completed=done, total=total, note=note)

    def epoch(self, history: list[Row]) -> None:
        self._plot(history)
        self._say(self._what(len(history)))
        row = history[-1]
        measures = "  ".join(
            f"{name.rpartition('/')[2].replace('_', ' ')} {value:.1%}"
            for name, value in row.items()
            if name.startswith("validation/")
        )
        self._validated = f"validation: {measures}  " if measures else self._validated
        self._progress.console.print(
            f"epoch {row['epoch'] + 1}  loss {row['train/loss']:.3f}  {measures}", highlight=False
        )

    def validation(self, epoch: int) -> None:
        self._say(f"{self._name}, validation of epoch {epoch + 1}")

    def stopping(self) -> None:
        # In a signal's handler: whatever is being written at that moment must not be written to.
        self._stopping = True
        if self._progress.disable:
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                os.write(2, b"stopping after this step\n")
        self._progress.update(self._task, description="stopping after this step")

    def _say(self, description: str) -> None:
        if not self._stopping:
            self._progress.update(self._task, description=description)

    def collapse(self, collapse: Collapse) -> None:
        self._progress.console.print(f"warning: {collapse}.", highlight=False)

    def _plot(self, history: list[Row]) -> None:
        # At first all epochs anew: a resumed run has the same files as an uninterrupted one.
        rows = history[-1:] if self._plots else history
        self._plots = self._plots or _empty_plots(self._live)
        for row in rows:
            self._plots.step = int(row["epoch"])
            for name, value in row.items():
                if name != "epoch":
                    self._plots.log_metric(name, value)
            self._plots.make_summary()


def _empty_plots(live: Path) -> Any:
    from dvclive.live import Live
    from scmrepo.exceptions import SCMError

    class Plots(Live):
        def _init_dvc(self) -> None:
            # DVCLive asks for git's commit, and fails where there is none yet.
            with contextlib.suppress(SCMError):
                super()._init_dvc()

    return Plots(str(live), dvcyaml=None, save_dvc_exp=False, monitor_system=False)


# What to do about a model that was trained here and is no better than chance.
TRAIN_LONGER = "Train longer, or with a smaller learning_rate."


def warn_of_chance(
    accuracy: float,
    labels: NDArray[np.integer[Any]],
    num_classes: int,
    split: str,
    remedy: str = TRAIN_LONGER,
) -> None:
    """Warn of a clean accuracy that guessing may have: a robust one would be nothing to look at.

    `labels` are the classes of the images, -1 where unknown.
    """
    from ltd_pipe.evaluation.statistics import chance_text, class_counts

    counts = class_counts(labels, num_classes)
    if told := chance_text(round(accuracy * counts.sum()), counts):
        tell(f"warning: clean {split} images: {told}. {remedy}")
