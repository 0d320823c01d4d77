"""A part of a store is the part that would be cut out of the whole, and no more is fetched."""

import shutil

import numpy as np
import pytest
from faulty_server import FaultyServer, flipped, replaced, status
from refusals import refused
from shared_store import contents, make_store

from ltd_pipe.errors import MissingError, ParamsError, StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.derive import subset
from ltd_pipe.labels.remote import parse_location, pull_excerpt
from ltd_pipe.labels.verify import verify_store


def pull(url, target, options, rows=(None, None), arrays=None, **settings):
    """Fetch a part."""
    pull_excerpt(parse_location(url), target, rows, arrays, options, **settings)
    return target


PARTS = {
    "one chunk": ((100, 200), None, {1}),
    "across chunks": ((150, 320), None, {1, 2, 3}),
    "to the end": ((599, None), ["soft_labels"], {5}),
    "one row": ((0, 1), ["soft_labels", "logits"], {0}),
    "one array": ((None, None), ["soft_labels"], set(range(6))),
    "all": ((None, None), None, set(range(6))),
}


@pytest.mark.parametrize(("rows", "arrays", "chunks"), PARTS.values(), ids=PARTS.keys())
def test_it_is_the_subset_of_the_whole(server, published, tmp_path, options, rows, arrays, chunks):
    """The same bytes, the same identity; and only its chunks were asked for."""
    target = pull(server.url, tmp_path / "part.zarr", options, rows, arrays)
    index = np.arange(600)[slice(*rows)]
    subset(SoftLabels.open(published), index, arrays=arrays).write(tmp_path / "cut.zarr")
    assert contents(target) == contents(tmp_path / "cut.zarr")
    verify_store(target)
    names = arrays or ["soft_labels", "logits"]
    expected = {f"{name}/c/{chunk}/0" for name in names for chunk in chunks}
    expected |= {f"{name}/c/{chunk}" for name in ("labels", "sample_hash") for chunk in range(6)}
    assert {name for name, _ in server.log if "/c/" in name} == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.zarr", "part.zarr"]


def test_it_says_what_it_was_cut_from(server, published, tmp_path, options):
    """By the identity of the whole."""
    target = pull(server.url, tmp_path / "part.zarr", options, (0, 10))
    origin = SoftLabels.open(target).attributes.derived_from
    assert origin.operation == "subset"
    assert origin.sources == (SoftLabels.open(published).identity,)


def test_of_a_sparse_store_too(tmp_path, options):
    """Indices and probabilities come together."""
    made = make_store(tmp_path / "served", top_k=3)
    with FaultyServer(made) as server:
        target = pull(server.url, tmp_path / "part.zarr", options, (250, 350))
    index = np.arange(250, 350)
    whole, part = SoftLabels.open(made), SoftLabels.open(target)
    np.testing.assert_array_equal(part.gather(np.arange(100)), whole.gather(index))
    verify_store(target)


REFUSED = {
    "no such rows": (((500, 601), None), ParamsError, {"expected": "A:B with 0 <= A < B <= 600"}),
    "no rows": (((5, 5), None), ParamsError, {"what": "range"}),
    "no such array": (((0, 9), ["scores"]), StoreError, {"what": "scores"}),
    "no labels": (((0, 9), ["logits"]), ParamsError, {"what": "nothing"}),
}


@pytest.mark.parametrize(("part", "error", "fields"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_cut_out_is_refused(server, tmp_path, options, part, error, fields):
    """Before a chunk of soft labels comes."""
    with refused(error, **fields):
        pull(server.url, tmp_path / "part.zarr", options, *part)
    assert not any("soft_labels/c" in name for name, _ in server.log)
    assert not (tmp_path / "part.zarr").exists()


@pytest.mark.parametrize("name", ["soft_labels/c/1/0", "labels/c/0", "sample_hash/c/5"])
def test_a_tampered_chunk_is_refused_by_the_first_manifest(server, tmp_path, options, name):
    """No row of it is used, whatever the new manifest would say."""
    server.faults[name] = [replaced(flipped)] * 3
    with refused(StoreError, where=f"/{name}", what="manifest"):
        pull(server.url, tmp_path / "part.zarr", options, (100, 200))
    assert not (tmp_path / "part.zarr").exists()


def test_an_interrupted_one_goes_on(server, tmp_path, options):
    """What is whole is kept."""
    server.faults["logits/c/3/0"] = [status(404)]
    with pytest.raises(MissingError):
        pull(server.url, tmp_path / "part.zarr", options, (100, 400))
    server.log.clear()
    target = pull(server.url, tmp_path / "part.zarr", options, (100, 400))
    assert SoftLabels.open(target).num_samples == 300
    assert not any("labels/c/0" in name for name, _ in server.log)


def test_nothing_is_replaced_unless_it_may_be(server, published, tmp_path, options):
    """As with every command."""
    target = tmp_path / "part.zarr"
    shutil.copytree(published, target)
    with pytest.raises(OSError, match="exists already"):
        pull(server.url, target, options, (0, 10))
    assert contents(target) == contents(published)
    pull(server.url, target, options, (0, 10), force=True)
    assert SoftLabels.open(target).num_samples == 10
