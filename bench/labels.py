"""The soft-label store against np.memmap, zarr, HDF5 and LMDB: times, and ratios last.

    python bench/labels.py                          all sizes, 12 minutes on an idle machine, 20 GB
    python bench/labels.py --size imagenet          1,281,167 × 1,000 float16
    python bench/labels.py --quick                  tiny sizes: does it run?
    python bench/labels.py --json bench/results/labels.json

Everything is made from a seed in a temporary folder, and removed. What is compared is measured
in turns, round by round, with the files in the page cache unless the table says otherwise.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from answers import SIZES, Answers, Size, make_answers
from gathering import FLAT, OURS, cached, compare_buffers, compare_gathering, compare_rivals, draws
from hardware import cached_bytes_free, describe_machine, describe_software, load
from labelling import compare_labelling
from memory import read_through
from placing import compare_placing
from rivals import files_of
from sizing import measure_sizes, size_table
from stepping import fastest_step, measure_step
from tables import duration, ratio_table, size_rows, table, time_table
from timing import Comparison, Rounds, Spread
from verifying import compare_verifying
from writing import compare_writing, compare_writing_logits, write_store

from ltd_pipe.device import choose_device
from ltd_pipe.labels import SoftLabels

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCH = 512
# Flat files with logits, a store in the making beside the largest rival, which is LMDB.
_DISK_FACTOR, _CACHE_FACTOR = 7, 4


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    fast: Rounds
    slow: Rounds
    whole: Rounds
    # Architecture, pixels, images, and images per call.
    teachers: dict[str, tuple[str, int, int, int]]
    step: dict[str, Any]
    sized: int


_FULL = Plan(
    fast=Rounds(50, 400, 5),
    slow=Rounds(5, 100, 20),
    whole=Rounds(3, 3, 0),
    teachers={
        "cifar10": ("resnet18-w16", 32, 4096, 256),
        "imagenet": ("torchvision:resnet18", 224, 512, 64),
        "topk10m": ("torchvision:resnet18", 224, 512, 64),
    },
    step={"architecture": "resnet18", "batch": 128, "attack_steps": 10, "count": 3},
    sized=2048,
)
_QUICK = Plan(
    fast=Rounds(2, 2, 0),
    slow=Rounds(2, 2, 0),
    whole=Rounds(1, 1, 0),
    teachers=dict.fromkeys(SIZES, ("small-cnn-w8", 32, 64, 32)),
    step={"architecture": "resnet18-w4", "batch": 8, "attack_steps": 2, "count": 1},
    sized=64,
)
_QUICK_SAMPLES = {"cifar10": 2048, "imagenet": 6000, "topk10m": 20_000}


@click.command(context_settings={"max_content_width": 100})
@click.option("--size", type=click.Choice([*SIZES, "all"]), default="all", show_default=True)
@click.option("--quick", is_flag=True, help="Tiny sizes and few rounds: a test, no measurement.")
@click.option(
    "--scale",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of the samples: below 1 where disk or memory is small.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Of the temporary files."
)
@click.option(
    "--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write results."
)
def main(
    size: str,
    quick: bool,
    scale: float,
    device: str,
    seed: int,
    folder: Path | None,
    target: Path | None,
) -> None:
    """Measure the soft-label store against other ways of doing the same."""
    plan = _QUICK if quick else _FULL
    sizes = [_sized(SIZES[name], scale, quick=quick) for name in SIZES if size in (name, "all")]
    chosen = choose_device(device)
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "software": describe_software(),
        "device": chosen.type,
        "seed": seed,
        "quick": quick,
        "scale": scale,
        "batch": _BATCH,
        "sizes": {},
    }
    _print_header(results)
    named: list[tuple[str, Comparison]] = []
    with _temporary(folder, sizes) as inside:
        for one in sizes:
            found, facts = _measure_size(one, inside / one.name, plan, chosen, seed)
            shutil.rmtree(inside / one.name)
            named += [(one.name, comparison) for comparison in found]
            comparisons = [comparison.to_json() for comparison in found]
            results["sizes"][one.name] = facts | {"comparisons": comparisons}
        results["bytes"] = {
            "table": size_table(),
            "checked": measure_sizes(inside, seed, plan.sized),
        }
    results["step"] = measure_step(**plan.step, device=chosen, seed=seed)
    results["gpu"] = {"fastest_step_s": fastest_step(_BATCH)}
    _print_bytes(results["bytes"])
    _print_step(results, named)
    print("\n## Ratios: time over the baseline's in the same round\n")
    print(ratio_table(named))
    if target is not None:
        target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _sized(size: Size, scale: float, *, quick: bool) -> Size:
    return size.scaled(_QUICK_SAMPLES[size.name] / size.num_samples if quick else scale)


@contextmanager
def _temporary(folder: Path | None, sizes: list[Size]) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ltd-bench-", dir=folder) as made:
        needed = _DISK_FACTOR * max(size.sample_bytes * size.num_samples for size in sizes)
        free = shutil.disk_usage(made).free
        if free < needed:
            raise click.ClickException(
                f"{made}: expected {needed / 1e9:.1f} GB free, found {free / 1e9:.1f} GB. "
                "Pass another --folder, or --scale 0.1."
            )
        yield Path(made)


def _measure_size(
    size: Size, folder: Path, plan: Plan, device: Any, seed: int
) -> tuple[list[Comparison], dict[str, Any]]:
    """Everything about one size, printed as it is found."""
    payload = size.sample_bytes * size.num_samples
    kept = "all" if size.top_k is None else f"the {size.top_k} largest"
    print(f"\n## {size.name}: {size.num_samples:,} × {size.num_classes:,}, {kept}\n")
    facts: dict[str, Any] = {**vars(size), "bytes": payload, "load_before": load()}
    answers = make_answers(size, folder / "flat", seed)
    found = _measure_writing(answers, folder, plan)
    write_store(folder / "labels.zarr", answers)
    facts["memory"] = _memory(folder / "labels.zarr", seed)
    read_through([*files_of(folder / "labels.zarr"), *map(answers.path, answers.rows)])
    store = SoftLabels.open(folder / "labels.zarr")
    indices = draws(answers, min(_BATCH, size.num_samples), seed)
    found += _measure_gathering(answers, store, folder, indices, plan)
    facts["cached"] = cached(answers, store)
    found.append(compare_verifying(store.path, plan.whole))
    found.append(compare_placing(answers, store, indices, device, plan.fast))
    architecture, pixels, images, batch = plan.teachers[size.name]
    labelled = Size(size.name, images, size.num_classes, size.top_k)
    options = {"architecture": architecture, "pixels": pixels, "batch_size": batch}
    options |= {"device": device, "seed": seed, "rounds": plan.whole}
    found.append(compare_labelling(labelled, folder, **options))
    facts["load_after"] = load()
    print(time_table(found))
    _print_facts(facts, payload)
    return found, facts


def _measure_writing(answers: Answers, folder: Path, plan: Plan) -> list[Comparison]:
    found = []
    if answers.size.top_k is None:
        found.append(compare_writing_logits(answers, folder, plan.whole))
        answers.path("logits").unlink()
    return [*found, compare_writing(answers, folder, plan.whole)]


def _measure_gathering(
    answers: Answers, store: SoftLabels, folder: Path, indices: list[Any], plan: Plan
) -> list[Comparison]:
    first = compare_gathering(answers, store, indices, plan.fast)
    into = compare_buffers(answers, store, indices, plan.fast)
    return [first, into, *compare_rivals(answers, store, folder, indices, plan.slow)]


def _memory(store: Path, seed: int) -> dict[str, int]:
    # In a process of its own: this one has gathered already, and its memory has grown for that.
    script = Path(__file__).with_name("memory.py")
    command = [sys.executable, script, store, str(seed), str(_BATCH), "200"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _print_header(results: dict[str, Any]) -> None:
    if results["quick"]:
        print("--quick: tiny sizes and few rounds. These numbers mean nothing.\n")
    machine = results["machine"]
    print(", ".join(f"{key} {machine[key]}" for key in machine))
    print(", ".join(f"{name} {version}" for name, version in results["software"].items()))
    print(f"seed {results['seed']}, scale {results['scale']}, device {results['device']}", end=", ")
    print(f"batches of {results['batch']} different random rows; median and quartiles of n rounds")


def _print_facts(facts: dict[str, Any], payload: int) -> None:
    memory = facts["memory"]
    growth = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in memory.items())
    print(f"\nAnonymous memory beyond what the process had: {growth}.")
    state = "warm" if facts["cached"] > 0.99 else f"COLD: {facts['cached']:.0%} cached"
    if payload * _CACHE_FACTOR > cached_bytes_free():
        state += ", and the page cache may be too small for what is compared"
    print(f"Page cache {state}. Load before {facts['load_before']}, after {facts['load_after']}.")


def _print_bytes(found: dict[str, Any]) -> None:
    print("\n## Sizes\n")
    print(size_rows(found["table"]))
    for kind, store in found["checked"].items():
        print(
            f"\nChecked by a store of {store['samples']:,} samples ({kind}): chunks of "
            f"{store['chunk_bytes']:,} bytes, as the format says; metadata {store['other_bytes']:,}"
        )


def _print_step(results: dict[str, Any], named: list[tuple[str, Comparison]]) -> None:
    step, gpu = results["step"], results["gpu"]
    seconds = step["seconds"]["median"]
    print("\n## Share of a training step\n")
    print(
        f"{step['architecture']}, PGD-{step['attack_steps']}, {step['batch']} images, "
        f"{step['precision']} on {step['device']}: {duration(seconds)} (n={step['seconds']['n']})\n"
    )
    rows = [
        _share(size, comparison, seconds, gpu)
        for size, comparison in named
        if comparison.what == "gather" and comparison.baseline == FLAT
    ]
    fastest = [f"share, {name}, H100 at its peak" for name in gpu["fastest_step_s"]]
    header = ["size", f"gather {_BATCH}", "share of that step", "1 % of a step of", *fastest]
    print(table(header, rows))


def _share(size: str, comparison: Comparison, step: float, gpu: dict[str, Any]) -> list[str]:
    gather = Spread.of(comparison.seconds[OURS]).median
    shares = [f"{gather / seconds:.2%}" for seconds in gpu["fastest_step_s"].values()]
    return [size, duration(gather), f"{100 * gather / step:.2g} %", duration(100 * gather), *shares]


if __name__ == "__main__":
    main()
