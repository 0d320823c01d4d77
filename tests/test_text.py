"""Where two trees of plain values differ: each place, by its path."""

import pytest

from ltd_pipe.text import differences

TREE = {"a": 1, "b": {"c": [1, 2], "d": None}}


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (TREE, []),
        (TREE | {"a": 2}, [("a", 1, 2)]),
        ({"a": 1}, [("b", TREE["b"], None)]),
        (TREE | {"b": {"c": [2, 1]}}, [("b.c", [1, 2], [2, 1])]),
        (TREE | {"b": {"c": [1, 2], "e": 5}}, [("b.e", None, 5)]),
        (3, [("", TREE, 3)]),
    ],
    ids=["none", "a value", "a branch", "a list", "one more", "another kind"],
)
def test_each_difference_is_named(other, found):
    """In the order of the first tree; a key that is absent is None."""
    assert list(differences(TREE, other)) == found


def test_tables_differ_row_by_row():
    """Where they are equally long; else as a whole."""
    ours, theirs = [{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 3}]
    assert list(differences({"t": ours}, {"t": theirs})) == [("t.1.a", 2, 3)]
    assert list(differences(ours, theirs[:1], "t")) == [("t", ours, theirs[:1])]
