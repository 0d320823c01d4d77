"""Labels that are wrong on purpose: how many, which ones, and that everything says so."""

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from ltd_pipe.errors import ParamsError
from ltd_pipe.images.beton import open_beton, write_betons
from ltd_pipe.images.sources import open_source, wrong_labels
from ltd_pipe.params import PrepareParams

DIGITS = tuple("0123456789")
HASHES = np.random.default_rng(0).integers(2**64, size=20_000, dtype=np.uint64)
RIGHT = (np.arange(20_000) % 10).astype(np.int32)


def wrong(hashes=HASHES, right=RIGHT, names=DIGITS, **params):
    return wrong_labels(right, hashes, names, PrepareParams(dataset="digits", **params))


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_share_of_each_class_is_spread_over_all_others(share):
    """Each of the nine others as likely."""
    found = wrong(wrong_labels=share)
    counts = np.zeros((10, 10))
    np.add.at(counts, (RIGHT, found), 1 / 2000)
    assert np.abs(np.diag(counts) - (1 - share)).max() < 0.04
    others = counts[~np.eye(10, dtype=bool)]
    assert np.abs(others - share / 9).max() < 0.025


def test_similar_ones_are_one_fixed_class():
    """A 7 becomes a 1, and nothing else."""
    found = wrong(wrong_labels=0.3, wrong_labels_to="similar")
    assert {*found[RIGHT == 7]} == {7, 1}
    assert {*found[RIGHT == 2]} == {2, 7}
    assert abs((found != RIGHT).mean() - 0.3) < 0.02


def test_each_image_decides_for_itself():
    """Order and company change nothing; the seed does, and a larger share has the smaller one's."""
    found = wrong(wrong_labels=0.2)
    order = np.random.default_rng(1).permutation(len(HASHES))[:5000]
    np.testing.assert_array_equal(
        wrong(HASHES[order], RIGHT[order], wrong_labels=0.2), found[order]
    )
    other = wrong(wrong_labels=0.2, wrong_labels_seed=1)
    assert abs(((other != RIGHT) & (found != RIGHT)).mean() - 0.04) < 0.01
    more = wrong(wrong_labels=0.4)
    np.testing.assert_array_equal(more[found != RIGHT], found[found != RIGHT])


def test_unknown_classes_stay_unknown():
    """-1 is no class that could be wrong."""
    assert (wrong(right=np.full_like(RIGHT, -1), wrong_labels=0.9) == -1).all()


def test_classes_without_a_similar_one_are_refused():
    """Before anything is written; all of CIFAR-10 has one."""
    with refused(ParamsError, where="prepare.wrong_labels_to", found="'zebra'"):
        wrong(names=(*DIGITS, "zebra"), wrong_labels=0.2, wrong_labels_to="similar")
    cifar = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    found = wrong(names=cifar, wrong_labels=0.9, wrong_labels_to="similar")
    assert abs((found != RIGHT).mean() - 0.9) < 0.02


def prepared(folder, **changes):
    params = PrepareParams(**{"dataset": "digits", "channels": 1} | changes)
    folder.mkdir()
    paths = {split: folder / f"{split}.beton" for split in ("train", "test")}
    write_betons({split: open_source(params, split) for split in paths}, paths, params)
    return paths, {split: open_beton(path) for split, path in paths.items()}


@pytest.mark.parametrize(
    ("share", "names", "what"),
    [
        (1e-9, ("a", "b"), "makes none of 4 labels wrong"),
        (0.9, ("a", "b", "c", "d"), "leaves no training image of class"),
    ],
)
def test_shares_that_are_no_such_thing_are_refused(tmp_path, share, names, what):
    """A class that nobody would learn, or a name that says of right labels that they are wrong."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(4):
            folder = tmp_path / "photos" / split / names[number % len(names)]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    path = str(tmp_path / "photos")
    with refused(ParamsError, where="prepare.wrong_labels", what=what):
        prepared(tmp_path / "out", dataset="folder", path=path, wrong_labels=share)
    assert not [*(tmp_path / "out").iterdir()]


def test_betons_say_that_labels_are_wrong_and_test_images_are_left_alone(tmp_path):
    """By name, which goes into stores and checkpoints, and by fingerprint, which joins compare."""
    default, right = prepared(tmp_path / "right")
    paths, found = prepared(tmp_path / "wrong", wrong_labels=0.2)
    unlike = (found["train"].labels != right["train"].labels).mean()
    assert abs(unlike - 0.2) < 0.04
    manifest = found["train"].manifest
    assert manifest.dataset == "digits with 20 % wrong labels (uniform, seed 0)"
    assert manifest.wrong_labels == unlike
    assert found["test"].manifest.wrong_labels is right["train"].manifest.wrong_labels is None
    assert manifest.fingerprint != right["train"].manifest.fingerprint
    np.testing.assert_array_equal(found["train"].sample_hash, right["train"].sample_hash)
    assert paths["test"].read_bytes() == default["test"].read_bytes()
    assert found["test"].manifest.dataset == right["train"].manifest.dataset == "digits"
    zero, _ = prepared(tmp_path / "zero", wrong_labels=0, wrong_labels_seed=3)
    assert all(zero[split].read_bytes() == default[split].read_bytes() for split in zero)
