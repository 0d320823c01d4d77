"""Soft labels beside the images of anybody's torch data set, and never beside others."""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_answers import attributes
from made_photos import CLASSES
from refusals import refused
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

from ltd_pipe.errors import DataError, JoinError, ParamsError, StoreError
from ltd_pipe.labels import SoftLabelDataset, SoftLabels
from ltd_pipe.labels.softmax import soften


@pytest.fixture
def folder(photos):
    """Them as torchvision reads them."""
    return ImageFolder(photos.folder)


def overwrite(path, seed=1):
    """Put another picture where one was."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_each_image_comes_with_its_own_label(photos, folder):
    """Image and class as the data set gives them; the soft label is the teacher's for the file."""
    data = SoftLabelDataset(folder, photos.store())
    assert len(data) == 12
    for (path, number), (image, label, soft) in zip(folder.samples, data, strict=True):
        assert label == number
        assert image.tobytes() == folder.loader(path).tobytes()
        assert soft.dtype == torch.float32
        assert float(soft.sum()) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(soft, photos.soft(path), atol=1e-3)


def test_a_store_may_be_named_by_its_path(photos, folder):
    """As in the README."""
    path = photos.store().path
    for given in (path, str(path)):
        assert len(SoftLabelDataset(folder, given)) == 12


@pytest.mark.parametrize("i", [-1, -12, 3, np.int64(3), torch.tensor(3)])
def test_samples_are_counted_as_in_a_list(photos, folder, i):
    """From the end, too, and by any kind of integer."""
    data = SoftLabelDataset(folder, photos.store())
    path = folder.samples[int(i)][0]
    np.testing.assert_allclose(data[i][2], photos.soft(path), atol=1e-3)


@pytest.mark.parametrize("i", [12, -13])
def test_there_is_no_sample_outside(photos, folder, i):
    """So that iterating ends."""
    with pytest.raises(IndexError, match=f"sample {i} of 12"):
        SoftLabelDataset(folder, photos.store())[i]


ARRANGED = {
    "reversed": lambda f: Subset(f, range(11, -1, -1)),
    "a part": lambda f: Subset(f, [5, 2, 9]),
    "a part of a part": lambda f: Subset(Subset(f, [5, 2, 9, 0]), [3, 1]),
    "an image twice": lambda f: Subset(f, [1, 1, 4]),
    "joined": lambda f: ConcatDataset([Subset(f, [7, 8]), f, Subset(f, [3])]),
    "part of joined": lambda f: Subset(ConcatDataset([f, f]), [23, 0, 12]),
    "the last of joined": lambda f: Subset(ConcatDataset([f, Subset(f, [4, 3])]), [-2, -14, 1]),
}


@pytest.mark.parametrize("arrange", ARRANGED.values(), ids=ARRANGED.keys())
def test_labels_follow_their_images(photos, folder, arrange):
    """However a data set is cut, turned and joined; pictures tell which they are."""
    of_pixels = {folder.loader(path).tobytes(): photos.soft(path) for path, _ in folder.samples}
    arranged = arrange(folder)
    for (image, _), (same, _, soft) in zip(
        arranged, SoftLabelDataset(arranged, photos.store()), strict=True
    ):
        assert image.tobytes() == same.tobytes()
        np.testing.assert_allclose(soft, of_pixels[image.tobytes()], atol=1e-3)


def test_files_that_changed_places_keep_their_labels(photos, folder):
    """Two pictures of one class are renamed to one another: each label follows its picture."""
    store, (one, two) = photos.store(), photos.paths[:2]
    one.rename(one.with_suffix(".x"))
    two.rename(one)
    one.with_suffix(".x").rename(two)
    data = SoftLabelDataset(folder, store)
    np.testing.assert_allclose(data[0][2], photos.soft(two), atol=1e-3)
    with refused(
        JoinError,
        where="labels.zarr",
        what="sample 0",
        expected=re.compile(r"sample_hash \w+"),
        found=re.compile(rf"^\w+ in {one}: these labels"),
        remedy="order",
    ):
        SoftLabelDataset(folder, store, order="same")[0]


