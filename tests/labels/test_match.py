"""Matching rows by hash, against a plain loop."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ltd_pipe.labels.join import match_rows

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 1)), max_size=12)


def columns(rows):
    """Hashes and labels of (hash, label) pairs."""
    return np.array([h for h, _ in rows], np.uint64), np.array([y for _, y in rows], np.int32)


@settings(max_examples=200, deadline=None)
@given(ROWS, ROWS)
def test_each_row_is_paired_once_or_left_over(first, second):
    """Pairs have one hash; as many of each hash are paired as the rarer side has."""
    found = match_rows(columns(first), columns(second))
    for side, only, count in (
        (found.first, found.only_first, len(first)),
        (found.second, found.only_second, len(second)),
    ):
        assert sorted([*side, *only]) == list(range(count))
    assert [first[i][0] for i in found.first] == [second[j][0] for j in found.second]
    assert not {first[i][0] for i in found.only_first} & {second[j][0] for j in found.only_second}
    assert list(found.first) == sorted(found.first)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_any_order_is_undone(rows, random):
    """A permutation is matched whole, and labels with their own."""
    shuffled = random.sample(rows, len(rows))
    found = match_rows(columns(rows), columns(shuffled))
    assert [shuffled[j] for j in found.second] == rows


def test_labels_decide_between_equal_images():
    """An image that is there under two classes goes to the row of its class."""
    found = match_rows(columns([(5, 0), (5, 1)]), columns([(5, 1), (5, 0)]))
    assert list(found.second) == [1, 0]
