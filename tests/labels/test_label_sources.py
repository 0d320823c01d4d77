"""Where the images of a data set come from: known, told, or refused."""

import hashlib
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photos import CLASSES, answers_of
from PIL import Image
from refusals import refused
from timm.data import ImageDataset, create_dataset
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import datasets

from ltd_pipe.errors import DataError, JoinError
from ltd_pipe.images.manifest import sample_hash
from ltd_pipe.images.sources import open_source
from ltd_pipe.labels import SoftLabelDataset, SoftLabels
from ltd_pipe.labels.sources import find_source
from ltd_pipe.params import PrepareParams

# ImageDataset leaves closing to the garbage collector.
timm_leaves_files_open = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Six images in CIFAR-10's own layout; only torchvision's list of MD5 sums is replaced."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    names = {"label_names": [f"class {k}" for k in range(10)]}
    sums = {}
    for name, content in (
        ("data_batch_1", {"data": pixels, "labels": [3, 1, 4, 1, 5, 9]}),
        ("batches.meta", names),
    ):
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()  # noqa: S324
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path


def test_cifar_joins_a_store_that_was_made_here(cifar):
    """The same pixels in the same order of axes as `ltd-pipe prepare` hashes."""
    source = open_source(PrepareParams(dataset="cifar10", path=str(cifar), download=False), "train")
    hashes = [sample_hash(source.raw(i)) for i in range(6)]
    answers = answers_of(hashes, source.labels, source.class_names)
    store = SoftLabels.open(answers.write(cifar / "labels.zarr"))
    data = SoftLabelDataset(datasets.CIFAR10(cifar), store, order="same")
    assert [label for _, label, _ in data] == [3, 1, 4, 1, 5, 9]
    data.dataset.data[2, 0, 0, 0] ^= 1
    with refused(
        JoinError,
        where=cifar / "labels.zarr",
        what="sample 2",
        expected=re.compile(r"sample_hash \w+"),
        found=re.compile(r"\w+ in CIFAR10 image 2: these labels belong to"),
    ):
        data[2]


def write_idx(path, array):
    """MNIST's file format: magic number, sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def test_mnist_is_hashed_as_its_pixels(tmp_path):
    """28×28 bytes without a channel axis, as they are on disk."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    mnist = datasets.MNIST(tmp_path)
    originals = find_source(mnist)
    assert [originals.hash(i) for i in range(5)] == [sample_hash(image) for image in pixels]
    assert originals.class_names()[0][:2] == ("0 - zero", "1 - one")


@timm_leaves_files_open
def test_timm_reads_the_same_folder(photos):
    """Its order is another one (2 before 10), and labels follow their files all the same."""
    images = create_dataset("", photos.folder)
    names = [images.filename(i) for i in range(4)]
    assert names == [f"bird/{number}.png" for number in (0, 7, 14, 21)]
    data = SoftLabelDataset(images, photos.store())
    for i, (_, label, soft) in enumerate(data):
        path = Path(images.filename(i, absolute=True))
        assert CLASSES[label] == path.parent.name
        np.testing.assert_allclose(soft, photos.soft(path), atol=1e-3)


def test_timm_numbers_classes_its_own_way(tmp_path):
    """Class 10 comes after class 9 for timm, and before it for ltd-pipe: refused."""
    for name in ("9", "10"):
        (tmp_path / "x" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (int(name), 0, 0)).save(tmp_path / "x" / name / "a.png")
    images = ImageDataset(tmp_path / "x")
    hashes = [sample_hash((tmp_path / "x" / name / "a.png").read_bytes()) for name in ("10", "9")]
    store = SoftLabels.open(answers_of(hashes, [0, 1], ("10", "9")).write(tmp_path / "a.zarr"))
    with refused(
        JoinError,
        where=tmp_path / "a.zarr",
        what="class 0",
        expected="'10'",
        found="'9' in ImageDataset",
    ):
        SoftLabelDataset(images, store)


@timm_leaves_files_open
def test_timm_does_not_give_a_neighbour_for_an_unreadable_file(photos):
    """Alone it would give the next image of the folder, which the label does not belong to."""
    photos.paths[1].write_bytes(b"no picture")
    images = create_dataset("", photos.folder)
    place = [images.filename(i, absolute=True) for i in range(12)].index(str(photos.paths[1]))
    assert images[place][0].tobytes() == images[place + 1][0].tobytes()
    data = SoftLabelDataset(Subset(images, range(12)), photos.store())
    with pytest.raises(RuntimeError, match="Failed to load 1 consecutive"):
        data[place]


def test_a_timm_that_cannot_be_kept_from_it_is_refused(photos):
    """Older versions count in another way."""
    images = create_dataset("", photos.folder)
    del images._max_retries
    with refused(DataError, where="ImageDataset", what="timm", remedy="timm"):
        SoftLabelDataset(images, photos.store())


def test_imagenet_is_known_by_its_folders(photos):
    """Torchvision calls its classes by lists of synonyms; labels call them by WordNet's numbers."""
    folder = datasets.ImageFolder(photos.folder)
    folder.wnids, folder.classes = list(CLASSES), [("a", "b"), ("c",), ("d",)]
    assert len(SoftLabelDataset(folder, photos.store())) == 12


class Shuffled(datasets.ImageFolder):
    """One of the many ways to give another image for i."""

    def __getitem__(self, i):
        return super().__getitem__(len(self) - 1 - i)


class OtherSubset(Subset):
    """As in many training scripts: a Subset with a transform."""

    def __getitem__(self, i):
        return super().__getitem__(i)

    def __getitems__(self, indices):
        return [self[i] for i in indices]