def test_the_same_order_is_accepted_when_it_is(photos, folder):
    """Row by row, on demand."""
    data = SoftLabelDataset(folder, photos.store(), order="same")
    for i, (_, _, soft) in enumerate(data):
        np.testing.assert_allclose(soft, photos.soft(folder.samples[i][0]), atol=1e-3)


@pytest.mark.parametrize(
    ("arrange", "found"),
    [(lambda f: Subset(f, range(11)), 11), (lambda f: ConcatDataset([f, f]), 24)],
    ids=["shorter", "longer"],
)
def test_another_number_of_images_is_not_the_same_order(photos, folder, arrange, found):
    """Refused before an image is read."""
    with refused(JoinError, what="samples", expected=12, found=re.compile(f"^{found} in ")):
        SoftLabelDataset(arrange(folder), photos.store(), order="same")


def test_one_wrong_image_is_refused_when_it_is_seen(photos, folder):
    """The line says sample, file, hash and what to do; the others are given."""
    data = SoftLabelDataset(folder, photos.store())
    overwrite(photos.paths[6])
    assert len([data[i] for i in range(12) if i != 6]) == 11
    with refused(
        JoinError,
        where="labels.zarr",
        what="sample 6",
        found=re.compile(r"sample_hash \w+ in \S+21\.png"),
        remedy="ltd-pipe label",
    ):
        data[6]


def test_an_image_that_was_never_labelled_is_refused(photos):
    """A data set longer than the store has no label for what came later."""
    store = photos.store()
    overwrite(photos.folder / "cat" / "new.png")
    data = SoftLabelDataset(ImageFolder(photos.folder), store)
    assert len(data) == 13
    with refused(
        JoinError,
        where="labels.zarr",
        what="sample 8",
        found=re.compile(r"sample_hash \w+ in \S+new\.png"),
    ):
        list(data)


def test_a_file_that_changes_later_is_found_when_always_checked(photos, folder):
    """By check="always" alone: that is what it is for."""
    first, always = (
        SoftLabelDataset(folder, photos.store(), check=check) for check in ("first", "always")
    )
    for data in (first, always):
        data[3]
    overwrite(photos.paths[3])
    first[3]
    with refused(JoinError, where="labels.zarr", what="sample 3"):
        always[3]


def test_a_data_set_that_is_reordered_later_is_found_out(photos, folder):
    """What is remembered is remembered of a file, not of a place in the data set."""
    subset = Subset(folder, [0, 1, 2])
    data = SoftLabelDataset(subset, photos.store())
    list(data)
    subset.indices = [2, 0, 1]
    folder.samples[0], folder.samples[3] = folder.samples[3], folder.samples[0]
    for i in range(3):
        path = folder.samples[subset.indices[i]][0]
        np.testing.assert_allclose(data[i][2], photos.soft(path), atol=1e-3)


def test_an_image_is_hashed_once(photos, folder, monkeypatch):
    """After the first time, files are read by the data set alone."""
    data, read = SoftLabelDataset(folder, photos.store()), []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda p: read.append(p) or original(p))
    for _ in range(3):
        data[4]
    assert read == [photos.paths[4]]


def test_labels_that_contradict_the_truth_are_refused(photos, folder):
    """A moved file, or classes that are numbered otherwise."""
    store = photos.store()
    photos.paths[0].rename(photos.folder / "dog" / "moved.png")
    data = SoftLabelDataset(ImageFolder(photos.folder), store)
    with refused(
        JoinError,
        where="labels.zarr",
        what="row 0",
        expected="class 0",
        found=re.compile(r"class 2 for the same image, \S+moved"),
    ):
        list(data)


def test_labels_are_compared_each_time(photos, folder):
    """Also of an image that has been seen."""
    data = SoftLabelDataset(folder, photos.store())
    data[2]
    folder.samples[2] = (folder.samples[2][0], 1)
    with refused(
        JoinError,
        where="labels.zarr",
        what="row 2",
        expected="class 0",
        found=re.compile("class 1"),
    ):
        data[2]


