"""Stores of several views of each image."""

import numpy as np
import pytest
from refusals import refused

from ltd_pipe.errors import StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.softmax import soften
from ltd_pipe.labels.verify import verify_store


@pytest.fixture
def store(making, tmp_path):
    """Eleven samples, two views, three classes."""
    return SoftLabels.open(making(views=2).write(tmp_path / "a.zarr"))


def test_each_view_has_its_row(making, store):
    """The soft label of (i, v) is the softmax of the logits that were given for (i, v)."""
    soft = soften(making(views=2).logits, 2.0)
    order = np.array([3, 10, 3, 0])
    assert store.num_views == 2
    np.testing.assert_allclose(store.gather(order), soft[order], atol=1e-3)
    for view in (0, 1):
        np.testing.assert_allclose(store.gather(order, view=view), soft[order, view], atol=1e-3)
        logits = store.gather_logits(order, view=view)
        np.testing.assert_allclose(logits, making(views=2).logits[order, view], rtol=1e-3)


def test_rows_go_into_a_given_buffer(store):
    """Of one view or of all; another shape or type is our own bug."""
    order = np.array([1, 7])
    one, both = np.empty((2, 3), np.float16), np.empty((2, 2, 3), np.float16)
    assert store.gather(order, one, view=1) is one
    assert store.gather(order, both) is both
    np.testing.assert_array_equal(both[:, 1], one)
    with pytest.raises(ValueError, match=r"expected \(2, 3\) float16, found \(2, 2, 3\)"):
        store.gather(order, both, view=1)
    with pytest.raises(ValueError, match="found .* float32"):
        store.gather(order, one.astype(np.float32), view=1)


@pytest.mark.parametrize("view", [-1, 2])
def test_a_view_that_does_not_exist_is_refused(store, view):
    """Also a negative one, which NumPy would count from the end."""
    with refused(StoreError, where="a.zarr", what="view", expected="0 to 1", found=view):
        store.gather(np.arange(2), view=view)


def test_a_store_of_one_view_has_view_zero_only(answers, tmp_path):
    """So that a caller need not know whether there are several."""
    labels = SoftLabels.open(answers.write(tmp_path / "b.zarr"))
    order = np.arange(4)
    np.testing.assert_array_equal(labels.gather(order, view=0), labels.gather(order))
    with refused(StoreError, where=tmp_path / "b.zarr", what="view", expected="0 to 0", found=1):
        labels.gather(order, view=1)


def test_several_views_verify(store):
    """All rows of all views are looked at."""
    details = {check.name: check.detail for check in verify_store(store.path)}
    assert "11 rows of 2 views" in details["distributions"]


def test_a_wrong_view_is_named(store, resign):
    """Sample and view of the first soft label that is not the softmax of its logits."""
    chunk = store.path / "soft_labels/c/1/0/0"
    content = bytearray(chunk.read_bytes())
    rows = np.frombuffer(content, np.float16, 4 * 2 * 3).reshape(4, 2, 3)
    rows[2, 1] = rows[2, 1, ::-1].copy()
    import google_crc32c

    content[-4:] = google_crc32c.value(bytes(content[:-4])).to_bytes(4, "little")
    chunk.write_bytes(content)
    resign(store.path)
    with refused(StoreError, where="a.zarr", what="view 1"):
        verify_store(store.path)


def test_the_summary_is_over_all_views(store):
    """Each view of a sample has the sample's class."""
    soft = store.gather(np.arange(11)).astype(np.float32)
    soft /= soft.sum(axis=-1, keepdims=True)
    wrong = (soft.argmax(axis=-1) != store.labels[:, None])[store.labels >= 0]
    assert store.summary().disagreement == pytest.approx(wrong.mean())
    assert store.summary().mean_top_probability == pytest.approx(soft.max(axis=-1).mean())
