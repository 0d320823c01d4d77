"""Readers that share no code with ours see what ours sees, of every kind of store."""

import ast
import shutil
import sys
from pathlib import Path

import numpy as np
import plain_reader
import pytest
import tensorstore
import xarray
import zarr
from golden_store import WRITERS

from ltd_pipe.labels import SoftLabels

HERE = Path(__file__).parent
kinds = pytest.mark.parametrize("kind", WRITERS)


def stored(kind: str) -> dict[str, np.ndarray]:
    """All arrays of a golden store, as our reader has them."""
    opened = SoftLabels.open(HERE / f"{kind}.zarr")
    return {name: array.read() for name, array in opened.arrays.items()}


@kinds
def test_tensorstore_reads_it(kind):
    """Google's reader in C++, which checks each chunk's CRC-32C itself."""
    for name, ours in stored(kind).items():
        path = str(HERE / f"{kind}.zarr" / name)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        theirs = tensorstore.open(spec, open=True).result()
        np.testing.assert_array_equal(theirs.read().result(), ours)
        assert theirs.domain.labels == tuple(
            zarr.open_array(path, mode="r").metadata.dimension_names
        )


def test_tensorstore_finds_a_flipped_byte(tmp_path):
    """The checksum is where its specification says, not only where we look."""
    store = shutil.copytree(HERE / "golden.zarr", tmp_path / "a.zarr")
    chunk = store / "soft_labels" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / "soft_labels")}}
    with pytest.raises(ValueError, match="Digest mismatch"):
        tensorstore.open(spec, open=True).result().read().result()


@kinds
def test_zarr_and_xarray_read_it(kind):
    """With the names of the dimensions."""
    group = zarr.open_group(HERE / f"{kind}.zarr", mode="r")
    with xarray.open_zarr(HERE / f"{kind}.zarr", consolidated=True) as data:
        for name, ours in stored(kind).items():
            np.testing.assert_array_equal(group[name][:], ours)
            np.testing.assert_array_equal(data[name].values, ours)
            assert data[name].dims[0] == "sample"


@kinds
def test_python_and_numpy_are_enough(kind):
    """By the page alone: the arrays, and the rows that one trains on."""
    opened = SoftLabels.open(HERE / f"{kind}.zarr")
    facts, arrays, rows = plain_reader.read_store(opened.path)
    assert facts == opened.attributes.to_json()
    assert arrays.keys() == opened.arrays.keys()
    for name, ours in stored(kind).items():
        np.testing.assert_array_equal(arrays[name], ours)
    soft = opened.gather(np.arange(opened.num_samples)).astype(np.float32)
    soft /= soft.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(rows, soft, rtol=2**-10, atol=1e-7)


def test_the_plain_reader_is_plain():
    """Nothing but the standard library and NumPy."""
    tree = ast.parse(Path(plain_reader.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
        for node in imports
        for alias in node.names
    }
    assert names - sys.stdlib_module_names == {"numpy"}


def test_crc32c_is_castagnolis():
    """The check value that its specification gives (RFC 3720, appendix B.4)."""
    assert plain_reader.crc32c(b"123456789") == 0xE3069283
    assert plain_reader.crc32c(bytes(32)) == 0x8A9136AA


@kinds
def test_the_plain_reader_finds_damage(kind, tmp_path):
    """By the manifest, and by the chunk's own checksum when the manifest lies."""
    store = shutil.copytree(HERE / f"{kind}.zarr", tmp_path / "a.zarr")
    files = plain_reader.read_files(store)
    chunk = next(name for name in files if name.startswith("labels/c/"))
    (store / chunk).write_bytes(bytes(len(files[chunk])))
    with pytest.raises(ValueError, match=f"{chunk} is damaged"):
        plain_reader.read_store(store)
    metadata = zarr.open_array(store / "labels", mode="r").metadata.to_dict()
    metadata["chunk_grid"] = {"configuration": {"chunk_shape": [4]}}
    files[chunk] = files[chunk][:-4] + b"abcd"
    with pytest.raises(ValueError, match="labels: chunk 0 is damaged"):
        plain_reader.read_array(files, "labels", metadata | {"data_type": "int32"})
