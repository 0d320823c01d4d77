"""What one step of adversarial training puts on a GPU: launches, copies, waits, layout conversions.

    python bench/launches.py                                ResNet-18, batches of 256, PGD-10
    python bench/launches.py --compile reduce-overhead --json bench/results/launches.json

These are counts and no times: they need a CUDA device, or a CUDA runtime that counts and computes
nothing (a module `kernels` on the path that has `reset` and `read`), and are the same on both.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from entrants import Entrants
from tables import table
from torch.profiler import ProfilerActivity, profile

from ltd_pipe.device import deterministic
from ltd_pipe.training import recorded

if TYPE_CHECKING:
    from collections.abc import Callable

# What a profiler calls them: calls of CUDA by their names, kernels by what C++ makes of theirs.
_KINDS = {
    "launches": r"^cu(da)?LaunchKernel",
    "copies": r"^cudaMemcpy",
    "memsets": r"^cudaMemset",
    "graph replays": r"^cudaGraphLaunch",
    "layout conversions": r"nchwToNhwc|nhwcToNchw",
}


def count(step: Callable[[], object], warm_up: int, stub: Any) -> dict[str, int]:
    """The counts of one call, after some that set kernels, caches and graphs up."""
    for _ in range(warm_up):
        step()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            found = _counted(step, stub) if stub else _profiled(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)
    return {**found, "waits": waits}


def _counted(step: Callable[[], object], stub: Any) -> dict[str, int]:
    stub.reset()
    step()
    counts, _ = stub.read()
    return {
        "launches": counts["launch"],
        "copies": sum(counts[name] for name in ("h2d", "d2h", "d2d") if name in counts),
        "memsets": counts["memset"],
        "graph replays": counts["graph"],
        "layout conversions": sum(counts["layout_conversions"].values()),
    }


def _profiled(step: Callable[[], object]) -> dict[str, int]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    counts: Counter[str] = Counter()
    for event in trace.events():
        for kind, pattern in _KINDS.items():
            counts[kind] += bool(re.search(pattern, event.name))
    return {kind: counts[kind] for kind in _KINDS}


@click.command()
@click.option("--architecture", default="resnet18", show_default=True)
@click.option("--batch", default=256, show_default=True, help="Images per step.")
@click.option("--attack-steps", default=10, show_default=True)
@click.option("--precision", default="bfloat16", show_default=True)
@click.option("--compile", "compiled", multiple=True, default=("none",), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write results here.")
def main(
    architecture: str,
    batch: int,
    attack_steps: int,
    precision: str,
    compiled: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Count what a step launches; see the file's first lines."""
    if not torch.cuda.is_available():
        click.echo("no GPU here: nothing was counted")
        return
    # Before the first kernel, in whose place it stands.
    stub: Any = importlib.import_module("kernels") if importlib.util.find_spec("kernels") else None
    if not all(hasattr(stub, name) for name in ("reset", "read")):
        stub = None  # another package of that name
    if stub is not None:
        # What computes nothing gives a recorded attack nothing to be held against.
        recorded._PROVED = 0
    rows = {}
    for mode in compiled:
        with tempfile.TemporaryDirectory() as folder, deterministic():
            ours = Entrants.of(
                Path(folder),
                architecture=architecture,
                batch=batch,
                attack_steps=attack_steps,
                workers=0,
                precision=precision,
                compiled=mode,
                device_name="cuda",
                seed=0,
                channels_last=True,
                rivalled=False,
            ).ours
            rows[mode] = count(ours.step, 3 if mode == "none" else 6, stub)
    settings = {"architecture": architecture, "batch": batch, "attack_steps": attack_steps}
    settings |= {"precision": precision, "torch": torch.__version__, "counts": rows}
    if json_file is not None:
        json_file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    head = ["compile", *next(iter(rows.values()))]
    click.echo(table(head, [[mode, *map(str, row.values())] for mode, row in rows.items()]))


if __name__ == "__main__":
    main()
