"""Zip archives of which any byte is another: read, or refused as an error of ours."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ltd_pipe.errors import LtdPipeError
from ltd_pipe.evaluation.results import read_arrays
from ltd_pipe.labels.foreign import load_arrays
from ltd_pipe.labels.tables import NpzTable
from ltd_pipe.models.foreign import _read_pickle

SOFT = np.random.default_rng(0).dirichlet(np.ones(3), 5).astype(np.float32)
ARRAYS = {"soft_labels": SOFT, "labels": np.arange(5) % 3, "sample_hash": np.arange(5, dtype="u8")}


def read_table(path):
    with contextlib.closing(NpzTable(path)) as table:
        table.read(np.arange(len(SOFT)))


READERS = {
    "a table": (np.savez, read_table),
    "a compressed table": (np.savez_compressed, read_table),
    "an evaluation's arrays": (np.savez, read_arrays),
    "another project's labels": (torch.save, lambda path: load_arrays(path.read_bytes(), path)),
    "another project's weights": (torch.save, _read_pickle),
}


@pytest.mark.parametrize(("save", "read"), READERS.values(), ids=READERS.keys())
def test_any_byte_may_be_another(tmp_path: Path, save, read):
    """One or two of them, anywhere; most of all in the directory, which is a tenth of the file."""
    path, rng = tmp_path / "archive.npz", np.random.default_rng(0)
    if save is torch.save:
        torch.save({"weight": torch.from_numpy(SOFT)}, path)
    else:
        save(path, **ARRAYS)
    read(path)
    whole, refused = np.frombuffer(path.read_bytes(), np.uint8), 0
    for _ in range(400):
        changed = whole.copy()
        begin = rng.choice([0, len(whole) * 3 // 4])
        changed[rng.integers(begin, len(whole), rng.integers(1, 3))] = rng.integers(256)
        path.write_bytes(changed.tobytes())
        try:
            read(path)
        except LtdPipeError:
            refused += 1
    assert refused > 50
