"""Pictures: attacked images, and training images with their soft labels."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from made_answers import attributes, make_answers
from page_reader import read
from PIL import Image
from refusals import refused
from run_folders import digits, distances

from ltd_pipe.errors import LtdPipeError, ResultError, StoreError
from ltd_pipe.images.beton import write_beton
from ltd_pipe.images.sources import ArraySource
from ltd_pipe.labels import SoftLabels, derive
from ltd_pipe.labels.softmax import soften
from ltd_pipe.params import PrepareParams
from ltd_pipe.report.page import render_page
from ltd_pipe.report.pictures import (
    Examples,
    TrainingImage,
    picture_uri,
    read_examples,
    read_labels,
)


@pytest.fixture
def path(runs):
    """The examples of a whole run."""
    return runs / "evaluation" / "examples.npz"


def rewrite(path, **changes):
    """Change arrays of the file; None leaves one out."""
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_no_more_are_read_than_are_wanted(path):
    """report.examples counts."""
    assert len(read_examples(path, 10, 3)) == 3
    assert len(read_examples(path, 10, 64)) == 8


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"label": None}, {"what": "no label"}),
        (
            {"label": np.zeros(3, np.int64)},
            {"what": "label", "expected": "shape (8,)", "found": (3,)},
        ),
        (
            {"adversarial": np.zeros((8, 1, 4, 4), np.float32)},
            {"what": "adversarial", "expected": "shape (8, 1, 8, 8)", "found": (8, 1, 4, 4)},
        ),
        ({"clean": np.zeros((8, 1, 8, 8), np.float32)}, {"what": "clean", "expected": "uint8"}),
        (
            {"clean": np.zeros((8, 2, 8, 8), np.uint8)},
            {"what": "clean", "expected": "shape (M, 1 or 3, H, W)", "found": (8, 2, 8, 8)},
        ),
        ({"adversarial": np.full((8, 1, 8, 8), 1.5, np.float32)}, {"what": "adversarial: pixels"}),
        (
            {"adversarial": np.full((8, 1, 8, 8), np.nan, np.float32)},
            {"what": "adversarial: pixels"},
        ),
        ({"clean_prediction": np.full(8, 10)}, {"what": "clean_prediction"}),
    ],
    ids=["missing", "count", "size", "dtype", "channels", "range", "nan", "class"],
)
def test_arrays_that_do_not_fit_are_refused(path, change, fields):
    """The file and the array are named."""
    rewrite(path, **change)
    with refused(ResultError, where=path, **fields):
        read_examples(path, 10, 8)


@pytest.mark.parametrize("keep", [0, 10, 500], ids=["empty", "stub", "half"])
def test_a_truncated_file_is_refused(path, keep):
    """Numpy's and zip's own errors are not shown."""
    path.write_bytes(path.read_bytes()[:keep])
    with refused(ResultError, where=path, what="damaged"):
        read_examples(path, 10, 8)


def test_a_pickle_in_the_file_is_not_run(path):
    """Objects are refused, whatever they would do."""
    rewrite(path, label=np.array([print] * 8, dtype=object))
    with refused(ResultError, where=path, what="damaged"):
        read_examples(path, 10, 8)


def decode(uri):
    """The pixels of a data URI."""
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def examples(count, side, channels, eps):
    """Attacked images whose left half rose by eps and whose right half fell."""
    clean = np.full((count, channels, side, side), 128, dtype=np.uint8)
    adversarial = clean.astype(np.float32) / 255
    adversarial[..., : side // 2] += eps
    adversarial[..., side // 2 :] -= eps
    zeros = np.zeros(count, dtype=np.int64)
    return Examples(clean, adversarial, zeros, zeros, zeros + 1, zeros + 9)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_picture_keeps_its_pixels(channels):
    """PNG is exact; grey stays grey."""
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 8, 8), dtype=np.uint8)
    found = decode(picture_uri(pixels.astype(np.float32) / 255, 128))
    expected = pixels.transpose(1, 2, 0)
    np.testing.assert_array_equal(found, expected[:, :, 0] if channels == 1 else expected)


def test_a_large_picture_is_shrunk_in_proportion():
    """The longer side decides."""
    assert decode(picture_uri(np.zeros((3, 50, 200), np.float32), 100)).shape == (25, 100, 3)


def test_values_beyond_the_range_are_clipped():
    """A wrapped-round pixel would be a lie."""
    assert decode(picture_uri(np.full((1, 2, 2), 1.7, np.float32), 9)).tolist() == [[255, 255]] * 2


def test_a_change_of_eps_is_drawn_from_black_to_white():
    """Grey is no change, whatever the size of eps."""
    eps = 8 / 255
    ((_, _, change),) = examples(1, 4, 1, eps).pictures(eps)
    assert decode(change)[0].tolist() == [255, 255, 0, 0]


def test_an_answer_is_marked_by_the_ground_truth(facts):
    """Right before, wrong after; the index is that of the data."""
    text = "".join(read(render_page(replace(facts, examples=examples(1, 4, 1, 0.1)))).text)
    words = " ".join(text[text.index("test image 9:") :].split())
    assert words.startswith("test image 9: zero")
    assert "clean✓ right: zero" in words
    assert "attacked✗ wrong: one" in words


def test_many_large_pictures_stay_within_the_page():
    """64 photographs of noise: the page may have 3 MB."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 3, 224, 224), dtype=np.uint8)
    few = examples(64, 224, 3, 0.1)
    many = Examples(noise, noise / np.float32(255), *[few.label] * 4)
    assert sum(len(uri) for pictures in many.pictures(0.1) for uri in pictures) < 2e6


