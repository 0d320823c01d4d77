"""Students on training labels of which some are wrong, on labels of several kinds.

    python study.py digits --seeds 5             rows go to digits/rows.jsonl
    python study.py digits --quick --rows FILE   half a minute: does it run?

A run is a student: prepared images, a teacher on the same wrong labels, its store, training and
evaluation, by ltd-pipe's own commands. Runs that are there are not made again; one that was killed
goes on, unless parameters were changed. The most telling come first: seed by seed, then by CELLS,
then by ARMS.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from common import append_row, ltd_pipe, matching_smoothing, read_rows, settings

from ltd_pipe.errors import LtdPipeError, ParamsError
from ltd_pipe.images.beton import open_beton
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.models.facts import read_facts
from ltd_pipe.provenance import digest
from ltd_pipe.publish import exclusive

HERE = Path(__file__).resolve().parent
CALIBRATED = "auto:calibrated"


class Arm(NamedTuple):
    """A way to train a student: its labels' temperature, None for no store, and its options."""

    temperature: str | None
    options: tuple[str, ...] = ()


ARMS = {
    "one-hot": Arm(None, ("--label-kind", "onehot")),
    "soft, calibrated": Arm(CALIBRATED),
    "soft, calibrated; attack on the target": Arm(CALIBRATED, ("--attack-label", "target")),
    "soft, calibrated, rectified": Arm(CALIBRATED, ("--rectify",)),
    "soft, 0.9": Arm("auto:0.9"),
    "soft, 0.9; attack on the target": Arm("auto:0.9", ("--attack-label", "target")),
    "soft, 0.99 (the default)": Arm("auto:0.99"),
    "soft, 0.99; attack on the target": Arm("auto:0.99", ("--attack-label", "target")),
    "soft, 0.99; attack on the likeliest": Arm("auto:0.99", ("--attack-label", "likeliest")),
    "soft, 0.6 (high temperature)": Arm("auto:0.6"),
    # So cold that nothing but its likeliest class is left: relabelling, no softness.
    "the teacher's hard answers": Arm("0.001", ("--attack-label", "likeliest")),
    # At the entropy of this store's labels.
    "smoothed, entropy of calibrated": Arm(CALIBRATED, ("--label-kind", "smooth")),
}


class Cell(NamedTuple):
    """Which share of the training labels is wrong, and what they are instead."""

    share: float
    to: str = "uniform"

    def __str__(self) -> str:
        """As the table has it."""
        return f"{100 * self.share:g} % {self.to}" if self.share else "none wrong"


CELLS = (
    *(Cell(0.2), Cell(0.4), Cell(0)),
    *(Cell(0.4, "similar"), Cell(0.2, "similar"), Cell(0.1), Cell(0.1, "similar")),
)
# What --quick changes.
QUICK = {
    "teacher.epochs": 2,
    "teacher.architecture": "small-cnn-w8",
    "train.epochs": 2,
    "train.architecture": "small-cnn-w8",
    "train.attack_steps": 1,
    "evaluate.images": 8,
}


