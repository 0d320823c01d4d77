"""Sources: what they accept, in which order, and what they refuse."""

import hashlib
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS

from ltd_pipe.errors import DataError, MissingError
from ltd_pipe.images.sources import FolderSource, open_source, survey, validation_mask
from ltd_pipe.params import PrepareParams

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
    """Classes by name, images by path at any depth, labels accordingly."""
    (photos / "train/cat/0.png").rename(photos / "train/cat/z.png")
    (photos / "train/cat/a").mkdir()
    (photos / "train/cat/a/9.png").write_bytes(picture(1))
    source = FolderSource(photos / "train")
    assert source.paths == sorted(source.paths)
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0] * 7 + [1] * 6
    assert source.where(6).endswith("train/cat/z.png")


def test_what_is_no_image_by_its_name_is_left_alone(photos):
    """A text file beside the images is not read."""
    (photos / "train/cat/notes.txt").write_text("x")
    assert len(FolderSource(photos / "train")) == 12


def test_nested_folders_and_endings_in_capitals(photos):
    """Images at any depth count, whatever the case of their ending."""
    (photos / "train/cat/more").mkdir()
    (photos / "train/cat/more/x.JPG").write_bytes(picture(1, kind="JPEG"))
    assert len(FolderSource(photos / "train")) == 13


def test_loops_of_links_are_not_followed(photos):
    """Links to a folder above, or to one that links back, do not make the walk endless."""
    (photos / "train/cat/loop").symlink_to(photos / "train")
    (photos / "far").mkdir()
    (photos / "far/9.png").write_bytes(picture(9))
    (photos / "far/back").symlink_to(photos / "train/dog")
    (photos / "train/dog/far").symlink_to(photos / "far")
    source = FolderSource(photos / "train")
    assert [path.name for path in source.paths[12:]] == ["9.png"]
    assert source.notes == [f"left out of {photos / 'train'}: 2 links to a folder above them"]


def test_what_torchvision_finds_is_found(photos):
    """Whatever its ending, and through links to folders; with what else Pillow reads."""
    content = picture(1)
    for number, ending in enumerate(IMG_EXTENSIONS):
        (photos / f"train/cat/a{number}{ending}").write_bytes(content)
    (photos / "disk/more").mkdir(parents=True)
    (photos / "disk/more/1.png").write_bytes(content)
    (photos / "train/dog/linked").symlink_to(photos / "disk")
    theirs = {Path(path) for path, _ in datasets.ImageFolder(photos / "train").samples}
    assert set(FolderSource(photos / "train").paths) == theirs
    for ending in (".jfif", ".gif", ".jp2", ".PBM"):
        (photos / f"train/dog/b{ending}").write_bytes(content)
    source = FolderSource(photos / "train")
    assert (len(source), source.notes) == (len(theirs) + 4, [])


def test_what_is_left_out_is_counted_by_its_reason(photos):
    """Other programs' files are rightly not wanted; an image beside the classes may be."""
    for name in ("x.png", "cat/.hidden.png", "cat/a.heic", "dog/b.HEIC", "cat/notes"):
        (photos / "train" / name).write_bytes(picture(1))
    for name in ("__MACOSX", "cat/@eaDir"):
        (photos / "train" / name).mkdir()
        (photos / "train" / name / "x.jpg").write_bytes(picture(1))
    (photos / "train/cat/batch2").symlink_to(photos / "gone")
    os.mkfifo(photos / "train/cat/pipe.png")
    source = FolderSource(photos / "train")
    assert (len(source), source.class_names) == (12, ("cat", "dog"))
    (line,) = source.notes
    assert set(line.split(": ")[1].split(", ")) == {
        "2 *.heic",
        "1 hidden",
        "1 beside the class folders",
        "1 without an ending",
        "1 __MACOSX/",
        "1 @eaDir/",
        "1 links that lead nowhere",
        "1 pipes and devices",
    }


def test_images_without_class_folders_have_unknown_labels(photos):
    """With class names given, a flat folder is read with label -1."""
    source = FolderSource(photos / "train/cat", ("cat", "dog"))
    assert source.labels.tolist() == [-1] * 6


def test_a_flat_folder_with_a_bad_image_can_be_used(photos):
    """Without ground truth no class can be lost; without any image nothing is left."""
    folder = photos / "train/cat"
    (folder / "0.png").write_bytes(b"")
    source = FolderSource(folder, ("cat", "dog"))
    found = survey(source, skip_bad=True)
    assert (len(found.source), len(found.sample_hash), len(found.skipped)) == (5, 5, 1)
    for path in folder.iterdir():
        path.write_bytes(b"")
    with refused(DataError, where="cat", what="readable"):
        survey(source, skip_bad=True)


