"""Kills labelling runs at random and lets others continue them; prints what it found as JSON.

python killing.py FOLDER TRIALS SEED

Each run is a fork of this process, which has imported everything and started no thread. It dies
by SIGKILL: after a random time, or just before a random one of the calls by which it opens,
links, renames or removes files, which Python's audit hooks announce.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from small_labelling import label

CALLS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"}


def tree(folder: Path) -> dict[str, bytes] | None:
    """All files of a folder by name; None where there is no folder."""
    if not folder.exists():
        return None
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def start(work) -> int:
    """Run `work` in a fork; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def count_calls(limit: int, folder: Path, report: Path | None = None) -> None:
    """Die at the call of that number, of those that concern the folder."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in CALLS and str(folder) in str(arguments[0]):
            seen += 1
            if seen == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if report is not None:
        sys.addaudithook(
            lambda event, _: report.write_text(str(seen)) if event == "killing.done" else None
        )


def measure(folder: Path, kind: dict) -> tuple[dict[str, bytes], float, int]:
    """An undisturbed run: its store, how long it takes, and how many calls."""
    target, report = folder / "a.zarr", folder.parent / "calls"

    def work() -> None:
        count_calls(-1, folder, report)
        label(target, **kind)
        sys.audit("killing.done")

    begin = time.perf_counter()
    _, status = os.waitpid(start(work), 0)
    assert status == 0
    found = tree(target)
    assert found is not None
    return found, time.perf_counter() - begin, int(report.read_text())


def kill_once(folder: Path, kind: dict, seconds: float, calls: int, choice: random.Random) -> bool:
    """Start a run and kill it; False when it was too quick."""
    limit = choice.randint(1, calls) if choice.random() < 0.6 else -1

    def work() -> None:
        count_calls(limit, folder)
        label(folder / "a.zarr", **kind)

    child = start(work)
    if limit < 0:
        time.sleep(choice.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert status == 0, "a run failed by itself"
    return False


def trial(root: Path, choice: random.Random, kinds: list) -> dict[str, int]:
    """Kill runs on one store, at most three times, then finish it."""
    kind, new, seconds, calls = choice.choice(kinds)
    folder = root / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    old = None
    if choice.random() < 0.5:
        shutil.copytree(root / "old" / "a.zarr", folder / "a.zarr")
        old = tree(folder / "a.zarr")
    folder.mkdir(exist_ok=True)
    killed, found = 0, []
    for _ in range(choice.randint(1, 3)):
        killed += kill_once(folder, kind, seconds, calls, choice)
        now = tree(folder / "a.zarr")
        found.append("absent" if now is None else "old" if now == old else "new")
        assert now in (None, old, new), f"half-written: {sorted(now or {})}"
    _, status = os.waitpid(start(lambda: label(folder / "a.zarr", **kind)), 0)
    assert status == 0, "the run after a kill failed"
    assert tree(folder / "a.zarr") == new, "other bytes"
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["a.zarr"], f"left behind: {left}"
    return {"killed": killed, **{name: found.count(name) for name in set(found)}}


def main() -> None:
    """Kill and continue until so many runs were killed."""
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # Threads of torch's own do not survive a fork.
    torch.set_num_threads(1)
    choice = random.Random(seed)  # noqa: S311
    measure(root / "old", {"seed": 1})
    kinds = []
    for name, kind in {"dense": {}, "sparse": {"top_k": 3}}.items():
        kinds.append((kind, *measure(root / name, kind)))
    total: dict[str, int] = {"killed": 0, "trials": 0}
    while total["killed"] < kills:
        for name, number in trial(root, choice, kinds).items():
            total[name] = total.get(name, 0) + number
        total["trials"] += 1
    sys.stdout.write(json.dumps(total))


if __name__ == "__main__":
    main()
