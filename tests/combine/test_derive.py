"""Deriving: chunks take their turn, whoever asks, and nothing half-made is published."""

import numpy as np
import pytest

from ltd_pipe.errors import BusyError, StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.derive import NewRows, derive_store, stepwise, with_rows
from ltd_pipe.publish import exclusive


@pytest.fixture
def sequential(answers):
    """Rows of 100 samples from a source that can only be read from its beginning."""
    reached = []

    def block(first, last):
        assert first == (reached[-1] if reached else 0)
        reached.append(last)
        rows = np.repeat(np.arange(first, last)[:, None] + 1, 3, axis=1)
        return {"soft_labels": rows, "logits": -rows}

    names = ("soft_labels", "logits")
    return NewRows(np.zeros(100, np.int32), np.arange(100, dtype=np.uint64), names, block)


def test_chunks_are_asked_for_in_order(answers, sequential, tmp_path):
    """Each once, all arrays of it together."""
    facts = with_rows(answers.attributes, sequential.labels, sequential.sample_hash)
    derive_store(tmp_path / "new.zarr", facts, sequential, rows=3)
    found = SoftLabels.open(tmp_path / "new.zarr").arrays
    np.testing.assert_array_equal(found["soft_labels"].read()[:, 0], np.arange(100) + 1)
    np.testing.assert_array_equal(found["logits"].read()[:, 2], -1 - np.arange(100))


def test_steps_give_the_rows_of_one_call(answers, monkeypatch):
    """However few rows are computed at a time."""
    monkeypatch.setattr("ltd_pipe.labels.derive._STEP_ELEMENTS", 7)
    calls = []

    def block(first, last):
        calls.append(last - first)
        return {"soft_labels": np.arange(first, last)}

    found = stepwise(block, answers.attributes)(3, 10)
    np.testing.assert_array_equal(found["soft_labels"], np.arange(3, 10))
    assert max(calls) == 2


def test_a_store_that_is_not_sound_is_not_published(answers, tmp_path):
    """Rows from no store are verified before anybody can read them."""
    rows = np.full((11, 3), 0.5, np.float16)
    new = NewRows(
        answers.labels,
        answers.sample_hash,
        ("soft_labels",),
        lambda first, last: {"soft_labels": rows[first:last]},
    )
    target = tmp_path / "new.zarr"
    with pytest.raises(StoreError, match=r"new\.zarr: was not published: sample 0: the soft label"):
        derive_store(target, answers.attributes, new, rows=4, verify=True)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_write_one_store(answers, sequential, tmp_path):
    """The second is refused, and the first's files are left alone."""
    target = tmp_path / "new.zarr"
    with exclusive(target), pytest.raises(BusyError, match="is writing to it"):
        derive_store(target, answers.attributes, sequential, rows=4)


def test_other_rows_have_another_fingerprint(answers):
    """And all else stays."""
    found = with_rows(answers.attributes, answers.labels[:5], answers.sample_hash[:5])
    assert found.num_samples == 5
    assert found.dataset.fingerprint != answers.attributes.dataset.fingerprint
    assert found.class_names == answers.attributes.class_names
