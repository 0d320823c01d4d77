"""A process that uses stores which may harm it, within limits that the kernel holds it to.

`python victim.py` imports what a training run imports, once. Then each line of its input, a path,
is used in a child of its own, with so much processor time and memory that an honest small store
needs a fraction of it; one line of JSON says how that ended.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from ltd_pipe.errors import LtdPipeError
from ltd_pipe.labels import SoftLabelDataset, SoftLabels
from ltd_pipe.labels.verify import verify_store

# With it torch, which a training run has loaded long before it sees a store.
LOADED = SoftLabelDataset
CPU_SECONDS = 20
# Beyond what the imports take: the largest metadata and the largest manifest, as objects, fit.
MEMORY_MIB = 1536


def use(path: Path) -> None:
    """What a training run does with a store, and then what a careful person does."""
    store = SoftLabels.open(path)
    store.gather(np.arange(store.num_samples))
    verify_store(path)


def limit() -> None:
    """Ask the kernel to end or refuse us beyond the limits."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = mapped + MEMORY_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    used = int(time.process_time()) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + CPU_SECONDS + 5))
    # A pipe or a lock costs no processor time; nor does waiting for a core that others use.
    signal.alarm(15 * CPU_SECONDS)


def attempt(path: Path) -> dict[str, object]:
    """Use a store; what came of it."""
    try:
        use(path)
    except LtdPipeError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except BaseException as error:
        return {"error": type(error).__name__, "message": str(error)[:500], "uncaught": True}
    return {"error": None, "message": ""}


def resident_mib() -> float:
    """Memory that this process has in hand now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def in_child(path: Path) -> dict[str, object]:
    """`attempt` in a limited child; also its processor time in seconds and peak memory in MiB."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        limit()
        before = resident_mib()
        found = attempt(path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
        os.write(writing, json.dumps({**found, "peak_mib": peak}).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status, usage = os.wait4(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    found = json.loads(text) if text else {"error": f"ended with {ended}", "message": ""}
    return {**found, "cpu_s": usage.ru_utime + usage.ru_stime}


def main() -> None:
    """Answer each line."""
    for line in sys.stdin:
        print(json.dumps(in_child(Path(json.loads(line)))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
