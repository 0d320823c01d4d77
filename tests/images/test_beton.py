"""Betons are reproducible, hold what the source holds, and are refused when they do not."""

import io
import json
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from ltd_pipe.errors import DataError, MissingError
from ltd_pipe.images.beton import (
    _estimate,
    hashes_of,
    open_beton,
    require_one_preparation,
    write_beton,
    write_betons,
)
from ltd_pipe.images.decode import resize
from ltd_pipe.images.manifest import Duplicates, Manifest, images_digest
from ltd_pipe.images.sources import ArraySource, open_source
from ltd_pipe.images.stream import FolderStream, ImageStream
from ltd_pipe.params import PrepareParams

from .conftest import picture, saved

CPU = torch.device("cpu")


def write(params, path, split="train", **changes):
    params = params.model_copy(update=changes)
    return write_beton(open_source(params, split), path, params, split)


@pytest.fixture
def beton(params, tmp_path):
    """A beton of the twelve photos."""
    path = tmp_path / "train.beton"
    write(params, path)
    return path


def test_what_goes_in_comes_out(params, beton):
    """Pixels, labels, indices and hashes are those of the source."""
    source, opened = open_source(params, "train"), open_beton(beton)
    (batch,) = ImageStream(opened, CPU).batches(np.arange(12), 12)
    for i in range(12):
        np.testing.assert_array_equal(batch.images[i].numpy().transpose(1, 2, 0), source.decode(i))
    assert batch.labels.tolist() == source.labels.tolist() == opened.labels.tolist()
    np.testing.assert_array_equal(batch.sample_hash, opened.sample_hash)


def test_the_same_images_give_the_same_bytes(params, beton, tmp_path):
    """Beton and manifest, written twice."""
    write(params, tmp_path / "again" / "train.beton")
    again = tmp_path / "again/train.beton"
    assert again.read_bytes() == beton.read_bytes()
    assert open_beton(again).manifest == open_beton(beton).manifest


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_any_number_of_workers_gives_the_same_bytes(params, tmp_path, encoding):
    """They decode ahead of the one that writes."""
    for workers in (1, 2, 7):
        write(params, tmp_path / f"{workers}.beton", workers=workers, encoding=encoding)
    assert len({(tmp_path / f"{n}.beton").read_bytes() for n in (1, 2, 7)}) == 1


def test_resizing_does_not_change_the_fingerprint(params, beton, tmp_path):
    """It is taken over the source's files, so that labels stay valid at another size."""
    small, _ = write(params, tmp_path / "small.beton", image_size=8, encoding="jpeg")
    assert small.shape == (3, 8, 8)
    assert small.fingerprint == open_beton(beton).manifest.fingerprint


def test_grey_takes_one_channel(params, tmp_path):
    """channels: 1 gives batches of one channel."""
    manifest, _ = write(params, tmp_path / "grey.beton", channels=1)
    assert manifest.shape == (1, 12, 12)
    stream = ImageStream(open_beton(tmp_path / "grey.beton"), CPU)
    assert next(stream.batches(np.arange(3), 3)).images.shape == (3, 1, 12, 12)


@pytest.mark.parametrize("resident", [True, False])
def test_grey_of_a_colour_image_is_its_luminance(params, tmp_path, resident):
    """As Pillow's mode L, from a beton and from the folder: the red of a blue image is black."""
    write(params, tmp_path / "grey.beton", channels=1)
    source, order = open_source(params, "train"), np.arange(12)
    folder = FolderStream(source, image_size=None, channels=1, device=CPU)
    expected = [np.asarray(Image.fromarray(source.decode(i)).convert("L")) for i in order]
    for stream in (
        ImageStream(open_beton(tmp_path / "grey.beton"), CPU, resident=resident),
        folder,
    ):
        (batch,) = stream.batches(order, 12)
        np.testing.assert_array_equal(batch.images[:, 0], expected)


