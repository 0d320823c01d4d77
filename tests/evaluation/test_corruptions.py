"""Corrupted images in both layouts: what is measured is what plain numpy measures."""

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from ltd_pipe.errors import DataError, MissingError
from ltd_pipe.evaluation.corruptions import (
    corruption_accuracies,
    corruption_summary,
    find_corruptions,
    state_of_corruptions,
)
from ltd_pipe.evaluation.results import CorruptionRow

NAMES = tuple("abcde")


def darkened(images, severity):
    """Pixels of some test images, fading to black at severity 5."""
    pixels = images.images[:, 0].numpy()
    return (pixels * (1 - severity / 5)).astype(np.uint8)


@pytest.fixture
def arrays(images, tmp_path):
    """CIFAR-10-C's layout: five severities in a row, and one file without severities' meaning."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    blocks = [darkened(images, severity) for severity in range(1, 6)]
    stacked = np.concatenate(blocks)
    np.save(folder / "dark.npy", np.repeat(stacked[..., None], 3, axis=3))
    np.save(folder / "grey.npy", stacked)
    np.save(folder / "labels.npy", np.tile(images.labels.numpy(), 5))
    return folder


@pytest.fixture
def folders(images, tmp_path):
    """ImageNet-C's layout, and one corruption without severities."""
    folder = tmp_path / "folders"
    for severity in (1, 3):
        for i, pixels in enumerate(darkened(images, severity)):
            for place in (f"dark/{severity}", *(["plain"] if severity == 1 else [])):
                file = folder / place / NAMES[int(images.labels[i])] / f"{i:02}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
    return folder


def expected(model, images, severity):
    pixels = torch.from_numpy(darkened(images, severity))[:, None].float() / 255
    with torch.no_grad():
        return float((model(pixels).argmax(dim=1) == images.labels).float().mean())


def test_arrays_are_measured_by_severity(bench, model, images, arrays):
    """Every corruption at five severities; grey and RGB files alike."""
    rows = corruption_accuracies(bench(), find_corruptions(arrays, NAMES), None)
    assert [(row.corruption, row.severity) for row in rows] == [
        (name, severity) for name in ("dark", "grey") for severity in range(1, 6)
    ]
    for row in rows:
        assert row.n == 24
        assert row.accuracy == pytest.approx(expected(model, images, row.severity))
        assert row.low <= row.accuracy <= row.high
    assert rows[0].accuracy > rows[4].accuracy


def test_folders_are_measured_by_severity(bench, model, images, folders):
    """A folder that holds the classes at once has no severity."""
    rows = corruption_accuracies(bench(), find_corruptions(folders, NAMES), None)
    found = {(row.corruption, row.severity): row.accuracy for row in rows}
    assert found == {
        ("dark", 1): pytest.approx(expected(model, images, 1)),
        ("dark", 3): pytest.approx(expected(model, images, 3)),
        ("plain", None): pytest.approx(expected(model, images, 1)),
    }


def test_a_part_can_be_measured(bench, arrays):
    """The same images of each severity, and n says how many."""
    rows = corruption_accuracies(bench(), find_corruptions(arrays, NAMES), 10)
    assert {row.n for row in rows} == {10}


def test_labels_that_do_not_repeat_have_no_severities(bench, images, arrays):
    """A file is then one set."""
    np.save(arrays / "labels.npy", np.arange(120) % 5)
    assert [one.severity for one in find_corruptions(arrays, NAMES)] == [None, None]


def test_interrupted_it_ends_with_the_same_numbers(bench, arrays, tmp_path):
    """Batches that were measured are not measured again."""
    sets, told = find_corruptions(arrays, NAMES), []
    whole = corruption_accuracies(bench(), sets, None)

    def stop(*words):
        told.extend([words] * bool(words[1]))  # not what is only announced
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corruption_accuracies(bench(tmp_path / "state", stop), sets, None)
    tick = lambda *words: told.extend([words] * bool(words[1]))  # noqa: E731
    assert corruption_accuracies(bench(tmp_path / "state", tick), sets, None) == whole
    assert len(told) == 10 * 3


