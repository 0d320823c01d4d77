"""PGD adversarial training beside torchattacks in a plain loop, and beside the bare passes.

    python bench/training.py                       ResNet-18, PGD-10, 32×32: minutes on two cores
    python bench/training.py --architecture wrn-34-10 --batch 128 --rounds 20       on a GPU
    python bench/training.py --quick               a tiny network: does it run?
    python bench/training.py --curve 150           and their loss curves: minutes more
    python bench/training.py --json bench/results/training.json

The digits of scikit-learn, enlarged to 32×32 RGB, with the crops and flips of CIFAR-10's recipes:
what is timed does not depend on what is on the pictures. The three ways take their steps in turns,
from the same initial weights, so that all meet the same machine. Ratios of each round, and last
how many times as many images/s as the plain loop, and which share of the floor.

`--curve STEPS` then trains ours and the plain loop on from equal initial weights, for each seed:
small-cnn of width 8, PGD-3, batches of 64, in the precision that was timed. Both take SGD at the
same constant rate with momentum and weight decay on all weights, and attack in evaluation mode.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from curves import compare_curves, curve_lines
from entrants import FLOOR, OURS, RIVAL, Entrants
from hardware import describe_machine, describe_software, load
from rival_loop import torchattacks
from tables import table
from timing import Clock, Spread

from ltd_pipe.device import deterministic

if TYPE_CHECKING:
    from collections.abc import Callable

# Steps after which a compiled network's graphs are recorded.
_RECORDED = 4
# What the loss curves are of.
_CURVE_OF = {
    "architecture": "small-cnn-w8",
    "batch": 64,
    "attack_steps": 3,
    "compiled": "none",
}


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
@click.option("--curve", default=0, show_default=True, help="Steps of the loss curves; 0: none.")
@click.option("--curve-seeds", default=3, show_default=True, help="How many curves each.")
@click.option("--quick", is_flag=True, help="A tiny network, two rounds, curves of six steps.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write results here.")
def main(json_file: Path | None, quick: bool, curve: int, curve_seeds: int, **options: Any) -> None:
    """Time steps of adversarial training; see the file's first lines."""
    if torchattacks is None:
        raise click.ClickException("torchattacks is not installed: run 'make set-up' first")
    if 0 < curve < 3:
        raise click.BadParameter("expected 3 steps at least", param_hint="'--curve'")
    if quick:
        options |= {"architecture": "small-cnn-w8", "batch": 16, "attack_steps": 2, "rounds": 2}
        curve, curve_seeds = 6, 2
    with tempfile.TemporaryDirectory() as folder, deterministic():
        result = _measure(Path(folder), **options)
        if curve:
            result["curves"] = _compare(
                Path(folder), curve, curve_seeds, options, result["passes"]["precision"]
            )
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    _show(result)


def _measure(
    folder: Path, *, rounds: int, warm_up: int, seed: int, **options: Any
) -> dict[str, Any]:
    entrants = Entrants.of(folder, seed=seed, **options)
    settings, precision = entrants.settings, entrants.precision
    clock, losses = Clock(), {OURS: [], RIVAL: []}
    steps = entrants.steps()
    if precision.compiled != "none":
        warm_up = max(warm_up, _RECORDED)
    for turn in range(warm_up + rounds):
        if turn == warm_up:
            clock = Clock()
        for way in (RIVAL, OURS):
            clock.time(way, lambda way=way: losses[way].append(steps[way]()))
        clock.time(FLOOR, entrants.floor.step)
    batch = settings["batch"]
    compared = clock.comparison("a step", RIVAL, batch, "images")
    against_floor = clock.comparison("a step", FLOOR, batch, "images")
    return {
        "settings": settings | {"rounds": rounds, "seed": seed},
        "passes": precision.decides,
        "passes_measured": precision.measured,
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


def _compare(
    folder: Path, steps: int, seeds: int, options: dict[str, Any], precision: str
) -> dict[str, Any]:
    how = {name: options[name] for name in ("workers", "device_name")} | _CURVE_OF
    made: list[Entrants] = []

    def loops(seed: int) -> dict[str, Callable[[], float]]:
        # Not before their turn: torch's generator is one for all.
        made.append(Entrants.of(folder, seed=seed, precision=precision, **how))
        return made[-1].steps()

    first = options["seed"]
    curves = compare_curves(loops, steps, range(first, first + seeds))
    return {"settings": made[0].settings, "passes": made[0].precision.decides} | curves


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
    if "curves" in result:
        print(f"\n{curve_lines(result['curves'])}")
    print(
        f"\nPasses: {result['passes']}; load {result['load']}; n = {result['settings']['rounds']}"
    )
    for what, name in (("the plain loop's images/s", "speedup"), ("the floor", "share_of_floor")):
        ratio = result[name]
        print(f"{ratio['median']:.2f} of {what} ({ratio['low']:.2f} to {ratio['high']:.2f})")


if __name__ == "__main__":
    main()