def test_unknown_truth_contradicts_nothing(photos, folder):
    """-1 in the store, or -1 or None from the data set."""
    unknown = np.full(12, -1, np.int32)
    facts = attributes(unknown, photos.answers.sample_hash, CLASSES)
    answers = replace(photos.answers, labels=unknown, attributes=facts)
    store = SoftLabels.open(answers.write(photos.folder.parent / "unknown.zarr"))
    assert len(list(SoftLabelDataset(folder, store))) == 12
    for nothing in (-1, None):
        folder.target_transform = lambda _, nothing=nothing: nothing
        data = SoftLabelDataset(folder, photos.store())
        assert data[5][1] is nothing
        np.testing.assert_allclose(data[5][2], photos.soft(photos.paths[5]), atol=1e-3)


@pytest.mark.parametrize("label", [3, -2, 1.0, "cat", [0, 1, 0], torch.tensor([0.0, 1, 0])])
def test_what_is_no_class_is_refused(photos, folder, label):
    """One-hot vectors and texts cannot be compared with the ground truth."""
    folder.target_transform = lambda _: label
    data = SoftLabelDataset(folder, photos.store())
    with refused(DataError, where="0.png", what="label", expected="a class, 0 to 2, or -1"):
        data[0]


@pytest.mark.parametrize("label", [np.int64(0), torch.tensor(0), True * 0, np.array(0)])
def test_any_integer_is_a_class(photos, folder, label):
    """As data sets give them."""
    folder.target_transform = lambda _: label
    assert SoftLabelDataset(folder, photos.store())[0][1] is label


def test_an_image_that_is_there_twice_gets_the_label_of_its_class(photos, folder):
    """Two rows of one hash: a teacher that saw them as two samples has two answers."""
    hashes = photos.answers.sample_hash.copy()
    hashes[11] = hashes[0]
    facts = attributes(photos.answers.labels, hashes, CLASSES)
    answers = replace(photos.answers, sample_hash=hashes, attributes=facts)
    photos.paths[11].write_bytes(photos.paths[0].read_bytes())
    store = SoftLabels.open(answers.write(photos.folder.parent / "twins.zarr"))
    for order in (range(12), range(11, -1, -1)):
        data = SoftLabelDataset(Subset(folder, order), store)
        labels = {i: data[place][2] for place, i in enumerate(order)}
        for i in (0, 11):
            np.testing.assert_allclose(labels[i], photos.soft(photos.paths[i]), atol=1e-3)


OTHER_CLASSES = {
    "fewer": (["bird", "cat"], {"what": "classes", "expected": 3, "found": "2"}),
    "in another order": (
        ["bird", "dog", "cat"],
        {"what": "class 1", "expected": "'cat'", "found": "'dog'"},
    ),
}


@pytest.mark.parametrize(("names", "fields"), OTHER_CLASSES.values(), ids=OTHER_CLASSES.keys())
def test_other_classes_are_refused_before_an_image_is_read(photos, folder, names, fields):
    """The columns of a soft label have names; also those of a part of a data set."""
    folder.classes = names
    for data in (folder, Subset(folder, [0]), ConcatDataset([folder])):
        found = f"{fields['found']} in {type(data).__name__}"
        with refused(JoinError, where="labels.zarr", **fields | {"found": found}):
            SoftLabelDataset(data, photos.store())


def test_class_names_may_be_given(photos, folder):
    """In place of the data set's own."""
    folder.classes = ["n01", "n02", "n03"]
    SoftLabelDataset(folder, photos.store(), class_names=CLASSES)
    with refused(
        JoinError,
        where="labels.zarr",
        what="class 0",
        expected="'bird'",
        found="'x' in ImageFolder",
    ):
        SoftLabelDataset(folder, photos.store(), class_names=["x", "cat", "dog"])


def test_another_temperature_is_taken_from_the_logits(photos, folder):
    """Instead of the store's own, not on top of it."""
    data = SoftLabelDataset(folder, photos.store(), temperature=0.5)
    logits = photos.answers.logits[photos.paths.index(Path(folder.samples[7][0]))]
    np.testing.assert_allclose(data[7][2], soften(logits, 0.5), atol=5e-3)


