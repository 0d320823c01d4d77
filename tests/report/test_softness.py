"""Statistics of a store, and its most ambiguous images."""

from __future__ import annotations

import numpy as np
import pytest
from run_folders import digits, distances

from pipeline.errors import LtdPipeError, StoreError
from pipeline.images.beton import write_beton
from pipeline.images.sources import ArraySource
from pipeline.labels.softmax import soften
from pipeline.params import PrepareParams
from pipeline.report.softness import read_labels


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
