"""What a benchmark ran on: processor, memory, kernel, versions; no names and no paths."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from ltd_pipe.provenance import hardware, version_of

__all__ = ["cached_bytes_free", "describe_machine", "describe_software", "load"]

_PACKAGES = ("torch", "numpy", "zarr", "h5py", "lmdb", "google-crc32c")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and kernel."""
    # The kernel's version without what its builder appended.
    kernel = platform.release().partition("-")[0]
    return {
        **hardware(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_meminfo("MemTotal") / 2**30, 1),
        "kernel": f"{platform.system()} {kernel}",
    }


def describe_software() -> dict[str, str]:
    """Versions of Python and of every package that is measured."""
    versions = {name: version_of(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | versions


def load() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def cached_bytes_free() -> int:
    """Bytes that can hold cached files without anybody swapping."""
    return _meminfo("MemAvailable")


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return int(found[name].split()[0]) * 1024