def test_threads_are_left_alone(beton):
    """FFCV sets torch's thread count; after us it is what it was."""
    torch.set_num_threads(2)
    list(ImageStream(open_beton(beton), CPU, resident=False).batches(np.arange(12), 5))
    assert torch.get_num_threads() == 2


def write_both(params, out):
    sources = {split: open_source(params, split) for split in ("train", "test")}
    return write_betons(sources, {split: out / f"{split}.beton" for split in sources}, params)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_betons_are_replaced_or_none(params, photos, tmp_path):
    """A test image that is found bad leaves the older preparation as it was."""
    write_both(params, tmp_path / "out")
    before = contents(tmp_path / "out")
    (photos / "train/cat/6.png").write_bytes(picture(6))
    (photos / "test/cat/2.png").write_bytes(b"")
    with pytest.raises(DataError):
        write_both(params, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (photos / "test/cat/2.png").unlink()
    write_both(params, tmp_path / "out")
    assert not set(contents(tmp_path / "out").values()) & set(before.values())


def test_splits_of_different_size_are_refused(params, photos, tmp_path):
    """A model that is trained at one size would be measured at another."""
    for number, path in enumerate((photos / "test").rglob("*.png")):
        path.write_bytes(picture(number, (14, 16)))
    with pytest.raises(DataError) as caught:
        write_both(params, tmp_path)
    error = caught.value
    assert (error.expected, error.found) == ("12×12 like the training images", "16×14")


@pytest.mark.parametrize("renamed", [1, 2, 3, 4])
def test_a_crash_between_two_renames_is_noticed(params, photos, tmp_path, renamed):
    """Whichever of the four files are new: a killed process leaves them in this order."""
    names = ("test.beton", "train.beton", "test.beton.json", "train.beton.json")
    write_both(params, tmp_path / "old")
    for number, split in enumerate(("train", "test")):
        (photos / split / "cat/6.png").write_bytes(picture(number))
    write_both(params, tmp_path / "new")
    for name in names[:renamed]:
        shutil.copy(tmp_path / "new" / name, tmp_path / "old" / name)

    def open_both():
        both = (open_beton(tmp_path / f"old/{split}.beton") for split in ("train", "test"))
        require_one_preparation(*both)

    if renamed == len(names):
        open_both()
    else:
        with pytest.raises(DataError):
            open_both()


def test_a_beton_of_another_preparation_is_refused(params, photos, tmp_path):
    """Each is whole, and they may share images."""
    write_both(params, tmp_path / "old")
    (photos / "test/cat/6.png").write_bytes(picture(6))
    write_both(params, tmp_path / "new")
    train, test = open_beton(tmp_path / "old/train.beton"), open_beton(tmp_path / "new/test.beton")
    with pytest.raises(DataError) as caught:
        require_one_preparation(train, test)
    assert caught.value.where == str(test.path)
    assert test.manifest.preparation.startswith(caught.value.found)


def test_manifests_without_the_newer_fields_open(params, tmp_path):
    """Betons that were prepared before, and their manifests, stay usable."""
    write_both(params, tmp_path)
    for path in tmp_path.glob("*.json"):
        kept = json.loads(path.read_text())
        for name in ("one_colour", "turned", "duplicates", "preparation"):
            del kept[name]
        path.write_text(json.dumps(kept))
    train, test = (open_beton(tmp_path / f"{split}.beton") for split in ("train", "test"))
    require_one_preparation(train, test)
    assert train.manifest.warnings() == test.manifest.warnings() == []


def test_copies_and_blank_images_are_counted(params, photos, tmp_path):
    """In the split, in training, and under two classes; one of one colour is a copy, too."""
    blank = saved(Image.new("RGB", (12, 12), (7, 8, 9)))
    for name in ("train/cat/a.png", "train/cat/b.png", "train/dog/c.png", "test/cat/d.png"):
        (photos / name).write_bytes(blank)
    shutil.copy(photos / "train/dog/1.png", photos / "test/cat/e.png")
    shutil.copy(photos / "train/dog/2.png", photos / "test/dog/f.png")
    (train, _), (test, _) = write_both(params, tmp_path).values()
    assert train.duplicates == Duplicates(within=2, conflicting_labels=1)
    assert test.duplicates == Duplicates(within=0, with_train=3, conflicting_labels=2)
    assert (train.one_colour, test.one_colour) == (3, 1)
    assert len(train.warnings()) == len(test.warnings()) == 3
    assert Manifest.beside(tmp_path / "test.beton") == test


def test_images_that_exif_says_to_turn_are_counted(params, photos, tmp_path):
    """A phone's portrait lies on its side, in training as in torchvision."""
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.open(photos / "test/cat/0.png").save(content, "PNG", exif=exif)
    (photos / "test/cat/0.png").write_bytes(content.getvalue())
    (train, _), (test, _) = write_both(params, tmp_path).values()
    assert (train.turned, test.turned) == (0, 1)
    assert (len(train.warnings()), len(test.warnings())) == (0, 1)


def test_an_unknown_class_conflicts_with_none():
    """-1 is no class."""
    labels, hashes = np.array([-1, 1, 2], np.int32), np.array([5, 5, 6], np.uint64)
    found = Duplicates.count((labels, hashes), (labels[1:], hashes[1:]))
    assert found == Duplicates(within=1, with_train=3, conflicting_labels=0)


BAD_IMAGES = {
    "zero bytes": (b"", {"what": "empty", "remedy": "--skip-bad"}),
    "text": (b"no image", {"what": "readable", "remedy": "--skip-bad"}),
    "truncated": (picture(0, (12, 12))[:-100], {"what": "readable", "remedy": "--skip-bad"}),
}


@pytest.mark.parametrize(("content", "fields"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_among_good_ones_is_named(params, photos, tmp_path, content, fields):
    """Nothing is written, and the way on is said."""
    (photos / "train/cat/2.png").write_bytes(content)
    with refused(DataError, where=photos / "train/cat/2.png", **fields):
        write(params, tmp_path / "out/train.beton")
    assert not (tmp_path / "out").exists()


def test_skip_bad_goes_on_and_says_what_is_missing(params, photos, tmp_path):
    """The others are written, in order."""
    (photos / "train/cat/2.png").write_bytes(b"")
    manifest, skipped = write(params, tmp_path / "train.beton", skip_bad=True)
    assert manifest.num_samples == 11
    assert len(skipped) == 1
    assert "cat/2.png" in skipped[0]
    assert open_beton(tmp_path / "train.beton").labels.tolist() == [0] * 5 + [1] * 6


def test_a_class_of_bad_images_only_is_refused(params, photos, tmp_path):
    """Skipping must not lose a class."""
    for path in (photos / "train/cat").iterdir():
        path.write_bytes(b"")
    with refused(DataError, where="photos", what="readable"):
        write(params, tmp_path / "train.beton", skip_bad=True)


def test_mixed_sizes_need_a_size(params, photos, tmp_path):
    """Two images that differ are named; with a size they are all resized."""
    (photos / "train/dog/3.png").write_bytes(picture(0, (20, 30)))
    with refused(
        DataError,
        where=photos / "train/dog/3.png",
        what="differ",
        expected=re.compile("^12×12 like "),
        found="30×20",
    ):
        write(params, tmp_path / "train.beton")
    write(params, tmp_path / "train.beton", image_size=10)
    stream = ImageStream(open_beton(tmp_path / "train.beton"), CPU)
    batch = next(stream.batches(np.array([9]), 1))
    expected = resize(open_source(params, "train").decode(9), 10)
    np.testing.assert_array_equal(batch.images[0].numpy().transpose(1, 2, 0), expected)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def text(path):
    path.write_text("not a beton")


def nothing(path):
    path.write_bytes(b"")


def no_manifest(path):
    path.with_name("train.beton.json").unlink()


def change(**changes):
    def damage(path):
        where = path.with_name("train.beton.json")
        where.write_text(json.dumps(json.loads(where.read_text()) | changes))

    return damage


def rehash(path):
    """Make the manifest agree with whatever the beton's bytes are now."""
    from ltd_pipe.provenance import sha256_file

    change(sha256=sha256_file(path), size=path.stat().st_size)(path)


def other_file(path):
    path.write_bytes(b"hello" * 3000)
    rehash(path)


def huge(path):
    content = bytearray(path.read_bytes())
    content[8:16] = (2**60).to_bytes(8, "little")
    path.write_bytes(content)
    rehash(path)


def swapped_labels(path):
    content = path.read_bytes()
    where = content.rindex(b"sample_hash") + 2000
    path.write_bytes(content[:where] + bytes(content[where + 1 :]) + b"\0")
    rehash(path)


DAMAGES = {
    "truncated": (
        truncate,
        {
            "where": "train.beton",
            "what": "truncated",
            "expected": "4,194,592 bytes",
            "found": "4,193,592",
        },
    ),
    "flipped byte": (flip, {"what": "bytes"}),
    "text file": (text, {"what": "truncated", "expected": "4,194,592 bytes"}),
    "empty file": (nothing, {"what": "truncated", "expected": "4,194,592 bytes"}),
    "no manifest": (no_manifest, {"what": "manifest"}),
    "not a beton": (other_file, {"what": "ours"}),
    "huge header": (huge, {"what": "version"}),
    "other fingerprint": (change(fingerprint="0" * 64), {"what": "manifest"}),
    "other classes": (change(class_names=["dog", "cat"]), {"what": "manifest"}),
    "newer version": (
        change(version=2),
        {"what": "newer", "expected": "version 1", "found": "version 2"},
    ),
    "unknown key": (
        change(mood="good"),
        {"where": "train.beton.json", "what": "mood", "found": "'good'"},
    ),
    "garbage": (lambda p: p.with_name("train.beton.json").write_text("{"), {"what": "JSON"}),
    "other sample count": (change(num_samples=11), {"what": "ours"}),
}


@pytest.mark.parametrize(("damage", "fields"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_beton_is_refused(beton, damage, fields):
    """Whatever was done to it, one clear line, and no array is allocated by its word."""
    damage(beton)
    with refused(DataError, **fields):
        open_beton(beton)


def test_a_beton_that_is_not_there_is_named(tmp_path):
    """With what makes one."""
    with refused(MissingError, where=tmp_path / "x.beton", what="file") as caught:
        open_beton(tmp_path / "x.beton")
    assert caught.value.remedy == "Run 'ltd-pipe prepare' first."


def test_a_folder_is_no_beton(tmp_path):
    """Nor is anything else that is no file."""
    with refused(DataError, where=tmp_path, what="beton", expected="a file"):
        open_beton(tmp_path)


FULL = """
import resource, signal, sys
from pathlib import Path
from ltd_pipe.errors import WriteError
from ltd_pipe.images.beton import write_beton
from ltd_pipe.images.sources import ArraySource, open_source
from ltd_pipe.params import PrepareParams
params = PrepareParams(dataset="folder", path=sys.argv[1], workers=int(sys.argv[3]))
source = open_source(params, "train")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_beton(source, Path(sys.argv[2]) / "train.beton", params, "train")
except WriteError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_disk_that_fills_up_leaves_nothing(photos, tmp_path, workers):
    """The write fails in the middle: a clear line, no file, and no process that hangs."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", FULL, str(photos), str(out), workers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "train.beton" in done.stdout
    assert "cannot be written" in done.stdout
    assert list(out.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_the_manifest_says_what_is_in_it(beton):
    """Count, classes, shape, fingerprint and file hash."""
    manifest = Manifest.beside(beton)
    assert (manifest.num_samples, manifest.class_names) == (12, ("cat", "dog"))
    assert (manifest.shape, manifest.split, manifest.dataset) == ((3, 12, 12), "train", "photos")
    assert manifest.size == beton.stat().st_size


@pytest.mark.parametrize("size", [(840, 900), (5, 2000)], ids=["2.2 MB", "long"])
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_large_images_fit_into_a_page(tmp_path, size, encoding):
    """FFCV refuses an image that is longer than its page."""
    params = PrepareParams(dataset="digits", encoding=encoding)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    source = ArraySource("noise", ("a", "b"), pixels, np.array([0, 1, 0], dtype=np.int32))
    write_beton(source, tmp_path / "x.beton", params, "train")
    stream = ImageStream(open_beton(tmp_path / "x.beton"), CPU, resident=False)
    images = next(stream.batches(np.arange(3), 3)).images.permute(0, 2, 3, 1).numpy()
    assert images.shape == pixels.shape
    if encoding == "raw":
        np.testing.assert_array_equal(images, pixels)


def test_the_estimate_of_the_size_is_close(beton, params):
    """Free space is asked for by it: never too little, and no more than 5 MiB too much."""
    estimate = _estimate(12, 12, 12, params)
    assert 0 <= estimate - beton.stat().st_size < 5 * 2**20


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_counts_each_image_twice(params, tmp_path, workers):
    """Read, then written, by one thread or by several."""
    counts = []
    params = params.model_copy(update={"workers": workers})
    source = open_source(params, "train")
    write_beton(source, tmp_path / "train.beton", params, "train", counts.append)
    assert sum(counts) == 2 * 12


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_changes_meanwhile_is_refused(params, photos, tmp_path, workers):
    """Its hash would otherwise vouch for pixels that the teacher never saw."""

    def change_after_the_survey(count):
        if not counts:
            (photos / "train/dog/5.png").write_bytes(picture(77))
        counts.append(count)

    counts = []

    source = open_source(params, "train")
    params = params.model_copy(update={"workers": workers})
    with refused(DataError, where=photos / "train/dog/5.png", what="changed"):
        write_beton(source, tmp_path / "out/x.beton", params, "train", change_after_the_survey)
    assert list((tmp_path / "out").iterdir()) == []


def test_three_bad_images_are_named_and_all_are_counted(params, photos, tmp_path):
    """Who has to mend them can start."""
    for i in range(5):
        (photos / f"train/cat/{i}.png").write_bytes(b"")
    also = re.compile(r"\S+cat/1.png, \S+cat/2.png and 2 more")
    with refused(DataError, where=photos / "train/cat/0.png", what="usable", remedy=also):
        write(params, tmp_path / "train.beton")


def test_a_side_beyond_what_ffcv_can_read_is_refused(tmp_path):
    """FFCV keeps sides in 16 bits, and five batches in memory."""
    pixels = np.zeros((1, 1, 9000, 3), dtype=np.uint8)
    source = ArraySource("strip", ("a", "b"), pixels, np.zeros(1, dtype=np.int32))
    with refused(
        DataError,
        where="strip image 0",
        what="large",
        expected="at most 8,192 pixels a side",
        found="9000×1",
    ):
        write_beton(source, tmp_path / "x.beton", PrepareParams(dataset="digits"), "train")


def test_hashes_are_those_of_the_images_asked_for_or_none(train_beton, tmp_path):
    """Without a look at the pixels; where anything does not fit there are none."""
    images = images_digest(train_beton.sample_hash)
    found = hashes_of(train_beton.path, images)
    np.testing.assert_array_equal(found, train_beton.sample_hash)
    assert hashes_of(train_beton.path, "0" * 64) is None
    assert hashes_of(tmp_path / "train.beton", images) is None
    shutil.copy(f"{train_beton.path}.json", tmp_path / "train.beton.json")
    assert hashes_of(tmp_path / "train.beton", images) is None
    (tmp_path / "train.beton").write_bytes(train_beton.path.read_bytes()[:999])
    assert hashes_of(tmp_path / "train.beton", images) is None
