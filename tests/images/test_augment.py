"""Crops and flips are functions of (seed, epoch, sample index)."""

import pytest
import torch
from torch.nn import functional

from pipeline.images.augment import augment

IMAGES = torch.randint(
    1, 256, (64, 3, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
INDEX = torch.arange(64) * 7


def run(images=IMAGES, index=INDEX, **changes):
    settings = {"seed": 0, "epoch": 0, "crop_padding": 2, "flip": True} | changes
    return augment(images, index, **settings)


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


def test_a_sample_is_augmented_the_same_in_any_batch():
    """Alone, in a batch, in another order."""
    whole = run()
    assert torch.equal(run(IMAGES[9:10], INDEX[9:10])[0], whole[9])
    assert torch.equal(run(IMAGES.flip(0), INDEX.flip(0)).flip(0), whole)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"epoch": 1}])
def test_seed_and_epoch_change_it(changes):
    """Another epoch crops elsewhere."""
    assert not torch.equal(run(), run(**changes))


def test_half_are_flipped():
    """The share of flipped images is one half."""
    images = torch.tensor([[[[1, 2]]]], dtype=torch.uint8).expand(4000, 1, 1, 2)
    flipped = run(images, torch.arange(4000), crop_padding=0)[:, 0, 0, 0] == 2
    assert abs(flipped.float().mean() - 0.5) < 0.03
