"""How many processors this process may use, how its threads wait, and what memory it keeps."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import TypeVar

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Processors of this process's affinity, or fewer where a container's quota gives less."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota(cgroup: Path = _CGROUP) -> float | None:
    """The processors' worth of time that a container may use; None: as much as there is."""
    try:
        if (cgroup / "cpu.max").exists():
            given, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        else:  # version 1
            given = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii")
        return None if given in ("max", "-1") else int(given) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


_Result = TypeVar("_Result")
# A task of its own takes 1.7 KiB until all are done: gigabytes for millions.
_TOGETHER = 64


def in_threads(work: Callable[[int], _Result], count: int) -> Iterator[_Result]:
    """Results of `work(i)` for i from 0 to `count` - 1, in order, of as many threads as cores."""
    # Here, since every command begins with this module.
    from concurrent.futures import ThreadPoolExecutor

    def some(first: int) -> list[_Result]:
        return [work(i) for i in range(first, min(first + _TOGETHER, count))]

    with ThreadPoolExecutor(max(2, usable_cores())) as pool:
        for results in pool.map(some, range(0, count, _TOGETHER)):
            yield from results


# Of cgroup 2, and of 1: the limit, what is taken, and the facts with files that could be given up.
_NEW = ("memory.max", "memory.current", "memory.stat", "inactive_file")
_OLD = (
    *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    *("memory/memory.stat", "total_inactive_file"),
)


def memory_quota(cgroup: Path = _CGROUP) -> int | None:
    """Bytes that a container may take besides what it needs now; None: as many as there are."""
    names = _NEW if (cgroup / _NEW[0]).exists() else _OLD
    try:
        limit, taken, facts = ((cgroup / name).read_text(encoding="ascii") for name in names[:3])
        # Files that were read are kept in memory until it is needed.
        kept = next(line for line in facts.splitlines() if line.startswith(f"{names[3]} "))
        return max(int(limit) - int(taken) + int(kept.split()[1]), 0)
    except (OSError, ValueError, StopIteration):  # as where the limit is "max"
        return None


# libgomp's threads spin for 300 ms before they sleep, while a thread that they wait for may have no
# core: beside other processes small networks then run at a tenth of their speed. After so many
# turns, some microseconds, they sleep.
_SPIN = "1000"
# Whoever sets one of these has decided.
_POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def set_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what OpenMP and numba read when they are loaded, where the user has not.

    Of no effect once torch has been imported.
    """
    if "torch" in sys.modules:
        return
    if not any(name in environment for name in _POLICIES):
        environment["GOMP_SPINCOUNT"] = _SPIN
    cores = usable_cores()
    if cores < len(os.sched_getaffinity(0)):
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            environment.setdefault(name, str(cores))


# glibc gives the memory of a large tensor back when that is freed, and gets it anew for the next
# one: its pages are faulted in and zeroed in every pass, a fifth of the time of large batches.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES = 2**31 - 1
# Larger tensors than this come from the system each time; older versions allow the second.
_LARGEST_BYTES = 2**30, 2**25
_MALLOC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_memory() -> None:
    """Let freed tensors' memory stay with this process, up to 2 GiB, for those of the next pass.

    Unless the user has set how; of no effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in _MALLOC):
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST_BYTES)
