"""How many passes over images each way of adversarial training takes to the same robustness.

    python bench/passes_to_robustness.py --images FOLDER      CIFAR-10 as class folders of files
    python bench/passes_to_robustness.py --quick              the digits, in a minute: does it run?
    python bench/passes_to_robustness.py --table              of the results that are there

A pass is one image, forward and backward: a number that is the same on every machine. Each way is
trained for several numbers of epochs, each with a one-cycle schedule of its own, on one-hot
labels; what counts is the moving average of the weights at the end, by APGD-CE and then APGD-T on
test images. A run is one line of the results; those that are there are not run again.
"""

from __future__ import annotations

import json
import logging
import math
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
import torch
from hardware import describe_machine, describe_software, load
from pyautoattack import AutoAttack
from rival_loop import RivalLoop, torchattacks
from scipy.stats import t
from tables import table

from ltd_pipe.attacks import Frozen
from ltd_pipe.device import PrecisionSettings, choose_device, choose_precision, deterministic
from ltd_pipe.images.beton import open_beton, write_betons
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.objectives import StepInfo
from ltd_pipe.params import PrepareParams, TeacherParams, TrainParams
from ltd_pipe.training.optim import WeightAverage, learning_rate
from ltd_pipe.training.run import (
    RunContext,
    new_classifier,
    split_samples,
    student_trainer,
    teacher_trainer,
)
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import Watcher

if TYPE_CHECKING:
    from ltd_pipe.images.beton import Beton

CPU = choose_device("cpu")
EPS = 8 / 255
RESULTS = Path(__file__).parent / "results" / "passes_to_robustness.jsonl"
# What all ways have in common.
COMMON = {
    "batch_size": 128,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "one-cycle",
    "ema_decay": 0.99,
    "crop_padding": 4,
    "flip": True,
}
ATTACK = {"eps": EPS, "objective": "at", "label_kind": "onehot", "overfitting_alarm": "off"}
TEACHER_EPOCHS = 12


class Way(NamedTuple):
    """A way of training: its parameters, and whether it begins as the teacher."""

    params: dict[str, Any]
    from_teacher: bool = False
    plain: bool = False


CARRIED = {"attack_start": "previous"}
PGD = {"attack_steps": 10, "step_size": 2 / 255}
NFGSM = {"attack": "n-fgsm"}
BASE = "PGD-10"
WAYS = {
    "PGD-10, torchattacks in a plain loop": Way(PGD, plain=True),
    BASE: Way(PGD),
    "PGD-10, from the teacher": Way(PGD, from_teacher=True),
    "N-FGSM": Way(NFGSM),
    "N-FGSM, from the teacher": Way(NFGSM, from_teacher=True),
    "previous, 1 step": Way(CARRIED),
    "previous, 1 step, from the teacher": Way(CARRIED, from_teacher=True),
    "previous, 2 steps": Way(CARRIED | {"attack_steps": 2}),
    "PGD, 2 to 10 steps": Way(PGD | {"attack_steps": "2..10"}),
}


class Data(NamedTuple):
    """What all runs of a network train and are tested on."""

    train: Beton
    stream: ImageStream
    images: torch.Tensor
    labels: torch.Tensor
    count: int
    precision: str


def open_data(folder: Path, source: Path | None, count: int, tested: int, precision: str) -> Data:
    """Betons of the images, written at the first call; test images in an order of their own."""
    paths = {split: folder / f"{split}.beton" for split in ("train", "test")}
    if not paths["test"].exists():
        where = {"dataset": "folder", "path": str(source)} if source else {"dataset": "digits"}
        params = PrepareParams(**where, validation_fraction=0.02)
        write_betons({split: open_source(params, split) for split in paths}, paths, params)
    train, test = (open_beton(path) for path in paths.values())
    rows = np.random.default_rng(0).permutation(test.manifest.num_samples)[:tested]
    batch = next(ImageStream(test, CPU).batches(rows, tested))
    return Data(train, ImageStream(train, CPU), batch.images / 255, batch.labels, count, precision)


