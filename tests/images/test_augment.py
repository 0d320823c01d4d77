"""Every augmentation is a function of (seed, epoch, sample index)."""

import hashlib

import pytest
import torch
from torch.nn import functional

from ltd_pipe.images.augment import augment
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.images.resize import resized

IMAGES = torch.randint(
    1, 256, (64, 3, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
INDEX = torch.arange(64) * 7


def run(images=IMAGES, index=INDEX, **changes):
    settings = {"seed": 0, "epoch": 0, "crop_padding": 2, "flip": True} | changes
    keys = {name: settings.pop(name, None) for name in ("seed", "epoch", "size")}
    return augment(images, index, Augmentation(**settings), **keys)


def test_nothing_asked_for_nothing_done():
    """Without padding and flip the images are the same."""
    assert run(crop_padding=0, flip=False) is IMAGES


def test_every_result_is_a_crop_of_the_padded_image():
    """Found at one of the (2p + 1)² places, flipped or not; all places and both turns occur."""
    padded, places = functional.pad(IMAGES, (2, 2, 2, 2)), set()
    for i, result in enumerate(run()):
        found = [
            (top, left, turn)
            for top in range(5)
            for left in range(5)
            for turn in (False, True)
            if torch.equal(
                result, _cut(padded[i], top, left).flip(2) if turn else _cut(padded[i], top, left)
            )
        ]
        assert len(found) == 1
        places.add(found[0])
    assert {top for top, _, _ in places} == {left for _, left, _ in places} == set(range(5))
    assert {turn for _, _, turn in places} == {False, True}


def _cut(image, top, left):
    return image[:, top : top + 6, left : left + 5]


ALONE = {"crop_padding": 0, "flip": False}
KINDS = {
    "crop": {},
    "resized-crop": {"crop_padding": 0, "crop_scale": (0.25, 1.0)},
    "cutout": ALONE | {"cutout": 3},
    "trivialaugment": ALONE | {"policy": "trivialaugment"},
    "randaugment": ALONE | {"policy": "randaugment:2-9"},
    "autoaugment": ALONE | {"policy": "autoaugment:cifar10"},
    "all": {"policy": "trivialaugment", "cutout": 2},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_a_sample_is_augmented_the_same_in_any_batch(kind):
    """Alone, in batches of other sizes, in another order: equal to the bit."""
    whole = run(**kind)
    assert not torch.equal(whole, IMAGES)
    for size in (1, 3, 32):
        parts = zip(IMAGES.split(size), INDEX.split(size), strict=True)
        assert torch.equal(torch.cat([run(*part, **kind) for part in parts]), whole)
    assert torch.equal(run(IMAGES.flip(0), INDEX.flip(0), **kind).flip(0), whole)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"epoch": 1}])
def test_seed_and_epoch_change_it(changes, kind):
    """Another epoch crops elsewhere."""
    assert not torch.equal(run(**kind), run(**kind, **changes))


def test_half_are_flipped():
    """The share of flipped images is one half."""
    images = torch.tensor([[[[1, 2]]]], dtype=torch.uint8).expand(4000, 1, 1, 2)
    flipped = run(images, torch.arange(4000), crop_padding=0)[:, 0, 0, 0] == 2
    assert abs(flipped.float().mean() - 0.5) < 0.03


def test_one_square_is_cut_out():
    """Of the side asked for, less where the image ends; its middle is anywhere, evenly."""
    images = torch.full((4000, 1, 4, 4), 7, dtype=torch.uint8)
    holes = augment(images, torch.arange(4000), Augmentation(cutout=2), seed=0, epoch=0) == 128
    kinds, counts = holes[:, 0].flatten(1).unique(dim=0, return_counts=True)
    # The middle is the lower right of its four pixels: in the first row or column half is outside.
    expected = {
        tuple((y in (cy - 1, cy) and x in (cx - 1, cx)) for y in range(4) for x in range(4))
        for cy in range(4)
        for cx in range(4)
    }
    assert {tuple(kind) for kind in kinds.tolist()} == expected
    assert abs(counts / 4000 - 1 / 16).max() < 0.015


def test_another_size_is_a_function_of_the_sample_too(kind):
    """Of a crop at once, of the rest at the end: the same in any batch."""
    whole = run(size=(5, 4), **kind)
    assert whole.shape == (64, 3, 5, 4)
    parts = zip(IMAGES.split(7), INDEX.split(7), strict=True)
    assert torch.equal(torch.cat([run(*part, size=(5, 4), **kind) for part in parts]), whole)
    if "crop_scale" not in kind:
        assert torch.equal(resized(run(**kind), (5, 4)), whole)


def test_a_policy_changes_some_pixels_of_most_images():
    """One in fourteen is left alone, and a few magnitudes of nothing."""
    changed = (run(**KINDS["trivialaugment"]) != IMAGES).flatten(1).any(dim=1)
    assert 0.7 < changed.float().mean() < 1


# (text, seed, epoch): SHA-256 of the result, and one row of it. A change here makes every stored
# label of an augmented view belong to another image.
RECORDED = {
    ("flip", 0, 0): ("0489962956c1587a", [162, 199, 236, 22, 59]),
    ("crop:2", 0, 0): ("7aab83fea875b167", [199, 236, 22, 59, 0]),
    ("crop:2,flip", 0, 0): ("73c71fc2bdc26203", [199, 236, 22, 59, 0]),
    ("crop:4,flip", 3, 7): ("a37de476964ef978", [0, 0, 0, 0, 0]),
    ("crop:1", 2**31 - 1, 199): ("d2edc72596f5da04", [0, 96, 133, 170, 207]),
}


@pytest.mark.parametrize("case", RECORDED, ids=[f"{case}" for case in RECORDED])
def test_the_same_pixels_as_ever(case):
    """Recorded once: stores that were made then must still meet the same images."""
    text, seed, epoch = case
    images = (torch.arange(6 * 3 * 7 * 5) * 37 % 251).to(torch.uint8).reshape(6, 3, 7, 5)
    index = torch.tensor([0, 1, 5, 1000, 2**40, 17])
    found = augment(images, index, Augmentation.parse(text), seed=seed, epoch=epoch)
    digest, row = RECORDED[case]
    assert found[3, 0, 3].tolist() == row
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == digest