def test_class_names_give_the_labels(photos):
    """A teacher's classes in its own order: the labels are its outputs' numbers."""
    source = FolderSource(photos / "train", ("dog", "cat"))
    assert source.class_names == ("dog", "cat")
    assert {
        path.parent.name: label for path, label in zip(source.paths, source.labels, strict=True)
    } == {
        "dog": 0,
        "cat": 1,
    }


def test_hidden_files_and_folders_are_left_alone(photos):
    """Neither a notebook's check-points nor a file manager's shadows are images or classes."""
    for folder in (photos / "train/.ipynb_checkpoints", photos / "train/cat/.thumbnails"):
        folder.mkdir()
        (folder / "x.png").write_bytes(picture(1))
    (photos / "train/cat/._0.png").write_bytes(b"\0\5\x16\7")
    source = FolderSource(photos / "train")
    assert (len(source), source.class_names) == (12, ("cat", "dog"))


def test_a_link_that_leads_nowhere_is_a_bad_image(photos):
    """It is not passed over in silence: somebody thinks that there is an image."""
    (photos / "train/cat/7.png").symlink_to(photos / "nowhere.png")
    (photos / "train/cat/8.png").symlink_to(photos / "train/cat/8.png")
    source = FolderSource(photos / "train")
    assert len(source) == 14
    with pytest.raises(DataError) as caught:
        survey(source, skip_bad=False)
    assert caught.value.where == str(photos / "train/cat/7.png")
    assert caught.value.what == "is not usable: cannot be read: No such file or directory"
    missing, loop = survey(source, skip_bad=True).skipped
    assert missing == f"{photos}/train/cat/7.png: cannot be read: No such file or directory"
    assert loop.startswith(f"{photos}/train/cat/8.png: ")


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


def not_utf8(root):
    (root / "train" / os.fsdecode(b"caf\xe9")).mkdir()


def two_forms(root):
    for name in ("Caf\u00e9", "Cafe\u0301"):
        shutil.copytree(root / "train/cat", root / "train" / name)


def looks_the_same(root):
    (root / "test/cat").rename(root / "test/c\u0430t")


def control_character(root):
    (root / "train/a\x1b[31mred").mkdir()


def flat_without_images(root):
    empty(root)
    no_classes(root)


REFUSED = [
    (
        not_utf8,
        "train",
        DataError,
        r"train: a class folder's name is not UTF-8: found 'caf\\udce9'",
    ),
    (two_forms, "train", DataError, r"have one name, .*'Café' \('Caf\\xe9'\) and .*'Cafe\\u0301'"),
    (
        looks_the_same,
        "test",
        DataError,
        r"lacking here: 'cat', found 2 .*alone: .* \('c\\u0430t'\)",
    ),
    (
        control_character,
        "train",
        DataError,
        r"train: a class folder's name has a control character: found 'a\\x1b\[31mred'",
    ),
    (flat_without_images, "train", DataError, "train: has no class folders"),
    (empty, "train", DataError, "train: has no images: expected image files"),
    (one_class, "train", DataError, "has one class only, 'cat'"),
    (empty_class, "train", DataError, "train/elk: class without images"),
    (no_classes, "train", DataError, "train: has no class folders"),
    (no_test, "test", MissingError, "has no test images: expected test/ or val/"),
    (
        other_classes,
        "test",
        DataError,
        "other classes .* lacking here: 'cat', found 2 .* alone: 'cow'",
    ),
]


@pytest.mark.parametrize(
    ("damage", "split", "error", "message"), REFUSED, ids=[case[0].__name__ for case in REFUSED]
)
def test_refused_folders(photos, params, damage, split, error, message):
    """Each is named, with what was expected."""
    damage(photos)
    with pytest.raises(error, match=message):
        open_source(params, split)


def test_a_data_set_is_not_called_what_cannot_be_printed(photos):
    """Its folder's name stands in every store and on every page."""
    photos = photos.rename(photos.with_name("photos\a"))
    with refused(
        DataError,
        where=photos / "train",
        what="its data set's name has a control character",
        found="'photos\\x07'",
    ):
        FolderSource(photos / "train")


