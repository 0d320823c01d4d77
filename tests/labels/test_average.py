"""Averages: of probabilities, for the same images only."""

import re
from dataclasses import replace

import numpy as np
import pytest
from made_answers import give_store
from refusals import refused

from ltd_pipe.errors import JoinError, ParamsError, StoreError
from ltd_pipe.labels import SoftLabels, layout
from ltd_pipe.labels.derive import average, normalised_weights
from ltd_pipe.labels.softmax import largest, total_variation
from ltd_pipe.labels.verify import verify_store


@pytest.fixture
def two(answers, other_teacher, tmp_path):
    """Two teachers' stores of the same images, of different chunks."""
    answers.write(tmp_path / "a.zarr")
    other_teacher().write(tmp_path / "b.zarr", rows=3)
    return [SoftLabels.open(tmp_path / name) for name in ("a.zarr", "b.zarr")]


def averaged(sources, target, **options):
    """The average, verified and opened."""
    identity = average(sources, **options).write(target)
    verify_store(target)
    opened = SoftLabels.open(target)
    assert opened.identity == identity
    return opened


def rows(source):
    """Dense rows that sum to one, float64."""
    soft = source.gather(np.arange(11)).astype(np.float64)
    return soft / soft.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("weights", [None, (1, 1), (7, 3), (0.7, 0.3)])
def test_the_average_is_of_probabilities(two, tmp_path, weights):
    """Each class's probability is the weighted mean, rounded once to float16."""
    found = averaged(two, tmp_path / "c.zarr", weights=weights)
    share = 0.7 if weights and weights[0] != weights[1] else 0.5
    expected = share * rows(two[0]) + (1 - share) * rows(two[1])
    difference = abs(found.gather(np.arange(11)) - expected)
    assert (difference <= expected * 2.0**-11 + 2.0**-20).all()
    assert not found.has_logits


def test_a_store_that_claims_the_others_fingerprint_is_not_believed(two, answers, tmp_path):
    """Rows are alike by their hashes and classes: in another order they are refused, or matched."""
    order = np.array([1, 0, *range(2, 11)])
    soft = {"soft_labels": two[0].gather(order)}
    moved = answers.attributes, answers.labels[order], answers.sample_hash[order]
    give_store(tmp_path / "liar.zarr", *moved, **soft)
    liar = SoftLabels.open(tmp_path / "liar.zarr")
    assert liar.attributes.dataset == two[0].attributes.dataset
    with refused(JoinError, where=tmp_path / "liar.zarr", what="sample 0"):
        average([two[0], liar])
    found = averaged([two[0], liar], tmp_path / "c.zarr", by_hash=True)
    np.testing.assert_allclose(found.gather(np.arange(11)), rows(two[0]), atol=5e-4)


def test_the_average_names_all_teachers_and_stores(two, tmp_path):
    """The union of the teachers; weights are told where they are not equal."""
    found = averaged(two, tmp_path / "c.zarr").attributes
    assert [teacher.sha256 for teacher in found.teachers] == ["ab" * 32, f"{1:064x}"]
    assert found.derived_from.operation == "average"
    names = tuple(source.identity for source in two)
    assert found.derived_from.sources == names
    found = averaged(two, tmp_path / "d.zarr", weights=(3, 1)).attributes
    assert found.derived_from.sources == (f"{names[0]} weight 0.75", f"{names[1]} weight 0.25")


def test_a_teacher_of_both_is_named_once(two, tmp_path):
    """Averaging an average again does not double its teachers."""
    averaged(two, tmp_path / "c.zarr")
    again = [SoftLabels.open(tmp_path / "c.zarr"), two[1]]
    found = averaged(again, tmp_path / "d.zarr").attributes
    assert [teacher.sha256 for teacher in found.teachers] == ["ab" * 32, f"{1:064x}"]


def test_a_store_averaged_with_itself_stays_as_it_is(two, tmp_path):
    """To within one step of float16, which renormalising takes."""
    found = averaged([two[0], two[0]], tmp_path / "c.zarr")
    before = two[0].gather(np.arange(11)).view(np.int16).astype(int)
    assert abs(found.gather(np.arange(11)).view(np.int16) - before).max() <= 1


WEIGHTS = {"too few": (1,), "zero": (1, 0), "negative": (2, -1), "NaN": (1, float("nan"))}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_are_none_are_refused(weights):
    """One positive number for each store."""
    with refused(ParamsError, where="weights"):
        normalised_weights(weights, 2)


