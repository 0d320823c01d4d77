"""A store's views are made again from its attributes alone."""

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import StoreError
from ltd_pipe.images.augment import augment
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.labels.format import ViewFacts
from ltd_pipe.labels.on_device import Replay

IMAGES = torch.randint(
    0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
INDEX = torch.arange(16)
VIEWS = ViewFacts(count=4, seed=11, augmentation="resized-crop:0.25-1,flip")


def test_plain_images_stay_as_they_are():
    """A store without augmentation has one view: the image itself."""
    replay = Replay.of(ViewFacts(), "labels.zarr")
    assert replay.images(IMAGES, INDEX, 0) is IMAGES


def test_a_view_is_the_augmented_image_of_that_epoch():
    """The definition in the specification, for each view; and all are different."""
    replay = Replay.of(VIEWS, "labels.zarr")
    views = [replay.images(IMAGES, INDEX, view) for view in range(4)]
    augmentation = Augmentation(crop_scale=(0.25, 1.0), flip=True)
    for number, view in enumerate(views):
        assert torch.equal(view, augment(IMAGES, INDEX, augmentation, seed=11, epoch=number))
        assert not any(torch.equal(view, other) for other in views[:number])


@pytest.mark.parametrize("view", [-1, 4])
def test_there_is_no_other_view(view):
    """An image of a view that has no label is never made."""
    with pytest.raises(IndexError, match=f"view {view} of 4"):
        Replay.of(VIEWS, "labels.zarr").images(IMAGES, INDEX, view)


@pytest.mark.parametrize("text", ["rotate:15", "crop:04", "", "crop:4, flip", "none"])
def test_what_cannot_be_replayed_is_refused(text):
    """By the store's name, with what it says; 'none' would be null."""
    views = ViewFacts(count=1, seed=0, augmentation=text)
    with refused(StoreError, where="labels.zarr", what="views", remedy="Update"):
        Replay.of(views, "labels.zarr")