def test_the_mean_has_the_interval_of_one_sets_images():
    """Fifty answers of ten images are no fifty trials."""
    bounds = {"corruption": "fog", "severity": None, "n": 10, "low": 0, "high": 1}
    rows = [CorruptionRow(accuracy=share, **bounds) for share in (0.9, 0.5, 0.4)]
    found = corruption_summary(rows)
    assert (found.value, found.n) == (pytest.approx(0.6), 10)
    assert found.low < 0.35
    assert found.high > 0.8


def test_a_changed_file_changes_the_state(arrays):
    """An interrupted evaluation of other files is not continued."""
    before = state_of_corruptions(arrays)
    assert before == state_of_corruptions(arrays)
    (arrays / "grey.npy").unlink()
    assert before != state_of_corruptions(arrays)


def save(folder, name, content):
    np.save(folder / name, content, allow_pickle=True)


DAMAGES = [
    (
        lambda f: save(f, "labels.npy", np.full(120, 5)),
        {"what": "labels", "expected": "0…4, the model's classes", "found": "5…5"},
    ),
    (
        lambda f: save(f, "labels.npy", np.zeros((120, 1))),
        {"what": "list", "found": "float64 of shape (120, 1)"},
    ),
    (
        lambda f: save(f, "dark.npy", np.zeros((9, 5, 5), np.uint8)),
        {
            "what": "holds",
            "expected": "uint8 of shape (120, height, width, 3)",
            "found": "uint8 of shape (9, 5, 5)",
        },
    ),
    (
        lambda f: save(f, "dark.npy", np.zeros((120, 5, 5, 4), np.uint8)),
        {"what": "holds", "expected": "1 or 3 channels", "found": "uint8 of shape (120, 5, 5, 4)"},
    ),
    (lambda f: save(f, "dark.npy", np.array([{}] * 120)), {"where": "dark.npy", "what": "numpy"}),
    (lambda f: (f / "dark.npy").write_bytes(b"\x93NUMPY"), {"where": "dark.npy", "what": "numpy"}),
]
IDS = ["class", "shape", "count", "channels", "pickle", "torn"]


@pytest.mark.parametrize(("damage", "fields"), DAMAGES, ids=IDS)
def test_damaged_arrays_are_refused(arrays, damage, fields):
    """The file is named, before anything is computed; pickles are not read."""
    damage(arrays)
    with refused(DataError, **fields):
        find_corruptions(arrays, NAMES)


def test_folders_of_neither_layout_are_refused(tmp_path, folders):
    """Nothing there, no such folder, or a name that is neither class nor severity."""
    with refused(MissingError, where=tmp_path / "nowhere", what="folder"):
        find_corruptions(tmp_path / "nowhere", NAMES)
    (tmp_path / "empty").mkdir()
    with refused(
        DataError,
        where=tmp_path / "empty",
        what="corrupted",
        expected="NAME.npy beside labels.npy, or folders NAME/SEVERITY/CLASS/",
    ):
        find_corruptions(tmp_path / "empty", NAMES)
    (folders / "dark" / "strong").mkdir()
    with refused(DataError, where=folders / "dark/strong", what="severity", expected="a number"):
        find_corruptions(folders, NAMES)


def test_images_of_one_channel_too_many_dimensions_are_refused(arrays):
    """Where the axis is that is too many cannot be known."""
    np.save(arrays / "dark.npy", np.zeros((120, 5, 5, 3, 1), np.uint8))
    with refused(
        DataError,
        where=arrays / "dark.npy",
        what="holds",
        expected="uint8 of shape (120, height, width, 3)",
        found="uint8 of shape (120, 5, 5, 3, 1)",
    ):
        find_corruptions(arrays, NAMES)


def test_larger_images_are_brought_to_the_models_size(bench, images, arrays):
    """As those of any folder are: scaled, and cropped to the middle."""
    doubled = np.load(arrays / "grey.npy").repeat(2, axis=1).repeat(2, axis=2)
    np.save(arrays / "dark.npy", doubled)
    rows = corruption_accuracies(bench(), find_corruptions(arrays, NAMES), None)
    dark, grey = rows[0], rows[5]
    assert dark.accuracy == pytest.approx(grey.accuracy, abs=0.15)
