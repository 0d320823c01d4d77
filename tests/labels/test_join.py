"""The worst failure this project can have: labels that belong to other images."""

import re
from dataclasses import replace

import numpy as np
import pytest
from made_answers import attributes
from refusals import refused

from ltd_pipe.errors import JoinError, StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import LabellingFacts


@pytest.fixture
def labels(store):
    """The opened store."""
    return SoftLabels.open(store)


def test_the_right_images_join(answers, labels):
    """Rows in any order, each with its own image's hash, and none at all."""
    for rows in (np.array([7, 0, 7, 10]), np.array([], np.int64)):
        labels.join(rows, answers.sample_hash[rows], "train.beton")


def test_the_first_wrong_sample_is_named(answers, labels):
    """The line says sample, both hashes, both names, and what to do."""
    rows = np.array([2, 9, 4, 1])
    hashes = answers.sample_hash[rows]
    hashes[1:3] ^= np.uint64(1)
    expected, found = answers.sample_hash[9], hashes[1]
    with pytest.raises(JoinError) as caught:
        labels.join(rows, hashes, "train.beton")
    assert str(caught.value) == (
        f"{labels.path}: sample 9: expected sample_hash {expected:016x}, found {found:016x} in "
        "train.beton: these labels belong to other images. Re-run 'ltd-pipe label', or pass the "
        f"data set that 'ltd-pipe store info {labels.path}' names."
    )


SEEN = LabellingFacts(image_shape=(3, 32, 24))


@pytest.mark.parametrize(
    ("labelling", "views", "shape", "any_size", "refused"),
    [
        (SEEN, 1, (3, 32, 24), False, False),
        (SEEN, 1, (32, 24), False, False),
        (SEEN, 1, (3, 24, 32), False, True),
        (SEEN, 1, (1, 32, 24), False, True),
        (SEEN, 1, (3, 24, 32), True, False),
        (SEEN, 2, (3, 24, 32), True, True),
        (None, 2, (3, 24, 32), False, False),
        (LabellingFacts(precision="float32"), 1, (3, 24, 32), False, False),
    ],
)
def test_images_of_another_shape_do_not_join(
    making, tmp_path, labelling, views, shape, any_size, refused
):
    """Where the store says what the teacher saw; views never do."""
    store = SoftLabels.open(making(views=views).write(tmp_path / "x.zarr"))
    store.attributes = store.attributes.model_copy(update={"labelling": labelling})
    if not refused:
        store.require_shape(shape, "train.beton", any_size=any_size)
        return
    with pytest.raises(JoinError) as error:
        store.require_shape(shape, "train.beton", any_size=any_size)
    assert error.value.expected == "3×32×24, as the teacher saw them"
    assert error.value.found == f"{'×'.join(map(str, shape))} in train.beton"
    assert ("any_size" in error.value.remedy) == (views == 1)


@pytest.mark.parametrize("shift", [1, 5])
def test_permuted_rows_do_not_join(answers, labels, shift):
    """The same images in another order are not joined by position."""
    with refused(
        JoinError,
        where="labels.zarr",
        what="sample 0",
        expected=re.compile(r"sample_hash \w+"),
        found=re.compile(r"\w+ in train\.beton: these labels belong to other images"),
    ):
        labels.join(np.arange(11), np.roll(answers.sample_hash, shift), "train.beton")


def test_a_row_that_does_not_exist_does_not_join(answers, labels):
    """A data set longer than the store."""
    with refused(StoreError, where="labels.zarr", what="row", expected="0 to 10", found=11):
        labels.join(np.array([0, 11]), answers.sample_hash[:2], "train.beton")


def test_rows_and_hashes_of_different_number_are_our_own_bug(answers, labels):
    """One hash is not broadcast over all rows."""
    with pytest.raises(ValueError, match="2 rows and 1 sample hashes"):
        labels.join(np.array([0, 0]), answers.sample_hash[:1], "train.beton")


def test_the_labelled_data_are_accepted(answers, labels):
    """Equal classes, number and fingerprint."""
    labels.require_data(answers.manifest, "train.beton")


def other_classes(answers, names):
    """The same samples with other names of classes."""
    changed = attributes(answers.labels, answers.sample_hash, names)
    return replace(answers, attributes=changed)


