"""Sparse labels: the largest probabilities, the rest spread evenly."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from refusals import refused

from ltd_pipe.errors import ParamsError, StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.softmax import (
    expand,
    largest,
    round_topk,
    soften,
    spread,
    total_variation,
)
from ltd_pipe.labels.softness import Softness
from ltd_pipe.labels.verify import verify_store
from ltd_pipe.labels.writer import StoreWriter

ROWS = np.array([[0.5, 0.25, 0.125, 0.125], [0.0, 0.375, 0.125, 0.5]], np.float32)


def test_the_rest_is_spread_evenly():
    """By hand: of 0.5 and 0.25, a quarter is left for two classes."""
    indices, probs = largest(ROWS, 2)
    assert indices.tolist() == [[0, 1], [3, 1]]
    assert probs.tolist() == [[0.5, 0.25], [0.5, 0.375]]
    expected = [[0.5, 0.25, 0.125, 0.125], [0.0625, 0.375, 0.0625, 0.5]]
    np.testing.assert_array_equal(expand(indices, probs, 4), np.float32(expected))


def test_total_variation_by_hand():
    """The second row moved 1/16 from one class to another."""
    indices, probs = largest(ROWS, 2)
    np.testing.assert_array_equal(total_variation(ROWS, indices, probs), [0.0, 0.0625])


soft_rows = arrays(np.float32, (3, 7), elements=st.floats(-9, 9, width=32)).map(
    lambda logits: soften(logits, 1.0)
)


@settings(deadline=None)
@given(soft_rows, st.integers(1, 7))
def test_rows_stay_distributions(soft, k):
    """Classes differ, probabilities fall, what is spread sums to one, the top keeps its place."""
    indices, probs = largest(soft, k)
    assert all(len(set(row)) == k for row in indices.tolist())
    assert (np.diff(probs.astype(np.float32), axis=1) <= 0).all()
    rows = expand(indices, probs, 7)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    assert (
        rows.max(axis=1) >= np.take_along_axis(rows, soft.argmax(axis=1)[:, None], 1)[:, 0]
    ).all()
    # Never worse than leaving the rest out altogether, up to rounding.
    left_out = 1 - np.sort(soft, axis=1)[:, -k:].sum(axis=1)
    assert (total_variation(soft, indices, probs) <= left_out + 2e-3).all()


@settings(deadline=None)
@given(soft_rows, st.integers(1, 6))
def test_more_ranks_are_never_further_away(soft, k):
    """Up to float16's rounding."""
    near, far = (total_variation(soft, *largest(soft, ranks)) for ranks in (k + 1, k))
    assert (near <= far + 1e-3).all()


def test_equal_probabilities_are_ordered_by_class():
    """So that a store's bytes do not depend on a sorting algorithm."""
    indices, _ = largest(np.full((1, 6), 1 / 6, np.float32), 6)
    assert indices.tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_of_equal_probabilities_the_first_classes_are_kept(k):
    """Also where the last rank falls among them, in any number of views."""
    row = np.array([0.125, 0.25, 0.125, 0.125, 0.25, 0.125], np.float32)
    indices, _ = largest(np.stack([[row, row[::-1]], [row, row]]), k)
    assert indices[0, 0].tolist() == [1, 4, 0, 2, 3, 5][:k]
    assert indices[0, 1].tolist() == [1, 4, 0, 2, 3, 5][:k]


def test_spread_is_the_same_for_torch():
    """Training spreads on the device what a reader spreads on the host."""
    indices, probs = largest(ROWS, 3)
    on_device = spread(torch.from_numpy(indices), torch.from_numpy(probs), 4)
    np.testing.assert_array_equal(on_device.numpy(), expand(indices, probs, 4))


@pytest.mark.parametrize("views", [1, 3])
def test_a_sparse_store_is_read_back(making, tmp_path, views):
    """Ranks, expanded rows, and the distance that the writer measured on all rows."""
    answers = making(num_classes=9, views=views)
    store = SoftLabels.open(answers.write(tmp_path / "a.zarr", top_k=4))
    soft = soften(answers.logits.astype(np.float16), 2.0)
    indices, probs = largest(soft, 4)
    found = store.gather_topk(np.arange(11))
    np.testing.assert_array_equal(found[0], indices)
    np.testing.assert_array_equal(found[1], probs)
    assert found[0].dtype == np.uint16
    np.testing.assert_allclose(store.gather(np.arange(11)), expand(*found, 9), rtol=1e-3, atol=1e-7)
    distance = total_variation(soft, indices, probs)
    measured = store.attributes.top_k.total_variation
    assert measured.samples == 11
    expected = pytest.approx((distance.mean(), distance.max()), rel=1e-5)
    assert (measured.mean, measured.worst) == expected
    assert all(check.done for check in verify_store(store.path) if check.name == "distributions")


