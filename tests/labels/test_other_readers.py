"""A store is read without our software: zarr, xarray, sha256sum, and forty lines of NumPy."""

import json
import re
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import xarray
import zarr
from made_answers import attributes

from ltd_pipe.labels import SoftLabels


def test_the_lines_that_the_specification_shows(store, monkeypatch):
    """The code block of docs/soft-label-store.md, run as it stands there."""
    page = Path(__file__).parents[2] / "docs" / "soft-label-store.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(store.parent)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102
    ours = SoftLabels.open(store)
    np.testing.assert_allclose(found["rows"], ours.gather(np.arange(11)), rtol=2**-10)
    np.testing.assert_allclose(found["rows"].sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found["labels"], ours.labels)
    np.testing.assert_array_equal(found["sample_hash"], ours.sample_hash)
    assert found["facts"]["temperature"] == 2.0


def test_our_metadata_are_what_zarr_writes(store):
    """Each array's zarr.json, as zarr reads and writes it back."""
    for name, array in zarr.open_group(store, mode="r").arrays():
        ours = json.loads((store / name / "zarr.json").read_text())
        again = array.metadata.to_dict()
        assert json.loads(json.dumps(again, default=str)).keys() == ours.keys()
        assert [codec["name"] for codec in ours["codecs"]] == ["bytes", "crc32c"]
        assert array.metadata.dimension_names[0] == "sample"


def test_a_store_that_zarr_wrote_is_read(store, tmp_path):
    """Plain zarr with these codecs gives the same chunk files, byte by byte."""
    ours = zarr.open_group(store, mode="r")
    theirs = zarr.create_group(tmp_path / "zarr")
    for name, array in ours.arrays():
        made = theirs.create_array(
            name,
            shape=array.shape,
            chunks=array.chunks,
            dtype=array.dtype,
            fill_value=array.fill_value,
            serializer=zarr.codecs.BytesCodec(endian="little"),
            compressors=zarr.codecs.Crc32cCodec(),
            dimension_names=array.metadata.dimension_names,
            config={"write_empty_chunks": True},
        )
        made[:] = array[:]
    for path in (tmp_path / "zarr").rglob("c/**/*"):
        if path.is_file():
            assert path.read_bytes() == (store / path.relative_to(tmp_path / "zarr")).read_bytes()


def test_xarray_opens_it(store):
    """With dimension names, and the attributes of the group."""
    with xarray.open_zarr(store, consolidated=True) as data:
        assert data["soft_labels"].dims == ("sample", "class")
        assert data["sample_hash"].dims == ("sample",)
        assert data.attrs["ltd_pipe"]["format"] == "ltd-soft-labels"
        whole = SoftLabels.open(store).gather(np.arange(11))
        np.testing.assert_array_equal(data["soft_labels"].values, whole)


def test_sha256sum_verifies_it(store):
    """`sha256sum -c` passes, and fails once a byte is flipped."""
    command = ["sha256sum", "--check", "--strict", "MANIFEST.sha256"]
    passed = subprocess.run(command, cwd=store, capture_output=True, text=True, check=True)
    assert passed.stdout.count(": OK\n") == 18
    chunk = store / "labels" / "c" / "0"
    chunk.write_bytes(b"\xff" + chunk.read_bytes()[1:])
    failed = subprocess.run(command, cwd=store, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "labels/c/0: FAILED" in failed.stdout


def read_with_numpy(store, name):
    """One array by the specification alone: JSON, chunk files, and the CRC at their end."""
    metadata = json.loads((store / name / "zarr.json").read_text())
    shape = metadata["shape"]
    chunk_shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    chunks = []
    for number in range(-(-shape[0] // chunk_shape[0])):
        path = store / name / "c" / "/".join([str(number)] + ["0"] * (len(shape) - 1))
        content = path.read_bytes()
        assert google_crc32c.value(content[:-4]) == int.from_bytes(content[-4:], "little")
        chunks.append(np.frombuffer(content[:-4], dtype).reshape(chunk_shape))
    return np.concatenate(chunks)[: shape[0]]


@pytest.mark.parametrize("name", ["soft_labels", "logits", "labels", "sample_hash"])
def test_json_and_numpy_are_enough(store, name):
    """A reader that follows the page alone sees what we see; padding is the fill value."""
    found = read_with_numpy(store, name)
    ours = SoftLabels.open(store).arrays[name].read()
    np.testing.assert_array_equal(found, ours)
    assert zlib.crc32(found.tobytes()) == zlib.crc32(ours.tobytes())


def test_chunks_of_nothing_but_fill_values_are_written(making, tmp_path):
    """Labels that are all unknown are files too: a missing file is always an error."""
    answers = making()
    unknown = np.full(11, -1, np.int32)
    facts = attributes(unknown, answers.sample_hash, answers.attributes.class_names)
    store = replace(answers, labels=unknown, attributes=facts).write(tmp_path / "a.zarr")
    assert len([path for path in (store / "labels" / "c").iterdir() if path.is_file()]) == 3