def train(data: Data, architecture: str, way: Way, epochs: int, seed: int) -> Classifier:
    """The moving average of the weights at the end of a run."""
    params = TrainParams(
        **COMMON | ATTACK | way.params,
        architecture=architecture,
        epochs=epochs,
        images=data.count,
        validation_every=epochs,
        validation_attack_steps=1,
        snapshot_minutes=0,
    )
    manifest = data.train.manifest
    model = new_classifier(params, manifest, seed=seed, role="student", device=CPU)
    if way.from_teacher:
        model.load_state_dict(teacher_of(data, architecture, seed).state_dict())
    split = split_samples(data.train, data.count, seed)
    if way.plain:
        return train_plainly(data, model, params, split[0], seed)
    with TemporaryDirectory() as folder:
        context = RunContext(seed, Snapshots(Path(folder)), precision_of(data, architecture))
        trainer = student_trainer(model, data.stream, split, params, context)
        trainer.run(Watcher())
    return trainer.average


_teachers: dict[tuple[str, int], Classifier] = {}


def precision_of(data: Data, architecture: str) -> PrecisionSettings:
    """Of our ways, as asked for, with channels last; the plain loop is in float32."""
    return _chosen(architecture, data.train.manifest.shape, data.precision)


@cache
def _chosen(architecture: str, shape: tuple[int, int, int], asked: Any) -> PrecisionSettings:
    network = build(architecture, 10, shape)
    names = tuple("0123456789")
    model = Classifier(network, architecture=architecture, class_names=names, shape=shape)
    frozen = Frozen(model.eval()).current()
    return choose_precision(frozen, COMMON["batch_size"], precision=asked, channels_last=True)


def teacher_of(data: Data, architecture: str, seed: int) -> Classifier:
    """A network that was trained on the same images, clean."""
    if (architecture, seed) not in _teachers:
        params = TeacherParams(
            **COMMON,
            architecture=architecture,
            epochs=TEACHER_EPOCHS,
            images=data.count,
            snapshot_minutes=0,
        )
        manifest = data.train.manifest
        model = new_classifier(params, manifest, seed=seed, role="teacher", device=CPU)
        split = split_samples(data.train, data.count, seed)
        with TemporaryDirectory() as folder:
            context = RunContext(seed, Snapshots(Path(folder)), precision_of(data, architecture))
            trainer = teacher_trainer(model, data.stream, split, params, context)
            trainer.run(Watcher())
        _teachers[architecture, seed] = trainer.average
    return _teachers[architecture, seed]