def test_more_than_65536_classes_need_wider_indices(making, tmp_path):
    """uint16 ends at 65,535."""
    answers = making(num_samples=3, num_classes=2**16 + 1)
    store = SoftLabels.open(answers.write(tmp_path / "a.zarr", top_k=2))
    indices, _ = store.gather_topk(np.arange(3))
    assert indices.dtype == np.uint32
    np.testing.assert_array_equal(indices, largest(soften(answers.logits, 2.0), 2)[0])


def test_the_summary_of_sparse_labels_is_that_of_their_rows(making, tmp_path):
    """Computed from the ranks alone, without K numbers per row."""
    answers = making(num_samples=50, num_classes=9)
    store = SoftLabels.open(answers.write(tmp_path / "a.zarr", top_k=3))
    rows = expand(*store.gather_topk(np.arange(50)), 9)
    dense = Softness(rows.shape[1]).add(answers.labels, rows).summary()
    sparse = store.summary()
    assert sparse.mean_entropy == pytest.approx(dense.mean_entropy, rel=1e-5)
    assert sparse.mean_top_probability == pytest.approx(dense.mean_top_probability, rel=1e-5)
    assert sparse.disagreement == dense.disagreement


def test_all_ranks_are_a_dense_store(making, tmp_path):
    """With k = K nothing is left to spread."""
    answers = making()
    sparse = SoftLabels.open(answers.write(tmp_path / "a.zarr", top_k=3))
    dense = SoftLabels.open(answers.write(tmp_path / "b.zarr"))
    order = np.arange(11)
    np.testing.assert_allclose(sparse.gather(order), dense.gather(order), atol=1e-3)
    verify_store(sparse.path)


def test_a_store_is_asked_for_what_it_has(answers, making, tmp_path):
    """Ranks of a dense store and logits of a sparse one are refused."""
    sparse = SoftLabels.open(answers.write(tmp_path / "a.zarr", top_k=2))
    dense = SoftLabels.open(answers.write(tmp_path / "b.zarr"))
    with refused(StoreError, where=tmp_path / "b.zarr", what="top-k", remedy="gather"):
        dense.gather_topk(np.arange(2))
    with refused(StoreError, where=tmp_path / "a.zarr", what="logits", remedy="top-k"):
        sparse.gather_logits(np.arange(2))


def open_sparse(path, answers, **options):
    settings = {"keep_logits": False, "temperature": 2.0, "top_k": 2, "rows": 4} | options
    return StoreWriter(path, answers.attributes, **settings)


@pytest.mark.parametrize("top_k", [0, 4])
def test_impossible_numbers_of_ranks_are_refused(answers, tmp_path, top_k):
    """Between one and K."""
    with refused(
        ParamsError,
        where="label.top_k",
        what="range",
        expected="1 to 3, the number of classes",
        found=top_k,
    ):
        open_sparse(tmp_path / "state", answers, top_k=top_k)


def test_no_logits_stand_beside_ranks(answers, tmp_path):
    """They would be K numbers per row after all."""
    answers.write(tmp_path / "a.zarr", top_k=2, keep_logits=True)
    assert not SoftLabels.open(tmp_path / "a.zarr").has_logits


def test_ranks_that_somebody_else_chose_are_put_in_order(answers):
    """By falling probability, whatever order they came in."""
    indices, probs = largest(soften(answers.logits, 2.0), 2)
    found = round_topk(indices[:, ::-1], probs[:, ::-1], 3, 0, "x")
    np.testing.assert_array_equal(found[0], indices)
    np.testing.assert_array_equal(found[1], probs)


WRONG_RANKS = {
    "class twice": ([[1, 1]], [[0.5, 0.25]], {"what": "twice"}),
    "no such class": (
        [[0, 3]],
        [[0.5, 0.25]],
        {"what": "topk_indices", "expected": "0 to 2", "found": 3},
    ),
    "negative class": (
        [[0, -1]],
        [[0.5, 0.25]],
        {"what": "topk_indices", "expected": "0 to 2", "found": -1},
    ),
    "too much": ([[0, 1]], [[0.75, 0.5]], {"what": "soft"}),
    "negative": (
        [[0, 1]],
        [[0.75, -0.5]],
        {"what": "topk_probs", "expected": "probabilities", "found": -0.5},
    ),
    "not a number": (
        [[0, 1]],
        [[0.75, np.nan]],
        {"what": "topk_probs", "expected": "probabilities", "found": re.compile("nan")},
    ),
}


@pytest.mark.parametrize(("indices", "probs", "fault"), WRONG_RANKS.values(), ids=WRONG_RANKS)
def test_ranks_that_are_no_distribution_are_refused(answers, indices, probs, fault):
    """Each is one StoreError that names the sample."""
    good = largest(soften(answers.logits[:3], 2.0), 2)
    classes = np.concatenate([good[0], indices])
    numbers = np.concatenate([good[1], np.float16(probs)])
    with refused(StoreError, where="x", **fault):
        round_topk(classes, numbers, 3, 0, "x")
