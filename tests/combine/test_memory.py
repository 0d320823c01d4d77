"""The memory that combining takes does not grow with the store."""

import subprocess
import sys
from pathlib import Path

import pytest

# 45,000 × 1,000: 90 MB of soft labels and as much of logits in each store; as float32 one array
# takes 180 MB, and does not fit into the limit. Mapped files do not count; what is computed does,
# and the stacks of threads, 8 MiB each.
LIMIT_MIB = 160
PROGRAM = """
import resource, shutil, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pyarrow.parquet
import torch
from made_answers import make_answers
from pipeline.combine.average import average_stores
from pipeline.combine.diff import compare_stores
from pipeline.combine.merge import merge_stores
from pipeline.combine.npz import NpzColumns, write_npz
from pipeline.combine.parquet import ParquetColumns, write_parquet
from pipeline.combine.retemper import retemper_store
from pipeline.combine.source import ProvenStore
from pipeline.combine.subset import subset_store
from pipeline.combine.tables import store_of_table

torch.set_num_threads(1)
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
out, count = folder / "out.zarr", 45_000
if limit == 0:
    for seed in (0, 1):
        answers = make_answers(count, 1000, seed=seed)
        answers.write(folder / f"{seed}.zarr", rows=1000)
    same = replace(answers, logits=answers.logits[:, ::-1])
    same.write(folder / "1b.zarr", rows=1000)
    sys.exit()
other, one, same = (ProvenStore(folder / name) for name in ("0.zarr", "1.zarr", "1b.zarr"))
used = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
ceiling = used * 1024 + limit * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))

def table(write, read, name):
    write(one, folder / name)
    columns = read(folder / name)
    store_of_table(columns, out, replace=True)
    columns.close()

for name, operation in {
    "subset": lambda: subset_store(
        one, out, np.random.default_rng(0).permutation(count), replace=True
    ),
    "merge": lambda: merge_stores([one, other], out, replace=True),
    "average": lambda: average_stores([one, same], out, replace=True),
    "retemper": lambda: retemper_store(one, out, 3.0, replace=True),
    "top-k": lambda: retemper_store(one, out, 3.0, top_k=5, replace=True),
    "diff": lambda: compare_stores(one, same),
    "npz": lambda: table(write_npz, NpzColumns, "table.npz"),
    "parquet": lambda: table(write_parquet, ParquetColumns, "table.parquet"),
}.items():
    if name in sys.argv[3:]:
        print(name, flush=True)
        operation()
try:
    np.ones((count, 1000), np.float32)
except MemoryError:
    print("a whole array does not fit")
"""


def run(folder, limit, *operations):
    """The program's output, from a process of its own."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(limit), *operations],
        env={
            "PYTHONPATH": f"{root / 'tests'}:{root}",
            "OMP_NUM_THREADS": "1",
            # Arrow's own pool reserves far more than it uses.
            "ARROW_DEFAULT_MEMORY_POOL": "system",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-600:]
    return done.stdout


@pytest.mark.slow
def test_memory_is_that_of_a_few_chunks(tmp_path):
    """Each operation works in less memory than one array of the store would take."""
    run(tmp_path, 0)
    stores = ("subset", "merge", "average", "retemper", "top-k", "diff")
    # Tables in processes of their own: their packages keep memory that they have once used.
    for operations in (stores, ("npz",), ("parquet",)):
        told = [*operations, "a whole array does not fit"]
        assert run(tmp_path, LIMIT_MIB, *operations).splitlines() == told
