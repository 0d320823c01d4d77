"""What the teacher's and the student's commands share: the watcher on screen and in dvclive."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import click

from ltd_pipe.publish import exclusive
from ltd_pipe.stages.console import bar
from ltd_pipe.training.run import run_fit
from ltd_pipe.training.trainer import Interrupted, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from ltd_pipe.distributed import World
    from ltd_pipe.training.alarm import Collapse
    from ltd_pipe.training.precision import Passes
    from ltd_pipe.training.trainer import Fit

__all__ = ["fit_on_screen", "tell_chance", "turn"]


@contextlib.contextmanager
def turn(out: Path, world: World) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs, and connect the world's processes."""
    with world.connected(), exclusive(out) if world.is_main else contextlib.nullcontext():
        yield


_INTERRUPTED = 130


class _Screen(Watcher):
    """A progress bar for the steps; dvclive's plots for the epochs."""

    def __init__(self, description: str, fit: Fit, live: Path) -> None:
        self._progress, self._live, self._validated = bar(), live, ""
        self._name, self._epochs, self._stopping = description, fit.epochs, False
        self._task = self._progress.add_task(
            self._what(len(fit.progress.history)), total=fit.total_steps, note=""
        )

    def _what(self, epoch: int) -> str:
        return f"{self._name}, epoch {min(epoch + 1, self._epochs)} of {self._epochs}"

    def __enter__(self) -> _Screen:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def step(self, done: int, total: int, loss: float, accuracy: float, rate: float) -> None:
        note = f"loss {loss:.3f}  {rate:,.0f} images/s  accuracy {accuracy:.1%}  {self._validated}"
        self._progress.update(self._task, completed=done, total=total, note=note)

    def epoch(self, history: list[dict[str, float]]) -> None:
        _write_plots(history, self._live)
        self._say(self._what(len(history)))
        row = history[-1]
        measures = _measures(row)
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


def _measures(row: dict[str, float]) -> str:
    return "  ".join(
        f"{name.rpartition('/')[2].replace('_', ' ')} {value:.1%}"
        for name, value in row.items()
        if name.startswith("validation/")
    )


def _write_plots(history: list[dict[str, float]], live: Path) -> None:
    """Write all epochs anew, so that a resumed run has the same files as an uninterrupted one."""
    from dvclive.live import Live
    from scmrepo.exceptions import SCMError

    class Plots(Live):
        def _init_dvc(self) -> None:
            # DVCLive asks for git's commit, and fails where there is none yet.
            with contextlib.suppress(SCMError):
                super()._init_dvc()

    with Plots(str(live), dvcyaml=None, save_dvc_exp=False, monitor_system=False) as logger:
        for row in history:
            logger.step = int(row["epoch"])
            for name, value in row.items():
                if name != "epoch":
                    logger.log_metric(name, value)
            logger.make_summary()


def fit_on_screen(fit: Fit, description: str, out: Path) -> dict[str, float]:
    """Run a fit with progress shown; its times.

    Of several processes the first one shows it.

    Raises
    ------
    Interrupted
        With a line that says how to go on.
    """
    if not fit.world.is_main:
        return _run_in_silence(fit)
    _tell_choice(fit.passes)
    with _Screen(description, fit, out / "live") as screen:
        try:
            return run_fit(fit, screen)
        except Interrupted as error:
            # Which would start over once more; what --fresh was allowed to replace is still there.
            fresh = click.get_current_context().params.get("fresh")
            how = ", with --force instead of --fresh," if fresh else ""
            raise Interrupted(
                f"Interrupted after step {fit.progress.step} of {fit.total_steps}; "
                f"run the same command again{how} to go on."
            ) from error


def tell_chance(accuracy: float, images: int, split: str, num_classes: int) -> None:
    """Warn of a model that may as well guess: its robust accuracy would be nothing to look at.

    Parameters
    ----------
    accuracy : float
        On clean images.
    images : int
        So many of the split were asked about.
    split : str
        What these are called.
    num_classes : int
    """
    from ltd_pipe.evaluation.statistics import beats_chance

    hits = round(accuracy * images)
    if images and not beats_chance(hits, images, num_classes):
        click.echo(
            f"warning: no better than chance on clean images: {hits:,} of {images:,} {split} "
            f"images right, {num_classes} classes. Train longer, or with a smaller learning_rate.",
            err=True,
        )


def _tell_choice(passes: Passes) -> None:
    if not passes.measured:
        return
    if passes.kept:
        click.echo(f"passes in {passes}, as when this run began (not measured again)", err=True)
        return
    rates = "; ".join(f"{name}: {rate:,.0f}" for name, rate in passes.measured.items())
    click.echo(f"passes in {passes} (images/s of an attack's pass: {rates})", err=True)


def _run_in_silence(fit: Fit) -> dict[str, float]:
    try:
        return run_fit(fit, Watcher())
    except Interrupted:
        raise SystemExit(_INTERRUPTED) from None  # the first process says it for all
