"""Sources: what they accept, in which order, and what they refuse."""

import hashlib
import pickle

import numpy as np
import pytest
from torchvision import datasets

from pipeline.errors import DataError, MissingError
from pipeline.images.sources import FolderSource, open_source
from pipeline.params import PrepareParams

from .conftest import picture


def test_digits_are_split_without_overlap():
    """Both parts together are the 1,797 images, a third of them for testing."""
    params = PrepareParams(dataset="digits", channels=1)
    train, test = (open_source(params, split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert abs(len(test) / 1797 - 1 / 3) < 0.03
    assert train.decode(0).shape == (8, 8, 3)
    assert not {image.tobytes() for image in test.images} & {i.tobytes() for i in train.images}


def test_a_folder_is_read_in_sorted_order(photos):
    """Classes by name, images by path, labels accordingly."""
    source = FolderSource(photos / "train")
    names = [path.relative_to(photos / "train").as_posix() for path in source.paths]
    assert names == sorted(names)
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0] * 6 + [1] * 6
    assert source.where(0).endswith("train/cat/0.png")


def test_what_is_no_image_by_its_name_is_left_alone(photos):
    """A text file beside the images is not read."""
    (photos / "train/cat/notes.txt").write_text("x")
    assert len(FolderSource(photos / "train")) == 12


def test_nested_folders_and_endings_in_capitals(photos):
    """Images at any depth count, whatever the case of their ending."""
    (photos / "train/cat/more").mkdir()
    (photos / "train/cat/more/x.JPG").write_bytes(picture(1, kind="JPEG"))
    assert len(FolderSource(photos / "train")) == 13


def test_a_loop_of_links_is_not_followed(photos):
    """A link to the folder above does not make the walk endless."""
    (photos / "train/cat/loop").symlink_to(photos / "train")
    assert len(FolderSource(photos / "train")) == 12


def test_images_without_class_folders_have_unknown_labels(photos):
    """With class names given, a flat folder is read with label -1."""
    source = FolderSource(photos / "train/cat", ("cat", "dog"))
    assert source.labels.tolist() == [-1] * 6


def empty(root):
    for path in (root / "train").rglob("*.png"):
        path.unlink()


def one_class(root):
    for path in (root / "train/dog").iterdir():
        path.unlink()
    (root / "train/dog").rmdir()


def empty_class(root):
    (root / "train/elk").mkdir()


def no_test(root):
    (root / "test").rename(root / "testing")


def other_classes(root):
    (root / "test/cat").rename(root / "test/cow")


def no_classes(root):
    for name in ("cat", "dog"):
        (root / "train" / name).rename(root / name)


REFUSED = [
    (empty, "train", DataError, "train: has no images: expected files ending in .bmp, .jpeg"),
    (one_class, "train", DataError, "has one class only, 'cat'"),
    (empty_class, "train", DataError, "train/elk: class without images"),
    (no_classes, "train", DataError, "train: has no class folders"),
    (no_test, "test", MissingError, "has no test images: expected test/ or val/"),
    (other_classes, "test", DataError, "classes differ .* in one of them only: cat, cow"),
]


@pytest.mark.parametrize(
    ("damage", "split", "error", "message"), REFUSED, ids=[case[0].__name__ for case in REFUSED]
)
def test_refused_folders(photos, params, damage, split, error, message):
    """Each is named, with what was expected."""
    damage(photos)
    with pytest.raises(error, match=message):
        open_source(params, split)


def test_a_folder_that_is_not_there_is_named():
    """MissingError, which is a FileNotFoundError."""
    with pytest.raises(MissingError, match="nowhere: no such folder"):
        open_source(PrepareParams(dataset="folder", path="nowhere"), "train")


def test_a_val_folder_is_the_test_split(photos, params):
    """ImageNet's name for it is understood."""
    (photos / "test").rename(photos / "val")
    assert len(open_source(params, "test")) == 12


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A tiny CIFAR-10 in torchvision's own layout; only its list of MD5 sums is replaced."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        content = {"data": np.full((4, 3072), len(name), np.uint8), "labels": [0, 1, 2, 3]}
        if name == "batches.meta":
            content = {"label_names": [f"class {k}" for k in range(10)]}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()  # noqa: S324
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return PrepareParams(dataset="cifar10", path=str(tmp_path), download=False)


def test_cifar_is_read_by_torchvision(cifar):
    """Pixels, labels and class names come through."""
    source = open_source(cifar, "train")
    assert source.decode(0).shape == (32, 32, 3)
    assert source.labels.tolist() == [0, 1, 2, 3]
    assert source.class_names[9] == "class 9"


def test_a_damaged_cifar_is_refused_before_it_is_unpickled(cifar, tmp_path):
    """A changed archive fails torchvision's MD5 check; its pickle is never loaded."""
    path = tmp_path / "cifar-10-batches-py/data_batch_1"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(MissingError, match="cifar10 is not there or is damaged"):
        open_source(cifar, "train")