UNKNOWN = {
    "own __getitem__": (Shuffled, {"where": "Shuffled", "what": "known", "remedy": "function"}),
    "own Subset": (
        lambda f: OtherSubset(datasets.ImageFolder(f), [1]),
        {"what": "file", "remedy": "function"},
    ),
    "tensors": (
        lambda _: TensorDataset(torch.zeros(2), torch.zeros(2)),
        {
            "where": "TensorDataset",
            "what": "kind",
            "expected": re.compile("torchvision's ImageFolder, CIFAR or MNIST, timm's"),
            "remedy": "function",
        },
    ),
    "a list": (
        lambda _: [("image", 0)],
        {
            "where": "list",
            "what": "kind",
            "expected": re.compile("torchvision's ImageFolder, CIFAR or MNIST, timm's"),
            "remedy": "function",
        },
    ),
    "inside a Subset": (
        lambda _: Subset([1, 2], [0]),
        {
            "where": "list",
            "what": "kind",
            "expected": re.compile("torchvision's ImageFolder, CIFAR or MNIST, timm's"),
            "remedy": "function",
        },
    ),
    "inside others": (
        lambda f: ConcatDataset([datasets.ImageFolder(f), Shuffled(f)]),
        {"where": "Shuffled", "what": "known", "remedy": "function"},
    ),
}


@pytest.mark.parametrize(("make", "fields"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_cannot_be_checked_is_refused(photos, make, fields):
    """Nothing is joined by position; the line says how to make it known."""
    with refused(DataError, **fields):
        SoftLabelDataset(make(photos.folder), photos.store())


class Rows(Dataset):
    """As a data set of Hugging Face: rows are dictionaries."""

    def __init__(self, photos):
        self.paths = photos.paths[::-1]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        path = self.paths[i]
        return {"image": Image.open(path).copy(), "label": CLASSES.index(path.parent.name)}

    def bytes(self, i):
        return self.paths[i].read_bytes()


GIVEN = {
    "bytes": Rows.bytes,
    "a path": lambda rows, i: rows.paths[i],
    "the hash": lambda rows, i: sample_hash(rows.bytes(i)),
    "the hash of NumPy": lambda rows, i: np.uint64(sample_hash(rows.bytes(i))),
    "an array": lambda rows, i: np.frombuffer(rows.bytes(i), np.uint8),
}


@pytest.mark.parametrize("hash_of", GIVEN.values(), ids=GIVEN.keys())
@pytest.mark.parametrize("check", ["first", "always"])
def test_any_data_set_joins_when_it_says_what_its_images_are(photos, hash_of, check):
    """By bytes, path, pixels or hash."""
    rows = Rows(photos)
    data = SoftLabelDataset(rows, photos.store(), hash_of=partial(hash_of, rows), check=check)
    for _ in range(2):
        for path, (image, _, soft) in zip(rows.paths, data, strict=True):
            assert image.tobytes() == Image.open(path).tobytes()
            np.testing.assert_allclose(soft, photos.soft(path), atol=1e-3)


def test_what_is_said_is_checked(photos):
    """Another image's hash has no label, or that of another class."""
    rows = Rows(photos)
    wrong = SoftLabelDataset(rows, photos.store(), hash_of=lambda _: b"another image")
    with refused(
        JoinError,
        where="labels.zarr",
        what="sample 4",
        found=re.compile(r"sample_hash \w+ in image 4 of Rows"),
    ):
        wrong[4]
    shifted = SoftLabelDataset(rows, photos.store(), hash_of=lambda i: rows.paths[i - 4])
    with refused(
        JoinError,
        where="labels.zarr",
        what="row",
        expected="class 0",
        found="class 2 for the same image, image 0 of Rows",
    ):
        shifted[0]


@pytest.mark.parametrize("given", ["path.png", None, -1, 2**64, 0.5, np.zeros(3)])
def test_hash_of_must_return_what_can_be_hashed(photos, given):
    """A text may be a path or content: not guessed."""
    data = SoftLabelDataset(Rows(photos), photos.store(), hash_of=lambda _: given)
    with refused(DataError, where="image 0 of Rows", what="hash_of"):
        data[0]


SAMPLES = {
    "one thing": (("image",), {"what": "data", "expected": "(image, label)", "found": "1 things"}),
    "three things": (
        ("image", 0, 7),
        {"what": "data", "expected": "(image, label)", "found": "3 things"},
    ),
    "an image alone": (
        Image.new("L", (2, 2)),
        {"what": "data", "expected": "(image, label)", "found": "Image"},
    ),
    "other keys": (
        {"img": 0, "fine_label": 1},
        {
            "what": "data",
            "expected": "(image, label)",
            "found": ["fine_label", "img"],
            "remedy": "dictionaries",
        },
    ),
}


@pytest.mark.parametrize(("sample", "fields"), SAMPLES.values(), ids=SAMPLES.keys())
def test_samples_are_image_and_label(photos, sample, fields):
    """What else a data set gives has no place that would be understood."""
    data = SoftLabelDataset([sample], photos.store(), hash_of=lambda _: photos.paths[0])
    with refused(DataError, where="image 0 of list", **fields):
        data[0]


def test_keys_are_chosen(photos):
    """Of dictionaries such as CIFAR-100's at Hugging Face."""
    sample = {"img": "pixels", "coarse_label": 1, "fine_label": 0}
    data = SoftLabelDataset(
        [sample], photos.store(), hash_of=lambda _: photos.paths[0], keys=("img", "fine_label")
    )
    assert data[0][:2] == ("pixels", 0)