def test_a_temperature_needs_logits_and_sense(photos, folder):
    """Refused when the data set is made."""
    with refused(
        ParamsError, where="temperature", what="range", expected="1e-06 to 1e+06", found=0.0
    ):
        SoftLabelDataset(folder, photos.store(), temperature=0.0)
    with refused(StoreError, where="labels.zarr", what="logits"):
        SoftLabelDataset(folder, photos.store(keep_logits=False), temperature=1.0)


def test_sparse_labels_are_spread(photos, folder):
    """Of a top-k store all K probabilities are given."""
    data = SoftLabelDataset(folder, photos.store(top_k=2))
    for (path, _), (_, _, soft) in zip(folder.samples, data, strict=True):
        np.testing.assert_allclose(soft, photos.soft(path), atol=2e-3)
        assert float(soft.sum()) == pytest.approx(1, abs=1e-6)


def test_many_at_once_are_as_one_by_one(photos, folder):
    """`__getitems__`, which a DataLoader calls, gives the same."""
    data = SoftLabelDataset(Subset(folder, [4, 9, 0, 4]), photos.store())
    for (image, label, soft), i in zip(data.__getitems__([3, 0, 1]), (3, 0, 1), strict=True):
        one, number, alone = data[i]
        assert (one.tobytes(), number) == (image.tobytes(), label)
        assert torch.equal(soft, alone)
    assert data.__getitems__([]) == []


def test_the_transform_comes_last(photos, folder):
    """It takes the image as the data set gives it."""
    data = SoftLabelDataset(folder, photos.store(), transform=lambda image: image.size)
    assert data[0][0] == (10, 12)


@pytest.mark.parametrize(
    ("shape", "any_size", "refused"),
    [
        ((3, 12, 10), False, False),
        ((1, 12, 10), False, False),
        ((3, 10, 12), False, True),
        ((3, 6, 6), False, True),
        ((3, 6, 6), True, False),
    ],
)
def test_tensors_of_another_size_are_refused_unless_told(photos, folder, shape, any_size, refused):
    """Pictures that are no tensors yet are not what is trained on."""
    store = photos.asked(image_shape=(3, 12, 10)).store("asked.zarr", rows=4)
    assert SoftLabelDataset(folder, store)[0][0].size == (10, 12)
    data = SoftLabelDataset(
        folder, store, transform=lambda _: torch.zeros(shape), any_size=any_size
    )
    if not refused:
        assert data[0][0].shape == shape
        return
    with pytest.raises(JoinError) as error:
        data[0]
    assert error.value.expected == "12×10, as the teacher saw them"
    assert error.value.found == f"{shape[1]}×{shape[2]} in {folder.samples[0][0]}"
    assert "any_size=True" in error.value.remedy


class Stream(IterableDataset):
    """Images without numbers."""

    def __iter__(self):
        return iter([])


@pytest.mark.parametrize("dataset", [Stream(), iter([]), 3], ids=["stream", "iterator", "number"])
def test_without_numbers_nothing_can_be_checked(photos, dataset):
    """Streams are refused."""
    with refused(DataError, what="map-style", expected="__len__ and __getitem__"):
        SoftLabelDataset(dataset, photos.store(), hash_of=lambda i: i)


@pytest.mark.parametrize("option", [{"order": "exact"}, {"check": "never"}, {"views": "mine"}])
def test_unknown_options_are_refused(photos, folder, option):
    """A misspelled check must not mean none."""
    with pytest.raises(ValueError, match=f"{next(iter(option.values()))}"):
        SoftLabelDataset(folder, photos.store(), **option)


def test_a_copy_elsewhere_checks_anew(photos, folder):
    """Pickled, it takes along what to join, not what was found here."""
    data = SoftLabelDataset(folder, photos.store())
    list(data)
    overwrite(photos.paths[3])
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert torch.equal(copy[4][2], data[4][2])
    with refused(JoinError, where="labels.zarr", what="sample 3"):
        copy[3]


def test_a_store_that_was_replaced_is_not_reopened(photos, folder):
    """A worker that starts later must not read other labels than the others."""
    packed = pickle.dumps(SoftLabelDataset(folder, photos.store()))
    photos.store(keep_logits=False)
    with refused(StoreError, where="labels.zarr", what="replaced", expected=re.compile("identity")):
        pickle.loads(packed)  # noqa: S301