def test_sparse_stores_give_a_sparse_average(making, tmp_path):
    """The largest of the averaged rows, and how much was left out, as measured."""
    answers = making(num_classes=8)
    other = replace(answers, logits=answers.logits[:, ::-1] / 3)
    answers.write(tmp_path / "a.zarr", top_k=2)
    other.write(tmp_path / "b.zarr", top_k=1)
    sources = [SoftLabels.open(tmp_path / name) for name in ("a.zarr", "b.zarr")]
    found = averaged(sources, tmp_path / "c.zarr")
    mean = ((rows(sources[0]) + rows(sources[1])) / 2).astype(np.float32)
    indices, probs = found.gather_topk(np.arange(11))
    np.testing.assert_allclose(probs, largest(mean, 2)[1], atol=2**-10)
    lost = found.attributes.top_k.total_variation
    measured = total_variation(mean, indices, probs)
    assert (lost.mean, lost.worst) == pytest.approx((measured.mean(), measured.max()), rel=0.01)
    assert lost.samples == 11


def test_a_dense_store_makes_the_average_dense(answers, two, tmp_path):
    """Nothing is left out that one of them knows."""
    answers.write(tmp_path / "sparse.zarr", top_k=2)
    found = averaged([SoftLabels.open(tmp_path / "sparse.zarr"), two[1]], tmp_path / "c.zarr")
    assert found.top_k is None


def test_chunks_of_narrow_rows_do_not_say_how_many_wide_ones_are_in_one(
    making, tmp_path, monkeypatch
):
    """Of a sparse store more rows fit than of the dense average: it would be read by nobody."""
    answers = making(num_classes=8)
    answers.write(tmp_path / "sparse.zarr", top_k=1, rows=6)
    answers.write(tmp_path / "dense.zarr", rows=2)
    sources = [SoftLabels.open(tmp_path / name) for name in ("sparse.zarr", "dense.zarr")]
    monkeypatch.setattr(layout, "_MAX_CHUNK_BYTES", 50)
    found = averaged(sources, tmp_path / "average.zarr")
    assert found.arrays["labels"].layout.rows == 2


def test_views_are_averaged_one_by_one(making, tmp_path):
    """View v with view v."""
    for name in ("a.zarr", "b.zarr"):
        making(views=2).write(tmp_path / name)
    sources = [SoftLabels.open(tmp_path / name) for name in ("a.zarr", "b.zarr")]
    found = averaged(sources, tmp_path / "c.zarr")
    np.testing.assert_allclose(found.gather(np.arange(11)), rows(sources[0]), atol=2**-10)


def test_other_temperatures_are_refused(answers, making, tmp_path):
    """Probabilities of two temperatures have no common one."""
    answers.write(tmp_path / "a.zarr")
    making(temperature=3.0).write(tmp_path / "b.zarr")
    sources = [SoftLabels.open(tmp_path / name) for name in ("a.zarr", "b.zarr")]
    with refused(
        StoreError,
        where=tmp_path / "b.zarr",
        what="temperature",
        expected=re.compile(r"2\.0 as \S+a\.zarr has"),
        found="3.0",
        remedy="Bring",
    ):
        averaged(sources, tmp_path / "c.zarr")


def test_other_images_are_refused(two, making, answers, tmp_path):
    """The first sample that differs is named."""
    other = SoftLabels.open(making(seed=4).write(tmp_path / "other.zarr"))
    with refused(
        JoinError,
        where=tmp_path / "other.zarr",
        what="sample 0",
        expected=re.compile(r"sample_hash \w+, class 2 as \S+a\.zarr"),
    ):
        averaged([two[0], other], tmp_path / "c.zarr")
    fewer = SoftLabels.open(answers.permuted(range(9)).write(tmp_path / "fewer.zarr"))
    with refused(
        JoinError,
        where=tmp_path / "fewer.zarr",
        what="samples",
        expected=re.compile(r"11 as \S+a\.zarr has"),
        found=9,
    ):
        averaged([two[0], fewer], tmp_path / "c.zarr")


def test_another_order_is_found_by_hash_when_asked(two, other_teacher, tmp_path):
    """The average is in the first store's order."""
    order = [4, 3, 10, 0, 1, 2, 9, 8, 5, 6, 7]
    shuffled = SoftLabels.open(other_teacher().permuted(order).write(tmp_path / "shuffled.zarr"))
    with refused(JoinError, where=tmp_path / "shuffled.zarr", what="sample", remedy="--by-hash"):
        averaged([two[0], shuffled], tmp_path / "c.zarr")
    found = averaged([two[0], shuffled], tmp_path / "c.zarr", by_hash=True)
    straight = averaged(two, tmp_path / "d.zarr")
    np.testing.assert_array_equal(found.gather(np.arange(11)), straight.gather(np.arange(11)))


def test_missing_images_are_refused_by_hash_too(two, answers, tmp_path):
    """In either store."""
    fewer = SoftLabels.open(answers.permuted(range(9)).write(tmp_path / "fewer.zarr"))
    for pair in ([two[0], fewer], [fewer, two[0]]):
        with refused(JoinError, where=tmp_path / "a.zarr", what="row 9") as caught:
            averaged(pair, tmp_path / "c.zarr", by_hash=True)
        assert caught.value.where == str(two[0].path)
