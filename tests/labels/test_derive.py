"""Deriving: chunks take their turn, whoever asks, and nothing half-made is published."""

import numpy as np
import pytest
from refusals import refused

from ltd_pipe.errors import BusyError, StoreError, WriteError
from ltd_pipe.labels import SoftLabels, layout
from ltd_pipe.labels.derive import DerivedStore, attributes_of_rows
from ltd_pipe.publish import exclusive


@pytest.fixture
def sequential(answers):
    """Rows of 100 samples from a source that can only be read from its beginning."""
    reached = [0]

    def block(index):
        assert index[0] == reached[-1]
        reached.append(index[-1] + 1)
        rows = np.repeat(index[:, None] + 1, 3, axis=1)
        return {"soft_labels": rows, "logits": -rows}

    labels, hashes = np.zeros(100, np.int32), np.arange(100, dtype=np.uint64)
    facts = attributes_of_rows(answers.attributes, labels, hashes)
    return DerivedStore(facts, labels, hashes, ("soft_labels", "logits"), block, rows=7)


@pytest.mark.parametrize("step", [2**20, 6])
def test_rows_are_asked_for_in_order(sequential, tmp_path, monkeypatch, step):
    """Each once, all arrays of it together, however few are computed at a time."""
    monkeypatch.setattr("ltd_pipe.labels.derive._BLOCK_ELEMENTS", step)
    sequential.write(tmp_path / "new.zarr")
    found = SoftLabels.open(tmp_path / "new.zarr").arrays
    np.testing.assert_array_equal(found["soft_labels"].read()[:, 0], np.arange(100) + 1)
    np.testing.assert_array_equal(found["logits"].read()[:, 2], -1 - np.arange(100))


def test_a_store_that_is_not_sound_is_not_published(answers, tmp_path):
    """Rows from no store are verified before anybody can read them."""
    wrong = DerivedStore(
        answers.attributes,
        answers.labels,
        answers.sample_hash,
        ("soft_labels",),
        lambda index: {"soft_labels": np.full((len(index), 3), 0.5, np.float16)},
        rows=4,
        verify=True,
    )
    with pytest.raises(StoreError) as caught:
        wrong.write(tmp_path / "new.zarr")
    assert caught.value.where == str(tmp_path / "new.zarr")
    assert caught.value.what.startswith("was not published: sample 0")
    assert list(tmp_path.iterdir()) == []


def test_chunks_that_nobody_could_read_are_not_begun(sequential, tmp_path, monkeypatch):
    """No row is computed, and what is replaced stays."""
    sequential.write(tmp_path / "new.zarr")
    monkeypatch.setattr(layout, "_MAX_CHUNK_BYTES", 55)
    with refused(StoreError, what="sample_hash: chunks are too large", found=56):
        sequential.write(tmp_path / "new.zarr", replace=True)
    monkeypatch.undo()
    assert SoftLabels.open(tmp_path / "new.zarr").num_samples == 100


def test_two_processes_do_not_write_one_store(sequential, tmp_path):
    """The second is refused, and the first's files are left alone."""
    target = tmp_path / "new.zarr"
    with exclusive(target), refused(BusyError, where=target, what="writing"):
        sequential.write(target)


@pytest.mark.parametrize(
    ("replace", "what"), [(False, "exists already"), (True, "is no soft-label store")]
)
def test_what_appears_at_the_target_meanwhile_stays(sequential, tmp_path, replace, what):
    """It was not there when --force was not passed, or is no store."""
    target = tmp_path / "new.zarr"

    def write(_):
        target.mkdir(exist_ok=True)
        (target / "thesis.tex").write_text("years")

    with refused(WriteError, where=target, what=what):
        sequential.write(target, replace=replace, progress=write)
    assert [path.name for path in tmp_path.rglob("*")] == ["new.zarr", "thesis.tex"]


def test_other_rows_have_another_fingerprint(answers):
    """And all else stays."""
    found = attributes_of_rows(answers.attributes, answers.labels[:5], answers.sample_hash[:5])
    assert found.num_samples == 5
    assert found.dataset.fingerprint != answers.attributes.dataset.fingerprint
    assert found.class_names == answers.attributes.class_names