def train_plainly(
    data: Data, model: Classifier, params: TrainParams, samples: np.ndarray, seed: int
) -> Classifier:
    """A plain loop around torchattacks, with the same schedule and the same moving average."""
    batch = next(data.stream.batches(samples, len(samples)))
    images, labels = batch.images.permute(0, 2, 3, 1).numpy(), batch.labels.numpy()
    settings = {
        "batch": params.batch_size,
        "attack_steps": params.steps_by_epoch[0],
        "rate": params.learning_rate,
        "momentum": params.momentum,
        "weight_decay": params.weight_decay,
        "padding": params.crop_padding,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loop = RivalLoop(model, images, labels, settings, CPU, workers=0)
        average = WeightAverage(model, params)
        total = params.epochs * (len(labels) // params.batch_size)
        for step in range(total):
            rate = learning_rate(params, step, total)
            loop.set_rate(rate)
            loop.step()
            average.update(model, StepInfo(step, total, epochs=params.epochs, learning_rate=rate))
    return average.model


def robustness(model: Classifier, data: Data, seed: int) -> dict[str, float]:
    """Accuracy on test images: clean, under APGD-CE, and under APGD-CE and APGD-T."""
    folded = Frozen(model.eval()).current()
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    attack = AutoAttack(folded, norm="Linf", eps=EPS, seed=seed, device=CPU)
    images, labels = data.images, data.labels
    with torch.no_grad():
        right = folded(images).argmax(dim=1) == labels
    accuracy = {"clean": right.float().mean().item()}
    for name in ("apgd-ce", "apgd-t"):
        rows, attack.attacks_to_run = right.nonzero().flatten(), [name]
        if len(rows):
            _, said = attack.run_standard_evaluation(images[rows], labels[rows], batch_size=250)
            right[rows] = said == labels[rows]
        accuracy[name] = right.float().mean().item()
    return accuracy


def passes(way: Way, epochs: int, images: int) -> int:
    """Forward and backward, of training images, without those of the teacher."""
    params = TrainParams(**ATTACK | way.params, architecture="", epochs=epochs)
    return images * sum(steps + 1 for steps in params.steps_by_epoch)


def run_all(
    data: Data,
    architecture: str,
    budgets: dict[str, tuple[int, ...]],
    seeds: tuple[int, ...],
    results: Path,
) -> None:
    """Train and attack whatever the results have not yet."""
    done = {
        tuple(row[name] for name in ("network", "way", "epochs", "seed", "images"))
        for row in read(results)
    }
    for seed in seeds:
        for name, lengths in budgets.items():
            for epochs in lengths:
                if (architecture, name, epochs, seed, data.count) in done:
                    continue
                way = WAYS[name]
                begin = time.monotonic()
                model = train(data, architecture, way, epochs, seed)
                seconds = time.monotonic() - begin
                row = {
                    "network": architecture,
                    "way": name,
                    "epochs": epochs,
                    "seed": seed,
                    "images": data.count,
                    "tested": len(data.labels),
                    "passes": passes(way, epochs, data.count),
                    "teacher_passes": TEACHER_EPOCHS * data.count if way.from_teacher else 0,
                    "seconds": round(seconds, 1),
                    **robustness(model, data, seed),
                    "precision": "float32"
                    if way.plain
                    else precision_of(data, architecture).precision,
                    "threads": torch.get_num_threads(),
                    "load": load(),
                    "machine": describe_machine(),
                    "software": describe_software(),
                }
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, sort_keys=True) + "\n")
                told = f"{row['clean']:.1%} clean, {row['apgd-t']:.1%} robust"
                click.echo(
                    f"{architecture}, {name}, {epochs} epochs, seed {seed}: {told}", err=True
                )


def read(results: Path) -> list[dict[str, Any]]:
    """The runs so far."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def half_interval(values: list[float]) -> float:
    """Half of the 95 % interval of a mean over seeds, by Student's t."""
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    return float(t.ppf(0.975, len(values) - 1) * scale)


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds, in percent."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1%}"
    return f"{100 * mean:.1f} ± {100 * half_interval(values):.1f} %"


def apart(found: list[dict[str, Any]], base: list[dict[str, Any]], measure: str) -> str:
    """The mean difference within a seed, in points, with its 95 % interval."""
    of = {row["seed"]: row[measure] for row in base}
    values = [row[measure] - of[row["seed"]] for row in found if row["seed"] in of]
    if found is base or len(values) < 2:
        return ""
    mean, half = 100 * float(np.mean(values)), 100 * half_interval(values)
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})".replace("-", "−")


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """For each network a table of its ways and numbers of epochs, by passes.

    Differences are between runs of the same seed.
    """
    lines = []
    for network in sorted({row["network"] for row in rows}):
        of = [row for row in rows if row["network"] == network]
        groups: dict[tuple[int, str, int], list[dict[str, Any]]] = {}
        for row in of:
            groups.setdefault((row["passes"], row["way"], row["epochs"]), []).append(row)
        base = max((key for key in groups if key[1] == BASE), default=None)
        against = [] if base is None else groups[base]
        cells = [
            [
                way,
                f"{epochs}",
                f"{count / 1e6:.2f}",
                f"{np.median([row['seconds'] for row in found]):,.0f}",
                interval([row["clean"] for row in found]),
                interval([row["apgd-t"] for row in found]),
                *(apart(found, against, measure) for measure in ("clean", "apgd-t")),
                f"{len(found)}",
            ]
            for (count, way, epochs), found in sorted(groups.items())
        ]
        head = ["way", "epochs", "million passes", "seconds", "clean", "APGD-CE + APGD-T"]
        head += ["clean less PGD-10's longest", "robust less that", "seeds"]
        lines += [f"{network}:", "", table(head, cells), ""]
        lines += reach(network, groups)
    return lines


