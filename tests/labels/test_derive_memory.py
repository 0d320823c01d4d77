"""The memory that combining takes does not grow with the store."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_answers import make_answers

CLASSES = 1000
PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
import pyarrow.parquet
import torch
import zarr
from ltd_pipe.labels.diff import compare_stores
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.derive import average, merge
from ltd_pipe.labels.tables import NpzTable, write_npz
from ltd_pipe.labels.tables import ParquetTable, write_parquet
from ltd_pipe.labels.derive import retemper, subset

torch.set_num_threads(1)
folder, count, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
out = folder / "out.zarr"
other, one, same = (
    SoftLabels.open(folder / name) if (folder / name).exists() else None
    for name in ("0.zarr", "1.zarr", "1b.zarr")
)
# Each of zarr's threads has a stack, however many there are in the end.
zarr.config.set({"threading.max_workers": 1})
subset(one, np.arange(1)).write(folder / "first.zarr", replace=True)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
ceiling = used * 1024 + limit * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))

def table(write, read, name):
    write(one, folder / name)
    opened = read(folder / name)
    opened.to_store().write(out, replace=True)
    opened.close()

for name, operation in {
    "subset": lambda: subset(one, np.random.default_rng(0).permutation(count)),
    "merge": lambda: merge([one, other]),
    "average": lambda: average([one, same]),
    "retemper": lambda: retemper(one, 3.0),
    "top-k": lambda: retemper(one, 3.0, top_k=5),
    "diff": lambda: compare_stores(one, same),
    "npz": lambda: table(write_npz, NpzTable, "table.npz"),
    "parquet": lambda: table(write_parquet, ParquetTable, "table.parquet"),
}.items():
    if name in sys.argv[4:]:
        print(name, flush=True)
        derived = operation()
        if derived is not None and name != "diff":
            derived.write(out, replace=True)
try:
    np.ones((count, 1000), np.float32)
except MemoryError:
    print("a whole array does not fit")
"""


def run(folder, count, limit_mib, *operations):
    """Do operations in a process that may take so much memory; `count` is that of the stores."""
    root = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, (folder, count, limit_mib)), *operations],
        env={
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            # Arrow's own pool reserves far more than it uses.
            "ARROW_DEFAULT_MEMORY_POOL": "system",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-600:]
    assert done.stdout.splitlines() == [*operations, "a whole array does not fit"]


# One array of the store, as float32, takes 76 MiB, and does not fit into the limit. Mapped files do
# not count; what is computed does, and the stacks of threads, 8 MiB each.
COUNT, LIMIT_MIB = 20_000, 66
# Parquet writes groups of rows, and keeps a few in memory: the array has 168 MiB.
PARQUET_COUNT, PARQUET_LIMIT_MIB = 44_000, 150


@pytest.mark.slow
def test_memory_is_that_of_a_few_chunks(tmp_path):
    """Each operation works in less memory than one array of the store would take."""
    for seed in (0, 1):
        answers = make_answers(COUNT, CLASSES, seed=seed)
        answers.write(tmp_path / f"{seed}.zarr", rows=250)
    replace(answers, logits=answers.logits[:, ::-1]).write(tmp_path / "1b.zarr", rows=250)
    stores = ("subset", "merge", "average", "retemper", "top-k", "diff")
    # Tables in a process of their own: their packages keep memory that they have once used.
    for operations in (stores, ("npz",)):
        run(tmp_path, COUNT, LIMIT_MIB, *operations)


@pytest.mark.slow
def test_a_parquet_table_takes_the_memory_of_a_few_groups_of_rows(tmp_path):
    """Written and read again in less than one array of the store would take."""
    make_answers(PARQUET_COUNT, CLASSES).write(tmp_path / "1.zarr", rows=250)
    run(tmp_path, PARQUET_COUNT, PARQUET_LIMIT_MIB, "parquet")
