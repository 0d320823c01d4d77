"""Reading: any rows in any order, and never a row that is not as it was written."""

import re
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from ltd_pipe.errors import MissingError, StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.softmax import soften
from ltd_pipe.labels.softness import Softness


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 10)), st.sampled_from([np.int64, np.int32, np.uint8]))
def test_gather_gives_the_rows_asked_for(answers, reader, index, dtype):
    """Any order, repeats, none: always what indexing the whole array gives."""
    whole = soften(answers.logits.astype(np.float16), 2.0).astype(np.float16)
    found = reader.gather(np.array(index, dtype))
    np.testing.assert_array_equal(found, whole[np.array(index, np.int64)])
    assert found.dtype == np.float16
    assert found.shape == (len(index), 3)


@pytest.fixture
def reader(store):
    """One reader for all examples."""
    return SoftLabels.open(store)


def test_gather_writes_into_a_given_buffer(store):
    """`out` is filled and returned, also when its rows are not contiguous."""
    labels = SoftLabels.open(store)
    index = np.array([9, 0, 5, 5])
    buffer = np.zeros((4, 6), np.float16)
    out = buffer[:, ::2]
    assert labels.gather(index, out) is out
    np.testing.assert_array_equal(buffer[:, ::2], labels.gather(index))
    assert not buffer[:, 1::2].any()


@pytest.mark.parametrize(
    "out", [np.empty((2, 3), np.float32), np.empty((3, 3), np.float16), np.empty(6, np.float16)]
)
def test_a_wrong_buffer_is_refused(store, out):
    """NumPy would convert or broadcast."""
    with pytest.raises(ValueError, match="out: expected .2, 3. float16"):
        SoftLabels.open(store).gather(np.array([0, 1]), out)


@pytest.mark.parametrize("index", [[0, 11], [-1], [2**40]])
def test_rows_that_do_not_exist_are_refused(store, index):
    """Negative ones too: they do not count from the end."""
    with refused(
        StoreError, where=store, what="row", expected="0 to 10", found=max(index, key=abs)
    ):
        SoftLabels.open(store).gather(np.array(index))


@pytest.mark.parametrize("index", [[0.0, 1.0], [True, False], [[0, 1]]])
def test_an_index_that_is_no_list_of_integers_is_refused(store, index):
    """Masks and floats are mistakes here."""
    with pytest.raises(ValueError, match="index: expected integers"):
        SoftLabels.open(store).gather(np.array(index))


def test_gathering_does_not_copy_the_array(store):
    """Chunks are views of mapped files, which nobody can write to."""
    chunk = SoftLabels.open(store).arrays["soft_labels"].chunk(0)
    assert not chunk.flags.writeable
    assert not chunk.flags.owndata


def test_only_touched_chunks_are_checked(store):
    """A damaged chunk stops those who need it, and only those."""
    path = store / "soft_labels" / "c" / "1" / "0"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    labels = SoftLabels.open(store)
    labels.gather(np.array([0, 3, 8, 10]))
    for row in (4, 7):
        with refused(StoreError, where=store, what="soft_labels/c/1/0"):
            labels.gather(np.array([0, row]))


@pytest.mark.parametrize("array", ["soft_labels/c/2/0", "logits/c/0/0", "labels/c/1"])
def test_a_missing_chunk_is_named(store, array):
    """Zarr reads it as fill values; we refuse to open."""
    (store / array).unlink()
    with refused(StoreError, where="labels.zarr", what=f"{array} is missing"):
        SoftLabels.open(store)


@pytest.mark.parametrize("change", [b"x", b""])
def test_a_chunk_of_another_size_is_named(store, change):
    """One byte more, or nothing at all."""
    path = store / "soft_labels" / "c" / "0" / "0"
    path.write_bytes(path.read_bytes() + change if change else b"")
    with refused(StoreError, where=store, what="soft_labels/c/0/0", expected="28 bytes"):
        SoftLabels.open(store)


def test_changed_metadata_is_refused(store):
    """A temperature that was edited is not what the manifest lists."""
    path = store / "zarr.json"
    path.write_text(path.read_text().replace('"temperature": 2.0', '"temperature": 3.0'))
    with refused(StoreError, where=store, what="zarr.json", expected=re.compile(r"SHA-256")):
        SoftLabels.open(store)


def test_what_is_no_store_is_refused(tmp_path):
    """Nothing, a file, an empty folder, and a Zarr group of something else."""
    with refused(MissingError, where=tmp_path / "none.zarr", what="soft-label"):
        SoftLabels.open(tmp_path / "none.zarr")
    (tmp_path / "file").touch()
    with refused(StoreError, where=tmp_path / "file", what="soft-label"):
        SoftLabels.open(tmp_path / "file")
    with refused(StoreError, where=tmp_path, what="soft-label", remedy="folder"):
        SoftLabels.open(tmp_path)
    (tmp_path / "zarr.json").touch()
    with refused(StoreError, where=tmp_path, what="MANIFEST.sha256"):
        SoftLabels.open(tmp_path)


def test_the_identity_follows_the_content(answers, making, store, tmp_path):
    """A copy has the same identity, another temperature another one."""
    identity = SoftLabels.open(store).identity
    shutil.copytree(store, tmp_path / "copy")
    assert SoftLabels.open(tmp_path / "copy").identity == identity
    other = making(temperature=2.5).write(tmp_path / "other.zarr")
    assert SoftLabels.open(other).identity != identity


def test_the_store_itself_may_be_a_link(store, tmp_path):
    """Whoever opens a store chooses its name; links inside it are another matter."""
    (tmp_path / "link.zarr").symlink_to(store)
    assert SoftLabels.open(tmp_path / "link.zarr").num_samples == 11


def test_logits_that_are_not_there_are_said_so(answers, tmp_path):
    """The error says how to get them."""
    answers.write(tmp_path / "a.zarr", keep_logits=False)
    labels = SoftLabels.open(tmp_path / "a.zarr")
    assert not labels.has_logits
    with refused(StoreError, where=tmp_path / "a.zarr", what="logits", remedy="Label"):
        labels.gather_logits(np.array([0]))


def test_the_summary_is_that_of_all_rows(answers, store):
    """Chunk by chunk gives what the whole array gives."""
    labels = SoftLabels.open(store)
    counted = Softness(labels.num_classes).add(answers.labels, labels.gather(np.arange(11)))
    whole = counted.summary()
    found = labels.summary()
    assert found.mean_entropy == pytest.approx(whole.mean_entropy)
    assert found.mean_top_probability == pytest.approx(whole.mean_top_probability)
    assert found.disagreement == whole.disagreement