OTHERS = {
    "permuted": (lambda a: a.permuted(np.arange(11)[::-1]), {"what": "fingerprint"}),
    "fewer samples": (
        lambda a: a.permuted(np.arange(10)),
        {"what": "samples", "expected": 11, "found": "10 (digits, train) in x"},
    ),
    "fewer classes": (
        lambda a: other_classes(a, ("class 0", "class 1")),
        {"what": "classes", "expected": 3, "found": "2 in x"},
    ),
    "classes in another order": (
        lambda a: other_classes(a, ("class 0", "class 2", "class 1")),
        {"what": "class", "expected": "'class 1'", "found": "'class 2' in x"},
    ),
    "another class for one image": (
        lambda a: replace(
            a, attributes=attributes(a.labels * 0, a.sample_hash, a.attributes.class_names)
        ),
        {
            "what": "fingerprint",
            "expected": re.compile(r"\w+… \(digits, train\)"),
            "found": re.compile(r"\w+… \(digits, train\) in x"),
            "remedy": "ltd-pipe label",
        },
    ),
}


@pytest.mark.parametrize(("change", "fields"), OTHERS.values(), ids=OTHERS.keys())
def test_other_data_are_refused_before_the_work(answers, labels, change, fields):
    """From the manifest alone, before an image is read."""
    with refused(JoinError, where="labels.zarr", **fields):
        labels.require_data(change(answers).manifest, "x")


def test_class_names_may_differ_in_their_form_in_unicode(answers, labels):
    """One letter or two for é; where names only look the same, the message has code points."""
    names = ("Caf\u00e9", "bee", "c\u0430t")
    labels.attributes = labels.attributes.model_copy(update={"class_names": names})
    labels.require_classes(("Cafe\u0301", "bee", "c\u0430t"), "y")
    with pytest.raises(JoinError) as caught:
        labels.require_classes(("Cafe\u0301", "bee", "cat"), "y")
    assert r"c\u0430t" in caught.value.expected


def test_rows_are_found_by_hash(answers, labels):
    """A data set in another order, or a part of it, finds its rows."""
    order = np.random.default_rng(0).permutation(11)[:7]
    rows = labels.rows_of(answers.sample_hash[order], answers.labels[order])
    np.testing.assert_array_equal(rows, order)
    labels.join(rows, answers.sample_hash[order], "x")
    assert len(labels.rows_of(answers.sample_hash[:0])) == 0


def test_an_image_without_label_is_named(answers, labels):
    """The first of them, by its place in the data."""
    wanted = answers.sample_hash.copy()
    wanted[[3, 8]] = [0, 2**64 - 1]
    with refused(
        JoinError, where="labels.zarr", what="sample 3", found=re.compile(r"sample_hash \S+")
    ):
        labels.rows_of(wanted, data="x")


def test_an_image_of_another_class_is_refused(answers, labels):
    """The same image under another class means other columns, or another ground truth."""
    changed = answers.labels.copy()
    changed[5] = 99
    with refused(
        JoinError,
        where="labels.zarr",
        what="row 5",
        expected="class -1",
        found="class 99 for the same image, sample 5 of the data",
    ):
        labels.rows_of(answers.sample_hash, changed)


def test_equal_images_share_their_rows(making, tmp_path):
    """Duplicates map to a row of their hash, and of their class where it matters."""
    answers = making(num_samples=6)
    hashes = answers.sample_hash[[0, 0, 1, 2, 0, 3]]
    classes = np.array([0, 2, 1, 1, 1, 0], np.int32)
    twins = replace(
        answers,
        attributes=attributes(classes, hashes, answers.attributes.class_names),
        labels=classes,
        sample_hash=hashes,
    )
    labels = SoftLabels.open(twins.write(tmp_path / "a.zarr"))
    assert set(labels.rows_of(hashes[[0, 1, 4]]).tolist()) <= {0, 1, 4}
    assert labels.rows_of(hashes[[4, 1]], np.array([1, 2])).tolist() == [4, 1]


def test_rows_of_needs_the_classes_checked_as_well(labels):
    """Columns belong to class names, which no image's hash covers."""
    labels.require_classes(labels.attributes.class_names, "x")
    with refused(JoinError, where="labels.zarr", what="classes", expected=3, found="1 in x"):
        labels.require_classes(("class 0",), "x")
