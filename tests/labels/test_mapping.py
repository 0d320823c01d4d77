"""Many files as one array."""

import gc
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from ltd_pipe.errors import StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.manifest import StoreFolder
from ltd_pipe.labels.reader import MappedArray

INT32 = np.dtype("<i4")
ROWS = np.arange(24, dtype=np.int32).reshape(4, 3, 2)


def write_files(folder: Path):
    """Four files of three rows of two numbers, and a checksum's room behind them."""
    paths = [folder / str(number) for number in range(4)]
    for path, rows in zip(paths, ROWS, strict=True):
        path.write_bytes(rows.tobytes() + b"abcd")
    return paths


def test_mapped_files_are_one_array(tmp_path):
    """Row r of file f is [f, r]; rows of all files are gathered in one call."""
    mapping = MappedArray(4, 28, (3, 2), INT32, tmp_path)
    for number, path in enumerate(write_files(tmp_path)):
        with path.open("rb") as file:
            content = mapping.map(number, file)
        assert content.tobytes() == path.read_bytes()
    np.testing.assert_array_equal(mapping.rows, ROWS)
    np.testing.assert_array_equal(mapping.rows[[3, 0], [1, 2]], ROWS[[3, 0], [1, 2]])


def test_mapped_rows_are_read_only(tmp_path):
    """A store is never changed by its reader."""
    mapping = MappedArray(4, 28, (3, 2), INT32, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        mapping.rows[0, 0, 0] = 1
    with write_files(tmp_path)[0].open("rb") as file, pytest.raises(ValueError, match="read-only"):
        mapping.map(0, file)[0] = 1


def addresses():
    return Path("/proc/self/maps").read_text().count(".zarr-part")


def test_memory_goes_with_the_last_array(tmp_path):
    """An array outlives its mapping; after it nothing is left mapped."""
    path = tmp_path / "a.zarr-part"
    path.write_bytes(bytes(8))
    mapping = MappedArray(1, 8, (2,), INT32, tmp_path)
    with path.open("rb") as file:
        mapping.map(0, file)
    rows = mapping.rows[0][1:]
    del mapping
    gc.collect()
    assert rows.tolist() == [0]
    assert addresses() == 1
    del rows
    gc.collect()
    assert addresses() == 0


def test_impossible_sizes_are_refused(tmp_path):
    """A store that claims more than there are addresses is one clear error."""
    with refused(StoreError, where=tmp_path, what="mapped"):
        MappedArray(2**30, 2**28, (2,), INT32, tmp_path)


def test_symbolic_links_are_not_followed(tmp_path):
    """Nobody swaps a chunk for a file outside the store between check and mapping."""
    (tmp_path / "real").write_bytes(bytes(8))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with refused(StoreError, where=tmp_path, what="link is a symbolic link"):
        StoreFolder(tmp_path).open("link", 8)


def test_an_opened_store_travels_to_another_process(store):
    """Pickled, it is its path: the other process maps the files itself."""
    there = pickle.loads(pickle.dumps(SoftLabels.open(store)))  # noqa: S301
    np.testing.assert_array_equal(there.gather([1]), SoftLabels.open(store).gather([1]))


def test_a_forked_process_reads_on(store):
    """What is mapped stays mapped for a DataLoader's worker."""
    labels = SoftLabels.open(store)
    first = labels.gather([1])
    child = os.fork()
    if child == 0:
        os._exit(0 if (labels.gather([1]) == first).all() and labels.gather([9]).any() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_working_directory_may_change(store, tmp_path, monkeypatch):
    """A relative path is resolved once, when the store is opened."""
    monkeypatch.chdir(store.parent)
    labels = SoftLabels.open(Path(store.name))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert labels.gather([9]).shape == (1, 3)
