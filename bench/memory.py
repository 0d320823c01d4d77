"""Memory that a reader takes for itself, and how much of a file is in the page cache.

Run as a program, it opens a store and gathers from it in a process that has done nothing
else, and prints by how much the process's anonymous memory grew. Mapped pages of files are
not counted: they are the page cache, which the kernel gives to whoever needs it.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Peak", "cached_share", "read_through"]

_BLOCK = 8 * 2**20


# Runs beside the process that it watches until its standard input ends, so that no global
# interpreter lock keeps it from looking while NumPy works.
_WATCHER = """
import select, sys
most = 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.0002)[0]:
    with open(f"/proc/{sys.argv[1]}/status") as status:
        most = max(most, *(int(line.split()[1]) for line in status if line.startswith("RssAnon")))
print(most * 1024)
"""


class Peak:
    """The largest anonymous memory of this process while it is watched, in bytes."""

    def __init__(self) -> None:
        self.growth = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look some thousand times a second while the block runs."""
        command = [sys.executable, "-c", _WATCHER, str(os.getpid())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as watcher:
            assert watcher.stdout is not None  # noqa: S101
            watcher.stdout.readline()
            begin = _anonymous()
            try:
                yield
            finally:
                most, _ = watcher.communicate()
        self.growth = max(int(most) - begin, 0)


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


def read_through(paths: list[Path]) -> None:
    """Read files once, so that the page cache holds them if it can."""
    buffer = bytearray(_BLOCK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def cached_share(paths: list[Path]) -> float:
    """How much of these files is in the page cache, as a fraction of their pages."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    present = total = 0
    for path in paths:
        if not path.stat().st_size:
            continue
        mapped = np.memmap(path, np.uint8, mode="r")
        pages: NDArray[np.uint8] = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        if libc.mincore(mapped.ctypes.data, len(mapped), pages.ctypes.data):
            raise OSError(ctypes.get_errno(), "mincore")
        present += int((pages & 1).sum())
        total += len(pages)
    return present / max(total, 1)


def _measure(store_path: Path, seed: int, batch: int, rounds: int) -> dict[str, int]:
    from ltd_pipe.labels import SoftLabels  # noqa: PLC0415  (before the first look)

    opening = Peak()
    with opening.watched():
        store = SoftLabels.open(store_path)
    gather = store.gather if store.top_k is None else store.gather_topk
    rng = np.random.default_rng(seed)
    first = Peak()
    # An epoch's first batches check every chunk that they touch.
    with first.watched():
        for start in range(0, store.num_samples, 128 * batch):
            gather(np.arange(start, min(start + batch, store.num_samples)))
        for _ in range(rounds):
            gather(rng.integers(0, store.num_samples, batch))
    warm = Peak()
    with warm.watched():
        for _ in range(rounds):
            gather(rng.integers(0, store.num_samples, batch))
    return {"open": opening.growth, "first_gathers": first.growth, "warm_gathers": warm.growth}


if __name__ == "__main__":
    path, *numbers = sys.argv[1:]
    json.dump(_measure(Path(path), *map(int, numbers)), sys.stdout)