@dataclass(frozen=True)
class Job:
    """The runs of one seed and one cell, which share images and teacher."""

    data: str
    cell: Cell
    seed: int
    arms: tuple[str, ...]
    rows: Path
    work: Path
    changes: dict[str, object]

    def run(self) -> None:
        """Make the runs that the rows have not yet, and add a row for each."""
        done = {key_of(row) for row in read_rows(self.rows)}
        left = [arm for arm in self.arms if (arm, *self.cell, self.seed) not in done]
        if not left:
            return
        params = (HERE / self.data / "params.yaml").read_text(encoding="utf-8")
        made_by = digest([params, self.changes])[:8]
        folder = self.work / f"{self.cell.to}-{self.cell.share:g}-{self.seed}-{made_by}"
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as during:
            during.enter_context(exclusive(folder, "--work"))
            log = during.enter_context((folder / "log.txt").open("a"))
            during.enter_context(contextlib.redirect_stdout(log))
            during.enter_context(contextlib.redirect_stderr(log))
            for arm in left:
                begin = time.monotonic()
                try:
                    row = self._row(folder, arm)
                except ParamsError as error:
                    # Where the teacher's answers on the validation split are all right.
                    if not error.what.startswith(CALIBRATED):
                        raise
                    row = {"arm": arm, **self.cell._asdict(), "seed": self.seed}
                    row["refused"] = error.found
                append_row(self.rows, row | {"seconds": round(time.monotonic() - begin, 1)})
            shutil.rmtree(folder)

    def _row(self, folder: Path, name: str) -> dict[str, Any]:
        arm, data, teacher = ARMS[name], folder / "data", folder / "teacher/model.safetensors"
        share, to = self.cell
        wrong = {"wrong_labels": share, "wrong_labels_to": to, "wrong_labels_seed": self.seed}
        given = settings({f"prepare.{name}": one for name, one in wrong.items()}) if share else ()
        self._once(data / "test.beton.json", "prepare", *given, "--out", data)
        self._once(teacher, "teacher", "--data", data, "--out", teacher.parent)
        row = {"data": self.data, "arm": name, **self.cell._asdict(), "seed": self.seed}
        row |= self._teacher(teacher, folder)
        options = list(arm.options)
        if arm.temperature:
            store = folder / f"{arm.temperature.removeprefix('auto:')}.zarr"
            beton = ("--teacher", teacher, "--data", data / "train.beton")
            self._once(store, "label", *beton, "--temperature", arm.temperature, "--out", store)
            labels = SoftLabels.open(store)
            summary = labels.summary()
            row |= {"temperature": labels.attributes.temperature, **vars(summary)}
            del row["warnings"]
            if "smooth" in arm.options:
                alpha = matching_smoothing(summary.mean_entropy, labels.num_classes)
                options += ["--smoothing", round(alpha, 6)]
                row["smoothing"] = alpha
            else:
                options += ["--labels", store]
        # By arm: of a run that was killed, no other arm goes on.
        student = folder / name
        beton = ("--data", data / "train.beton", "--out", student)
        self._once(student / "model.safetensors", "train", *beton, *options)
        for which in ("model", "last"):
            metrics = student / f"{which}-metrics.json"
            more = () if which == "model" else ("--autoattack", "none")
            given = (student / f"{which}.safetensors", "--data", data / "test.beton", *more)
            self._once(metrics, "evaluate", *given, "--metrics", metrics, "--out", student / which)
            row[{"model": "best"}.get(which, which)] = measured(metrics)
        row["epoch"] = read_facts(student / "model.safetensors")["epoch"] + 1
        shutil.rmtree(student)
        return row

    def _teacher(self, teacher: Path, folder: Path) -> dict[str, float]:
        """How good it is, and on training images how often right and how often as they say."""
        right, store = folder / "right", folder / "teacher.zarr"
        data = folder / "data/train.beton"
        self._once(right / "test.beton.json", "prepare", "--out", right)
        given = ("--teacher", teacher, "--data", data, "--out", store)
        self._once(store, "label", *given, "--temperature", 1)
        truth, said = open_beton(right / "train.beton").labels, open_beton(data).labels
        answers = SoftLabels.open(store).gather(np.arange(len(truth))).argmax(axis=1)
        return {
            "wrong": float((truth != said).mean()),
            "teacher_clean": read_facts(teacher)["clean_accuracy"],
            "teacher_right": float((answers == truth).mean()),
            "teacher_as_given": float((answers == said).mean()),
        }

    def _once(self, made: Path, command: str, *words: object) -> None:
        """Run a command, unless what it makes is there."""
        if not made.exists():
            given = settings({"seed": self.seed, **self.changes})
            ltd_pipe(command, "--params", HERE / self.data / "params.yaml", *given, *words)


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one run from another."""
    return row["arm"], row["share"], row["to"], row["seed"]


def measured(metrics: Path) -> dict[str, float]:
    """The accuracies that the table is made of."""
    content = json.loads(metrics.read_text(encoding="utf-8"))
    names = {
        "n": "n",
        "clean": "clean_accuracy",
        "pgd": "pgd_accuracy",
        "cw": "cw_50_accuracy",
        "autoattack": "autoattack_accuracy",
        "ece": "expected_calibration_error",
    }
    return {name: content[key] for name, key in names.items() if content.get(key) is not None}


def run(job: Job) -> str:
    """Run a job in a process of its own thread; what it was."""
    torch.set_num_threads(1)
    job.run()
    return f"{job.data}, seed {job.seed}, {job.cell}"


@click.command()
@click.argument("data", type=click.Choice(["digits", "cifar10"]))
@click.option("--seeds", default=5, show_default=True)
@click.option("--cells", default=len(CELLS), show_default=True, help="The first so many.")
@click.option("--arm", "arms", multiple=True, type=click.Choice(list(ARMS)), help="Only these.")
@click.option("--workers", default=1, show_default=True, help="Processes of one thread each.")
@click.option("--rows", type=click.Path(path_type=Path), help="Default: DATA/rows.jsonl.")
@click.option("--work", type=click.Path(path_type=Path), help="Default: DATA/work, FILE.work.")
@click.option("--quick", is_flag=True, help="One seed and cell of tiny networks; needs --rows.")
def main(
    data: str,
    seeds: int,
    cells: int,
    arms: tuple[str, ...],
    workers: int,
    rows: Path | None,
    work: Path | None,
    quick: bool,
) -> None:
    """Make the runs that are not there yet; see the file's first lines."""
    results = HERE / data / "rows.jsonl"
    if quick:
        seeds = cells = 1
        if rows is None or rows.resolve() == results:
            raise click.UsageError("--quick makes no results: give it --rows of its own")
    if rows is None:
        rows, work = results, work or results.with_name("work")
    rows, work = rows.resolve(), (work or rows.with_suffix(".work")).resolve()
    rows.parent.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(data, cell, seed, arms or tuple(ARMS), rows, work, QUICK if quick else {})
        for seed in range(seeds)
        for cell in CELLS[:cells]
    ]
    # The folder of images that params.yaml names is beside it.
    with contextlib.chdir(HERE / data), contextlib.ExitStack() as pool:
        if workers == 1:
            ended = map(run, jobs)
        else:
            spawn = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            ended = pool.enter_context(spawn).map(run, jobs)
        try:
            for what in ended:
                click.echo(what, err=True)
        except LtdPipeError as error:
            raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