def shown(facts, *images):
    """What the page says of training images, without white space."""
    labels = replace(facts.labels, ambiguous=images, contradicted=())
    text = "".join(read(render_page(replace(facts, labels=labels))).text)
    text = "".join(text.split())
    begin = text.index("marksthegroundtruth.")
    return text[begin : text.index("Wheretheteacher")]


def test_bars_are_the_largest_classes_and_the_rest_is_kept(facts):
    """Shares add up to one."""
    soft = np.array([0.05, 0.4, 0.1, 0.3, 0.1, 0.05], dtype=np.float32)
    image = TrainingImage(7, 3, soft)
    assert list(image.bars) == [1, 3, 2, 4]
    assert list(image.bars.values()) == pytest.approx([0.4, 0.3, 0.1, 0.1])
    assert image.picture(8) == ""
    text = shown(facts, image)
    assert "labelled<script>alert(3)</script>" in text
    assert text.count("●groundtruth") == 1
    assert text.endswith("others10.0%")


def test_a_class_of_no_weight_has_no_bar():
    """A sure label is one bar, not four of which three say 0.0 %."""
    soft = np.array([0.99985, 0.0001, 0.00005], dtype=np.float32)
    assert list(TrainingImage(0, 0, soft).bars) == [0]


def test_the_ground_truth_is_shown_however_unlikely():
    """What the teacher thinks of it is what a reader looks for; shares still add up to one."""
    soft = np.array([0.4, 0.3, 0.15, 0.1, 0.05, 0.0], dtype=np.float32)
    image = TrainingImage(0, 5, soft)
    assert list(image.bars) == [0, 1, 2, 3, 5]
    assert sum(image.bars.values()) == pytest.approx(0.95)


def test_an_unlabelled_image_has_no_truth(facts):
    """-1 is not the last class."""
    text = shown(facts, TrainingImage(0, -1, np.array([0.5, 0.5])))
    assert "image0,notlabelled" in text
    assert "groundtruth" not in text.removeprefix("marksthegroundtruth.")


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


def test_contradictions_of_a_low_temperature_are_ranked_all_the_same(tmp_path):
    """All labels are 1 less 0 in float16: the logits tell which teacher was surest."""
    logits = np.array([[2, 0, 0], [9, 0, 0], [4, 0, 0], [9, 8, 0]], np.float32)
    store = mislabelled(tmp_path, [1, 1, 1, 1], logits)
    derive.retemper(SoftLabels.open(store), 0.01).write(tmp_path / "cold.zarr")
    found = read_labels(tmp_path / "cold.zarr", None, 0, 4)
    assert [float(image.soft.max()) for image in found.contradicted] == [1.0] * 4
    assert [image.index for image in found.contradicted] == [1, 2, 0, 3]


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
    with refused(LtdPipeError, where=runs / "labels.zarr", what="class", expected="'zero'"):
        read_labels(runs / "labels.zarr", runs / "other.beton", 3)


def test_a_damaged_store_is_refused(runs):
    """The store's own reader says so."""
    (runs / "labels.zarr" / "zarr.json").write_text("{}")
    with refused(StoreError, where=runs / "labels.zarr", what="damaged"):
        read_labels(runs / "labels.zarr", None, 3)
