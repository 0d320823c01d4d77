"""PGD adversarial training beside torchattacks in a plain loop, and beside the bare passes.

    python bench/training.py                       ResNet-18, PGD-10, 32×32: minutes on two cores
    python bench/training.py --architecture wrn-34-10 --batch 128 --rounds 20       on a GPU
    python bench/training.py --quick               a tiny network: does it run?
    python bench/training.py --json bench/results/training.json

The digits of scikit-learn, enlarged to 32×32 RGB, with the crops and flips of CIFAR-10's recipes:
what is timed does not depend on what is on the pictures. The three ways take their steps in turns,
from the same initial weights, so that all meet the same machine. Ratios of each round, and last
how many times as many images/s as the plain loop, and which share of the floor.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from hardware import describe_machine, describe_software, load
from our_loop import BarePasses, OurLoop
from rival_loop import RivalLoop, torchattacks
from sklearn.datasets import load_digits
from tables import table
from timing import Clock, Spread

from pipeline.device import choose_device, deterministic
from pipeline.images.beton import open_beton, write_beton
from pipeline.images.sources import ArraySource
from pipeline.images.stream import ImageStream
from pipeline.params import PrepareParams, TeacherParams
from pipeline.training.passes import choose_passes
from pipeline.training.run import new_classifier

OURS, RIVAL, FLOOR = "ltd-pipe", "torchattacks, plain loop", "bare passes"


@click.command()
@click.option("--architecture", default="resnet18", show_default=True)
@click.option("--batch", default=64, show_default=True, help="Images per step.")
@click.option("--attack-steps", default=10, show_default=True)
@click.option("--rounds", default=8, show_default=True, help="Of one step in each way.")
@click.option("--warm-up", default=1, show_default=True, help="Rounds that are not counted.")
@click.option("--workers", default=0, show_default=True, help="Of the plain loop's loader.")
@click.option("--precision", default="auto", show_default=True)
@click.option("--compile", "compiled", default="auto", show_default=True)
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--quick", is_flag=True, help="A tiny network and two rounds.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write results here.")
def main(json_file: Path | None, quick: bool, **options: Any) -> None:
    """Time steps of adversarial training; see the file's first lines."""
    if torchattacks is None:
        raise click.ClickException("torchattacks is not installed: run 'make set-up' first")
    if quick:
        options |= {"architecture": "small-cnn-w8", "batch": 16, "attack_steps": 2, "rounds": 2}
    with tempfile.TemporaryDirectory() as folder, deterministic():
        result = _measure(Path(folder), **options)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    _show(result)


def _measure(
    folder: Path,
    *,
    architecture: str,
    batch: int,
    attack_steps: int,
    rounds: int,
    warm_up: int,
    workers: int,
    precision: str,
    compiled: str,
    device_name: str,
    seed: int,
) -> dict[str, Any]:
    device = choose_device(device_name)
    images, labels = _pictures()
    prepare = PrepareParams(dataset="digits", validation_fraction=0)
    source = ArraySource("digits", tuple(map(str, range(10))), images, labels.astype(np.int32))
    write_beton(source, folder / "train.beton", prepare, "train")
    beton = open_beton(folder / "train.beton")
    params = TeacherParams(
        architecture=architecture,
        epochs=1,
        batch_size=batch,
        learning_rate=0.05,
        momentum=0.9,
        ema_decay=0.999,
        precision=precision,
        channels_last="auto",
        compile=compiled,
    )
    model = new_classifier(params, beton.manifest, seed=seed, role="student", device=device)
    passes = choose_passes(params, model)
    settings = {
        "batch": batch,
        "attack_steps": attack_steps,
        "rate": params.learning_rate,
        "momentum": params.momentum,
        "weight_decay": params.weight_decay,
        "padding": 4,
    }
    torch.manual_seed(seed)
    rival = RivalLoop(copy.deepcopy(model.network), images, labels, settings, device, workers)
    floor = BarePasses(copy.deepcopy(model), passes, batch, attack_steps)
    stream = ImageStream(beton, device)
    ours = OurLoop(model, stream, np.arange(len(labels)), params, passes, settings, seed)
    clock, losses = Clock(), {OURS: [], RIVAL: []}

    def our_step() -> None:
        ours.step()
        losses[OURS].append(ours.mean_loss())

    for turn in range(warm_up + rounds):
        if turn == warm_up:
            clock = Clock()
        clock.time(RIVAL, lambda: losses[RIVAL].append(rival.step()))
        clock.time(OURS, our_step)
        clock.time(FLOOR, floor.step)
    compared = clock.comparison("a step", RIVAL, batch, "images")
    against_floor = clock.comparison("a step", FLOOR, batch, "images")
    return {
        "settings": settings | {"architecture": architecture, "rounds": rounds, "seed": seed},
        "passes": passes.decides,
        "passes_measured": passes.measured,
        "steps": compared.to_json(),
        "speedup": vars(Spread.of([1 / ratio for ratio in _ratios(clock, OURS, RIVAL)])),
        "share_of_floor": vars(Spread.of([1 / ratio for ratio in _ratios(clock, OURS, FLOOR)])),
        "floor": against_floor.to_json()["ways"][OURS]["ratio"],
        "losses": losses,
        "machine": describe_machine(),
        "software": describe_software() | {"torchattacks": torchattacks.__version__},
        "threads": torch.get_num_threads(),
        "load": load(),
    }


def _pictures() -> tuple[Any, Any]:
    """1,797 pictures of 32×32 RGB, dtype uint8, with their labels."""
    digits = load_digits()
    grey = (digits.images * 255 / 16).round().astype(np.uint8)
    large = grey.repeat(4, axis=1).repeat(4, axis=2)
    return np.stack([large] * 3, axis=3), digits.target.astype(np.int64)


def _ratios(clock: Clock, way: str, other: str) -> list[float]:
    pairs = zip(clock.seconds[way], clock.seconds[other], strict=True)
    return [ours / theirs for ours, theirs in pairs]


def _show(result: dict[str, Any]) -> None:
    batch = result["settings"]["batch"]
    rows = []
    for way, measured in result["steps"]["ways"].items():
        seconds = measured["seconds"]
        rates = [batch / seconds[name] for name in ("median", "high", "low")]
        loss = np.mean(result["losses"].get(way, [float("nan")]))
        rows.append([way, *(f"{rate:,.1f}" for rate in rates), f"{loss:.3f}"])
    print(table(["way", "images/s", "from", "to", "mean loss"], rows))
    print(
        f"\nPasses: {result['passes']}; load {result['load']}; n = {result['settings']['rounds']}"
    )
    for what, name in (("the plain loop's images/s", "speedup"), ("the floor", "share_of_floor")):
        ratio = result[name]
        print(f"{ratio['median']:.2f} of {what} ({ratio['low']:.2f} to {ratio['high']:.2f})")


if __name__ == "__main__":
    main()