def reach(network: str, groups: dict[tuple[int, str, int], list[dict[str, Any]]]) -> list[str]:
    """The fewest passes with which each way has PGD-10's best accuracy less one point."""
    means = {key: float(np.mean([row["apgd-t"] for row in found])) for key, found in groups.items()}
    ours = {key: mean for key, mean in means.items() if key[1] == BASE}
    if not ours:
        return []
    best = max(ours.values())
    needed = min(count for (count, _, _), mean in ours.items() if mean >= best - 0.01)
    lines = [f"{network}: PGD-10 reaches {best:.1%} less one point in {needed / 1e6:.2f} million:"]
    for way in dict.fromkeys(name for _, name, _ in sorted(groups)):
        reached = [key[0] for key, mean in means.items() if key[1] == way and mean >= best - 0.01]
        told = f"{min(reached) / needed:.2f} of its passes" if reached else "not reached"
        lines.append(f"  {way}: {told}")
    return [*lines, ""]


# Epochs of each way: the first three tell most, and are run first.
BUDGETS = {
    "PGD-10": (4, 12),
    "previous, 1 step": (6, 12, 24),
    "N-FGSM": (6, 12, 24),
    "previous, 1 step, from the teacher": (6, 12),
    "N-FGSM, from the teacher": (12,),
    "previous, 2 steps": (12,),
    "PGD, 2 to 10 steps": (12,),
    "PGD-10, from the teacher": (4,),
    "PGD-10, torchattacks in a plain loop": (12,),
}


@click.command()
@click.option("--images", type=click.Path(path_type=Path, exists=True), help="Folder of CIFAR-10.")
@click.option("--network", "networks", multiple=True, default=("small-cnn", "resnet18-w16"))
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), help="Only these.")
@click.option("--epochs", multiple=True, type=int, help="Only these numbers of epochs.")
@click.option("--train-images", default=10_000, show_default=True)
@click.option("--test-images", default=1000, show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--precision", default="auto", help="Of our ways: float32, bfloat16 or as measured.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--quick", is_flag=True, help="The digits, a tiny network, one epoch of each way.")
@click.option("--table", "only_table", is_flag=True, help="Train nothing.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the betons here.")
def main(
    images: Path | None,
    networks: tuple[str, ...],
    ways: tuple[str, ...],
    epochs: tuple[int, ...],
    train_images: int,
    test_images: int,
    seeds: tuple[int, ...],
    precision: str,
    results: Path,
    quick: bool,
    only_table: bool,
    folder: Path | None,
) -> None:
    """Count the passes to the same robustness; see the file's first lines."""
    chosen = {name: epochs or BUDGETS[name] for name in ways or BUDGETS}
    with TemporaryDirectory() as made:
        if quick:
            if results == RESULTS:  # of real runs
                results = Path(made) / RESULTS.name
            networks, seeds, images = ("small-cnn-w8",), (0, 1), None
            train_images, test_images = 256, 50
            chosen = dict.fromkeys(chosen, (2,))
        if torchattacks is None:
            chosen = {name: lengths for name, lengths in chosen.items() if not WAYS[name].plain}
        if not only_table:
            if images is None and not quick:
                raise click.UsageError("--images: where is CIFAR-10, as class folders of files?")
            kept = folder or Path(made)
            kept.mkdir(parents=True, exist_ok=True)
            with deterministic():
                data = open_data(kept, images, train_images, test_images, precision)
                for network in networks:
                    run_all(data, network, chosen, seeds, results)
        click.echo("\n".join(summary(read(results))))


if __name__ == "__main__":
    main()
