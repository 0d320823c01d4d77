"""Rows in any order are those that a plain reader finds, for any integers and any kind of store."""

from pathlib import Path

import numpy as np
import plain_reader
import pytest
import torch
from golden_store import WRITERS
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from ltd_pipe.errors import StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.on_device import LabelsOnDevice

HERE = Path(__file__).parent
STORES = {kind: SoftLabels.open(HERE / f"{kind}.zarr") for kind in WRITERS}
PLAIN = {kind: plain_reader.read_store(HERE / f"{kind}.zarr")[1:] for kind in WRITERS}
N = 5

kinds = st.sampled_from(list(WRITERS))
dtypes = st.sampled_from(["i1", "i2", "<i4", ">i4", "<i8", ">i8", "u1", "u2", ">u4", "<u8", ">u8"])
# Also none, also more than there are.
orders = st.lists(st.integers(0, N - 1), max_size=40)
steps = st.sampled_from([1, 2, -1, -3])


def strided(order: list[int], dtype: str, step: int) -> np.ndarray:
    """The same numbers, in memory that is not contiguous."""
    array = np.zeros((len(order) * abs(step),), dtype)[::step][: len(order)]
    array[:] = order
    return array


@settings(deadline=None, max_examples=200)
@given(kinds, orders, dtypes, steps)
def test_rows_are_those_of_a_plain_reader(kind, order, dtype, step):
    """Bit for bit, whatever the order, repeats, type and strides of the indices."""
    store, (arrays, rows) = STORES[kind], PLAIN[kind]
    index = strided(order, dtype, step)
    if store.top_k is None:
        np.testing.assert_array_equal(store.gather(index), arrays["soft_labels"][order])
        np.testing.assert_array_equal(store.gather_logits(index), arrays["logits"][order])
    else:
        classes, probs = store.gather_topk(index)
        np.testing.assert_array_equal(classes, arrays["topk_indices"][order])
        np.testing.assert_array_equal(probs, arrays["topk_probs"][order])
        expected = rows[order].astype(np.float32)
        np.testing.assert_allclose(store.gather(index), expected, rtol=2**-10, atol=2**-24)


@settings(deadline=None, max_examples=100)
@given(kinds, orders, dtypes, steps, st.booleans(), st.integers(0, 1))
def test_targets_are_those_of_a_plain_reader(kind, order, dtype, step, resident, view):
    """Also on the device, whole or gathered; each view by itself."""
    store, (_, rows) = STORES[kind], PLAIN[kind]
    view = min(view, store.num_views - 1)
    expected = rows[order] if store.num_views == 1 else rows[order][:, view]
    labels = LabelsOnDevice(store, torch.device("cpu"), resident=resident)
    found = labels.rows(strided(order, dtype, step), view=view).numpy()
    assert found.shape == (len(order), store.num_classes)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=50)
@given(orders, st.integers(0, 1))
def test_one_view_is_a_part_of_all(order, view):
    """Of soft labels and of logits, into a new array or a given one."""
    store = STORES["golden_views"]
    index = np.array(order, np.int64)
    out = np.empty((len(order), 3), np.float16)
    for gather in (store.gather, store.gather_logits):
        whole = gather(index)
        assert whole.shape == (len(order), 2, 3)
        np.testing.assert_array_equal(gather(index, view=view), whole[:, view])
        assert gather(index, out, view=view) is out
        np.testing.assert_array_equal(out, whole[:, view])


def readers(store):
    """Everything that takes indices."""
    devices = (LabelsOnDevice(store, torch.device("cpu"), resident=x) for x in (False, True))
    exact = store.gather_topk if store.top_k else store.gather_logits
    return [store.gather, exact, *(device.rows for device in devices)]


OUTSIDE = [
    *((value, dtype) for value in (-1, -5, -(2**7)) for dtype in ("i1", ">i4", "i8")),
    *((value, dtype) for value in (5, 127) for dtype in ("i1", "u1", ">u4", "u8", "i8")),
    (2**31, "u4"),
    (2**31, "i8"),
    (-(2**63), "i8"),
    (2**63 - 1, "i8"),
    (2**63, "u8"),
    # As int64 these are -1 and 0.
    (2**64 - 1, "u8"),
    (2**64 - 5, ">u8"),
]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("value", "dtype"), OUTSIDE)
@pytest.mark.parametrize("place", [0, 2])
def test_rows_that_do_not_exist_are_refused(kind, value, dtype, place):
    """Never wrapped around, in either direction, nor by conversion."""
    store = STORES[kind]
    index = np.array([1, 2, 3], dtype)
    index[place] = value
    for gather in readers(store):
        with refused(StoreError, what="row", expected="0 to 4", found=value):
            gather(index)


NO_INDEX = {
    "truths": np.array([True, False, True, False, True]),
    "fractions": np.array([0.0, 1.0]),
    "two axes": np.array([[0, 1], [2, 3]]),
    "no axis": np.array(3),
    "texts": np.array(["0"]),
    "objects": np.array([0, 1], object),
    "times": np.array([0], "m8[s]"),
    "complex": np.array([1j]),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("index", NO_INDEX.values(), ids=NO_INDEX.keys())
def test_what_is_no_list_of_integers_is_refused(kind, index):
    """A mask above all: of five rows it would give the first and the second."""
    store = STORES[kind]
    for gather in readers(store):
        with pytest.raises(ValueError, match=r"index: expected integers \(B,\), found"):
            gather(index)


WRONG_OUT = {
    "one row": np.empty((1, 3), np.float16),
    "one class": np.empty((2, 1), np.float16),
    "wider": np.empty((2, 3), np.float32),
    "flat": np.empty(6, np.float16),
}


@pytest.mark.parametrize("kind", ["golden", "golden_views"])
@pytest.mark.parametrize("out", WRONG_OUT.values(), ids=WRONG_OUT.keys())
def test_buffers_that_do_not_fit_are_refused(kind, out):
    """Nothing is spread or converted in silence."""
    with pytest.raises(ValueError, match="out: expected"):
        STORES[kind].gather(np.array([0, 1]), out, view=0)


@pytest.mark.parametrize("view", [-1, 2, 2**63])
def test_views_that_do_not_exist_are_refused(view):
    """A negative one would count from the end."""
    store = STORES["golden_views"]
    for resident in (False, True):
        labels = LabelsOnDevice(store, torch.device("cpu"), resident=resident)
        with refused(
            StoreError, where="golden_views.zarr", what="view", expected="0 to 1", found=view
        ):
            labels.rows(np.array([0]), view=view)
    for gather in (store.gather, store.gather_logits):
        with refused(
            StoreError, where="golden_views.zarr", what="view", expected="0 to 1", found=view
        ):
            gather(np.array([0]), view=view)
