"""Pictures as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ltd_pipe.report.pictures import (
    Examples,
    TrainingImage,
    attacked_pictures,
    picture_uri,
    soft_pictures,
)


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
    picture = attacked_pictures(examples(1, 4, 1, eps), ("a", "b"), eps)[0]
    assert decode(picture.perturbation)[0].tolist() == [255, 255, 0, 0]


def test_an_answer_is_marked_by_the_ground_truth():
    """Right before, wrong after; the index is that of the data."""
    picture = attacked_pictures(examples(1, 4, 1, 0.1), ("a", "b"), 0.1)[0]
    assert (picture.index, picture.truth) == (9, "a")
    assert (picture.clean_answer.text, picture.clean_answer.right) == ("a", True)
    assert (picture.adversarial_answer.text, picture.adversarial_answer.right) == ("b", False)


def test_many_large_pictures_stay_within_the_page():
    """64 photographs of noise: the page may have 3 MB."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 3, 224, 224), dtype=np.uint8)
    few = examples(64, 224, 3, 0.1)
    many = Examples(noise, noise / np.float32(255), *[few.label] * 4)
    pictures = attacked_pictures(many, ("a",), 0.1)
    assert sum(len(p.clean) + len(p.adversarial) + len(p.perturbation) for p in pictures) < 2e6


def test_bars_are_the_largest_classes_and_the_rest_is_kept():
    """Shares add up to one."""
    soft = np.array([0.05, 0.4, 0.1, 0.3, 0.1, 0.05], dtype=np.float32)
    picture = soft_pictures([TrainingImage(7, 3, soft)], "abcdef")[0]
    assert [bar.text for bar in picture.bars] == ["b", "d", "c", "e"]
    assert [bar.is_truth for bar in picture.bars] == [False, True, False, False]
    assert picture.rest == pytest.approx(0.1)
    assert picture.picture == ""


def test_a_class_of_no_weight_has_no_bar():
    """A sure label is one bar, not four of which three say 0.0 %."""
    soft = np.array([0.99985, 0.0001, 0.00005], dtype=np.float32)
    assert len(soft_pictures([TrainingImage(0, 0, soft)], "abc")[0].bars) == 1


def test_the_ground_truth_is_shown_however_unlikely():
    """What the teacher thinks of it is what a reader looks for; shares still add up to one."""
    soft = np.array([0.4, 0.3, 0.15, 0.1, 0.05, 0.0], dtype=np.float32)
    picture = soft_pictures([TrainingImage(0, 5, soft)], "abcdef")[0]
    assert [bar.text for bar in picture.bars] == ["a", "b", "c", "d", "f"]
    assert picture.bars[-1].is_truth
    assert picture.rest == pytest.approx(0.05)


def test_an_unlabelled_image_has_no_truth():
    """-1 is not the last class."""
    picture = soft_pictures([TrainingImage(0, -1, np.array([0.5, 0.5]))], "ab")[0]
    assert picture.truth == ""
    assert not any(bar.is_truth for bar in picture.bars)
