"""Statistics of a store, and its most ambiguous images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_answers import attributes, make_answers
from run_folders import digits, distances

from ltd_pipe.errors import LtdPipeError, StoreError
from ltd_pipe.images.beton import write_beton
from ltd_pipe.images.sources import ArraySource
from ltd_pipe.labels.softmax import soften
from ltd_pipe.params import PrepareParams
from ltd_pipe.report.pictures import read_labels


@pytest.fixture(scope="module")
def soft():
    """The soft labels that were stored, computed once more."""
    return soften(distances(digits()[0][:400]).astype(np.float32), 0.8)


def test_the_most_ambiguous_images_have_the_highest_entropy(whole_runs, soft):
    """In falling order, against a plain computation."""
    found = read_labels(whole_runs / "labels.zarr", None, 5).ambiguous
    entropy = -(soft * np.log(soft)).sum(axis=1)
    assert [image.index for image in found] == np.argsort(-entropy)[:5].tolist()
    np.testing.assert_allclose(found[0].soft, soft[found[0].index], atol=1e-3)


def test_an_image_comes_with_its_own_pixels(whole_runs):
    """Another image beside a soft label would mislead every reader."""
    images, labels = digits()
    for image in read_labels(whole_runs / "labels.zarr", whole_runs / "train.beton", 6).ambiguous:
        np.testing.assert_array_equal(image.pixels, images[image.index][None])
        assert image.label == labels[image.index]


def test_without_the_images_labels_are_shown_alone(whole_runs):
    """A store travels without its data."""
    assert all(i.pixels is None for i in read_labels(whole_runs / "labels.zarr", None, 3).ambiguous)


def mislabelled(folder, labels, logits):
    """A store of samples whose ground truth is `labels`, and their teacher's logits."""
    answers = make_answers(num_samples=len(labels), num_classes=logits.shape[1], temperature=1.0)
    answers = replace(answers, labels=np.array(labels, np.int32), logits=logits)
    answers = replace(
        answers, attributes=attributes(answers.labels, answers.sample_hash, list("abc"), 1.0)
    )
    return answers.write(folder / "labels.zarr")


def test_contradictions_are_ranked_by_what_the_truth_falls_short(tmp_path):
    """q[max] - q[truth] among those where they differ; equal ones in the order of the samples."""
    soft = np.array(
        [[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.9, 0.1, 0], [0.5, 0.25, 0.25], [0.4, 0.3, 0.3]]
    )
    logits = np.log(np.maximum(soft, 1e-9)).astype(np.float32)
    store = mislabelled(tmp_path, [1, 0, 1, 2, -1], logits)
    found = read_labels(store, None, 0, 10)
    # The second agrees, the last is of unknown class.
    assert [image.index for image in found.contradicted] == [2, 0, 3]
    assert (found.disagreements, found.known) == (3, 4)
    assert found.disagreements / found.known == found.summary.disagreement
    assert [i.index for i in read_labels(store, None, 0, 1).contradicted] == [2]


def test_contradictions_are_counted_as_in_the_summary(whole_runs, soft):
    """Against a plain computation on real digits, each with its own pixels."""
    images, labels = digits()
    found = read_labels(whole_runs / "labels.zarr", whole_runs / "train.beton", 6, 10)
    wrong = soft.argmax(axis=1) != labels[:400]
    assert found.disagreements == wrong.sum() > 10
    assert len(found.contradicted) == 10
    for image in found.contradicted:
        assert wrong[image.index]
        np.testing.assert_array_equal(image.pixels, images[image.index][None])


def test_a_teacher_that_agrees_contradicts_nothing(tmp_path):
    """No candidate is made up where there is none."""
    found = read_labels(
        mislabelled(tmp_path, [0, 1, 2], 3 * np.eye(3, dtype=np.float32)), None, 1, 10
    )
    assert (found.contradicted, found.disagreements, found.known) == ((), 0, 3)


def test_of_several_views_the_mean_counts(tmp_path):
    """A store of augmented views is read as what the teacher says on average."""
    answers = make_answers(views=3, temperature=1.0)
    found = read_labels(answers.write(tmp_path / "labels.zarr"), None, 11).ambiguous
    mean = soften(answers.logits, 1.0).mean(axis=1)
    for image in found:
        np.testing.assert_allclose(image.soft, mean[image.index], atol=1e-3)


def test_the_histogram_counts_every_sample_once(whole_runs, soft):
    """Against numpy, and the total against N."""
    histogram = read_labels(whole_runs / "labels.zarr", None, 0).histogram
    assert histogram.sum() == 400
    expected = np.histogram(soft.max(axis=1), bins=20, range=(0, 1))[0]
    # Rounding to float16 moves a sample over the edge of a bin at most.
    assert np.abs(np.cumsum(histogram) - np.cumsum(expected)).max() <= 1


def test_other_images_are_refused(runs):
    """The pictures beside the labels would be of other samples."""
    images, labels = digits()
    source = ArraySource("digits", ("a", *"123456789"), images[:400], labels[:400])
    params = PrepareParams(dataset="digits", channels=1)
    write_beton(source, runs / "other.beton", params, "train")
    with pytest.raises(LtdPipeError, match="labels.zarr"):
        read_labels(runs / "labels.zarr", runs / "other.beton", 3)


def test_a_damaged_store_is_refused(runs):
    """The store's own reader says so."""
    (runs / "labels.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match="labels.zarr"):
        read_labels(runs / "labels.zarr", None, 3)
