"""Differences are found row by row, whatever the order, and told in numbers."""

from dataclasses import replace

import numpy as np
import pytest
from made_answers import attributes
from refusals import refused

from ltd_pipe.errors import StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.diff import compare_stores


@pytest.fixture
def against(source, tmp_path):
    """A function that compares the store with other answers'."""

    def compare(answers, options=None, **limits):
        path = answers.write(tmp_path / "other.zarr", replace=True, **(options or {}))
        return compare_stores(source, SoftLabels.open(path), **limits)

    return compare


def test_a_store_is_equal_to_itself(answers, against):
    """Nothing differs, so everything is the same."""
    found = against(answers)
    assert found.same
    assert found.same_rows
    assert (found.compared, found.different, found.largest, found.worst) == (11, 0, 0.0, [])


def test_a_changed_row_is_named_with_its_distance(answers, against):
    """Its rows in both, its hash, how far, and whether the best class is another."""
    logits = answers.logits.copy()
    logits[6] = -logits[6]
    found = against(replace(answers, logits=logits))
    assert (found.different, found.logits_different, found.argmax_changes) == (1, 1, 1)
    assert not found.attributes
    [row] = found.worst
    soft = np.exp(np.stack([answers.logits[6], logits[6]]).astype(np.float16).astype(float) / 2)
    soft /= soft.sum(axis=1, keepdims=True)
    distance = abs(soft[0] - soft[1])
    assert row.total_variation == pytest.approx(distance.sum() / 2, abs=1e-3)
    assert row.largest == pytest.approx(distance.max(), abs=1e-3)
    assert (row.row, row.other_row, row.views_changed) == (6, 6, 1)
    assert row.sample_hash == f"{answers.sample_hash[6]:016x}"
    assert found.mean_total_variation == pytest.approx(row.total_variation / 11)
    assert not found.same_rows


def test_another_order_is_no_difference_of_labels(answers, against):
    """Rows are matched by hash; that they moved is told."""
    found = against(answers.permuted([1, 0, 2, 3, 4, 5, 6, 7, 8, 10, 9]))
    assert found.same_rows
    assert not found.same
    assert found.moved == 4
    assert list(found.attributes) == ["dataset.fingerprint"]


def test_rows_of_one_store_only_are_listed(answers, against):
    """Those of either side, and what both have is compared."""
    found = against(answers.permuted([0, 1, 2, 5]))
    assert (found.compared, list(found.only_first)) == (4, [3, 4, 6, 7, 8, 9, 10])
    assert list(found.only_second) == []
    assert not found.same_rows


def test_the_worst_rows_come_first(answers, other_teacher, against):
    """As many as asked for; the numbers are of all."""
    everything = against(other_teacher())
    some = against(other_teacher(), rows=3)
    none = against(other_teacher(), rows=0)
    distances = [row.total_variation for row in everything.worst]
    assert distances == sorted(distances, reverse=True)
    assert some.worst == everything.worst[:3]
    assert none.worst == []
    assert none.worst_total_variation == distances[0] == some.worst_total_variation
    assert len(everything.worst) == everything.different == 11


def test_attributes_that_differ_are_named(answers, against):
    """By their path, with both values; lists as a whole."""
    facts = answers.attributes.model_copy(update={"licence": "MIT", "software": {"torch": "3"}})
    found = against(replace(answers, attributes=facts))
    assert found.attributes == {
        "software.numpy": ("2", None),
        "software.torch": ("2", "3"),
        "licence": (None, "MIT"),
    }
    assert found.same_rows
    assert not found.same


def test_a_sparse_store_is_compared_by_what_it_stands_for(answers, against):
    """Dense against its own largest probabilities: all ranks are all of it."""
    found = against(answers, {"top_k": 3})
    assert found.arrays == {
        "logits": "only in the first",
        "soft_labels": "only in the first",
        "topk_indices": "only in the second",
        "topk_probs": "only in the second",
    }
    assert found.worst_total_variation < 2**-10
    assert found.logits_different is None


def test_labels_that_differ_are_counted(answers, against, making):
    """The same image under another class is one sample, not two."""
    labels = answers.labels.copy()
    labels[3] = 0 if labels[3] else 1
    other = replace(answers, labels=labels)
    facts = other.permuted(np.arange(11)).attributes
    found = against(replace(other, attributes=facts))
    assert (found.labels_different, found.compared) == (1, 11)
    assert not found.same_rows


def test_views_are_compared_one_by_one(making, tmp_path):
    """A change in one view is one row's, and the sample's."""
    answers = making(views=3)
    logits = answers.logits.copy()
    logits[4, 2] = -logits[4, 2]
    stores = [
        SoftLabels.open(each.write(tmp_path / name))
        for name, each in (("a", answers), ("b", replace(answers, logits=logits)))
    ]
    found = compare_stores(*stores)
    assert (found.different, found.argmax_changes) == (1, 1)
    assert found.mean_total_variation == pytest.approx(found.worst_total_variation / 33)


def test_rows_that_cannot_be_compared_are_refused(source, making, tmp_path):
    """Of other classes or views."""
    for options, fields in (
        ({"num_classes": 4}, {"what": "classes", "found": 4}),
        ({"views": 2}, {"what": "views", "found": 2}),
    ):
        other = making(**options).write(tmp_path / "other.zarr", replace=True)
        with refused(StoreError, where=other, **fields):
            compare_stores(source, SoftLabels.open(other))


def test_columns_of_other_classes_are_not_compared(answers, against):
    """The same classes in another order: column by column their labels may even be equal."""
    names = answers.attributes.class_names
    hashes = answers.labels, answers.sample_hash
    other = attributes(*hashes, names[::-1])
    with refused(StoreError, what="class 0", found=f"'{names[-1]}'"):
        against(replace(answers, attributes=other))


def test_stores_of_no_common_image_are_told_apart(making, against):
    """Nothing is compared, all rows are on one side."""
    found = against(making(seed=9))
    assert (found.compared, len(found.only_first), len(found.only_second)) == (0, 11, 11)
    assert not found.same_rows