def test_a_folder_of_both_parts_in_place_of_one_is_explained(photos):
    """As after `store verify --data photos`."""
    with refused(
        DataError,
        where=photos,
        what="other classes",
        expected="2 classes, lacking here: 'cat', 'dog'",
    ) as caught:
        FolderSource(photos, ("cat", "dog"))
    assert caught.value.remedy == f"Name one part of it: {photos}/test or {photos}/train."


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val", "test")], ids="-".join)
def test_parts_of_a_data_set_are_no_classes(tmp_path, parts):
    """A network of as many classes would be asked about training and test images together."""
    for part in parts:
        (tmp_path / part / "cat").mkdir(parents=True)
        (tmp_path / part / "cat" / "a.png").write_bytes(picture(0))
    with refused(DataError, where=tmp_path, what="parts of a data set", remedy="Name one part"):
        FolderSource(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    """MissingError, which is a FileNotFoundError."""
    (tmp_path / "cats").mkdir()
    for path, where in (("nowhere", "nowhere"), (str(tmp_path), f"{tmp_path}/train")):
        with refused(MissingError, where=where, what="folder") as caught:
            open_source(PrepareParams(dataset="folder", path=path), "train")
        assert caught.value.where == where
        assert "prepare.path the folder that holds train/CLASS/" in caught.value.remedy


def test_a_val_folder_is_the_test_split(photos, params):
    """ImageNet's name for it is understood."""
    (photos / "test").rename(photos / "val")
    assert len(open_source(params, "test")) == 12


def test_class_names_compare_whatever_their_form_in_unicode(photos, params):
    """A folder that was copied from a Mac has the same classes."""
    (photos / "train/cat").rename(photos / "train/Caf\u00e9")
    (photos / "test/cat").rename(photos / "test/Cafe\u0301")
    test = open_source(params, "test")
    assert test.class_names == open_source(params, "train").class_names == ("Caf\u00e9", "dog")
    assert test.labels.tolist() == [0] * 6 + [1] * 6


LAYOUTS = {
    # Which folders have the training images' classes, other ones or none; which one is taken.
    "test": ({"test": "same"}, "test"),
    "ImageNetV2, Kaggle": ({"test": "none", "val": "same"}, "val"),
    "a wrapper": ({"test": "other", "val": "same"}, "val"),
    "both": ({"test": "same", "validation": "same"}, "test"),
    "flat": ({"test": "none"}, "test"),
    "all flat": ({"test": "none", "val": "none"}, "test"),
}


@pytest.mark.parametrize(("layout", "taken"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_folder_that_has_the_classes_is_the_test_split(photos, params, layout, taken):
    """A flat test/ beside it has no ground truth; which one is taken is said."""
    shutil.move(photos / "test", photos / "made")
    for name, kind in layout.items():
        images = photos / "made" / ("" if kind == "same" else "cat")
        shutil.copytree(images, photos / name / ("unknown" if kind == "other" else ""))
    source = open_source(params, "test")
    assert source.folder == photos / taken
    assert source.labels.min() == (0 if layout[taken] == "same" else -1)
    told = " ".join(source.notes)
    assert (f"test images are those of {photos / taken}" in told) == (len(layout) > 1)
    assert ("the classes of its images are unknown" in told) == (layout[taken] == "none")


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
    with refused(DataError, where=tmp_path, what="cifar10"):
        open_source(cifar, "train")


def test_an_archive_of_cifar_is_unpacked_without_a_download(cifar, tmp_path, monkeypatch):
    """As the refusal tells those to do who have no network."""
    kind = datasets.CIFAR10
    with tarfile.open(tmp_path / kind.filename, "w:gz") as archive:
        archive.add(tmp_path / kind.base_folder, kind.base_folder)
    shutil.rmtree(tmp_path / kind.base_folder)
    found = hashlib.md5((tmp_path / kind.filename).read_bytes()).hexdigest()  # noqa: S324
    monkeypatch.setattr(kind, "tgz_md5", found)
    assert len(open_source(cifar, "train")) > 0


def test_a_cifar_that_is_not_there_is_named(tmp_path):
    """With what to do."""
    params = PrepareParams(dataset="cifar100", path=str(tmp_path / "raw"), download=False)
    with refused(MissingError, where=tmp_path / "raw", what="cifar100", remedy="archive"):
        open_source(params, "test")


@pytest.mark.parametrize("reason", ["no route to host", ""])
def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch, reason):
    """Even when the error has no words."""

    def refuse(*_arguments, **_options):
        raise OSError(reason)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    params = PrepareParams(dataset="cifar10", path=str(tmp_path))
    with refused(MissingError, where=tmp_path, what=reason or "OSError", remedy="Put"):
        open_source(params, "train")


HASHES = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_the_share_is_about_right(fraction):
    """Within four standard deviations."""
    share = validation_mask(HASHES, fraction).mean()
    assert abs(share - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(HASHES))


def test_nothing_is_held_out_at_zero():
    """Fraction 0: no validation."""
    assert not validation_mask(HASHES, 0.0).any()


def test_other_images_do_not_matter():
    """Adding, removing or reordering images moves none across."""
    whole = validation_mask(HASHES, 0.1)
    np.testing.assert_array_equal(validation_mask(HASHES[::-3], 0.1), whole[::-3])


def test_copies_stay_together():
    """Two files of equal bytes are on the same side."""
    assert len(set(validation_mask(np.repeat(HASHES[:1], 5), 0.3).tolist())) == 1


def test_a_larger_fraction_holds_the_smaller_one():
    """Growing the split only adds to it."""
    small, large = validation_mask(HASHES, 0.1), validation_mask(HASHES, 0.2)
    assert not (small & ~large).any()
