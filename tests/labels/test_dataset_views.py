"""A label of one view of an image never comes with another view."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_photos import make_photos
from PIL import Image
from refusals import refused
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder

from ltd_pipe.errors import DataError, StoreError
from ltd_pipe.images.augment import augment
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.images.decode import CHANNELS, RESIZE, resize, to_channels
from ltd_pipe.images.sources import FolderSource
from ltd_pipe.labels import SoftLabelDataset, SoftLabels
from ltd_pipe.labels.format import ViewFacts
from ltd_pipe.labels.softmax import soften


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures, three views of each labelled."""
    made = make_photos(tmp_path_factory.mktemp("views") / "photos", views=3)
    made.store()
    return made


class OwnViews(Dataset):
    """Gives the views in an order of its own, and says which."""

    def __init__(self, folder, views):
        self.folder, self.views = folder, views

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, i):
        return (*self.folder[i], self.views[i])

    def path(self, i):
        return Path(self.folder.samples[i][0])


def own_views(photos, views):
    """A data set over one that makes its own views."""
    own = OwnViews(ImageFolder(photos.folder), views)
    return SoftLabelDataset(own, photos.store(), views="given", hash_of=own.path)


def test_views_are_not_taken_for_the_image(photos):
    """What to do must be said."""
    with refused(StoreError, where="labels.zarr", what="augmented", remedy="views"):
        SoftLabelDataset(ImageFolder(photos.folder), photos.store())


def test_one_augmented_view_is_not_the_image_either(photos):
    """Also where there is nothing to choose from."""
    views = ViewFacts(count=1, seed=5, augmentation="flip")
    answers = replace(
        photos.answers,
        logits=photos.answers.logits[:, 0],
        attributes=photos.answers.attributes.model_copy(update={"views": views}),
    )
    path = photos.folder.parent / "one.zarr"
    store = SoftLabels.open(path if path.exists() else answers.write(path))
    with refused(StoreError, where=path, what="augmented"):
        SoftLabelDataset(ImageFolder(photos.folder), store)


def test_views_of_labels_that_have_none_are_refused(tmp_path):
    """A misunderstanding, of which one side is wrong."""
    plain = make_photos(tmp_path / "photos", each=1)
    with refused(StoreError, where=tmp_path / "labels.zarr", what="labels", remedy="views"):
        SoftLabelDataset(ImageFolder(plain.folder), plain.store(), views="given")


def test_a_given_view_gets_its_own_label(photos):
    """The number comes with the image, so that nothing has to be kept in step."""
    views = [i * 5 % 3 for i in range(12)]
    data = own_views(photos, views)
    for (i, view), (_, _, soft) in zip(
        enumerate(views), data.__getitems__(list(range(12))), strict=True
    ):
        row = photos.paths.index(data.dataset.path(i))
        np.testing.assert_allclose(soft, soften(photos.answers.logits[row, view], 2.0), atol=1e-3)


@pytest.mark.parametrize("view", [3, -1])
def test_a_view_without_label_is_refused(photos, view):
    """Never counted from the end."""
    with refused(StoreError, where="labels.zarr", what="view", expected="0 to 2", found=view):
        own_views(photos, [view] * 12)[0]


def test_a_given_view_must_be_named(photos):
    """(image, label) leaves open which view it is."""
    folder = ImageFolder(photos.folder)
    data = SoftLabelDataset(folder, photos.store(), views="given")
    with refused(
        DataError, where="0.png", what="data", expected="(image, label, view)", found="2 things"
    ):
        data[0]


def view_of(photos, row, view):
    """What the teacher saw: the picture of this row, cropped as the store says."""
    pixels = ImageFolder(photos.folder).loader(photos.paths[row])
    image = torch.from_numpy(np.array(pixels)).movedim(-1, 0)[None]
    return augment(image, torch.tensor([row]), Augmentation(crop_padding=1), seed=5, epoch=view)[0]


def require_view(photos, data, view, order=range(12)):
    """Each image is that view of its picture, and its soft label that of the same view."""
    folder = ImageFolder(photos.folder)
    for i, (image, label, soft) in zip(order, data, strict=True):
        row = photos.paths.index(Path(folder.samples[i][0]))
        assert label == folder.samples[i][1]
        assert torch.equal(image, view_of(photos, row, view))
        np.testing.assert_allclose(soft, soften(photos.answers.logits[row, view], 2.0), atol=1e-3)


@pytest.mark.parametrize(("epoch", "view"), [(0, 0), (1, 1), (5, 2)])
def test_replayed_views_are_the_teachers(photos, epoch, view):
    """View epoch modulo V, to the bit, whatever place the picture now has."""
    order = [7, 0, 11, 4]
    data = SoftLabelDataset(
        Subset(ImageFolder(photos.folder), order), photos.store(), views="replay"
    )
    data.set_epoch(epoch)
    require_view(photos, data, view, order)


def test_one_view_may_be_fixed(photos):
    """Then the epoch does not matter."""
    data = SoftLabelDataset(ImageFolder(photos.folder), photos.store(), views="replay", view=1)
    data.set_epoch(2)
    require_view(photos, data, 1)
    with refused(StoreError, where="labels.zarr", what="view", expected="0 to 2", found=3):
        SoftLabelDataset(ImageFolder(photos.folder), photos.store(), views="replay", view=3)
    with pytest.raises(ValueError, match="the data set says it"):
        SoftLabelDataset(ImageFolder(photos.folder), photos.store(), views="given", view=0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_live_on_hear_of_the_next_epoch(photos, method):
    """Their copy of the data set takes the epoch from shared memory."""
    data = SoftLabelDataset(ImageFolder(photos.folder), photos.store(), views="replay")
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context=method,
    )
    for epoch in (0, 1):
        data.set_epoch(epoch)
        require_view(photos, loader, epoch)


def test_what_was_transformed_before_is_not_replayed(photos):
    """A crop of a resized image is another crop; what comes after is free."""
    with refused(DataError, where="Subset", what="transform", remedy="transform"):
        SoftLabelDataset(
            Subset(ImageFolder(photos.folder, lambda image: image), [0]),
            photos.store(),
            views="replay",
        )
    data = SoftLabelDataset(
        ImageFolder(photos.folder), photos.store(), views="replay", transform=lambda x: x / 255
    )
    row = photos.paths.index(Path(data.dataset.samples[2][0]))
    assert torch.equal(data[2][0], view_of(photos, row, 0) / 255)


IMAGES = {
    "floats": (
        torch.zeros(3, 12, 10),
        {
            "what": "augmented",
            "expected": "a PIL image, or a uint8 tensor (C, H, W)",
            "found": "Tensor torch.float32",
        },
    ),
    "a batch": (
        torch.zeros(1, 3, 12, 10, dtype=torch.uint8),
        {
            "what": "augmented",
            "expected": "a PIL image, or a uint8 tensor (C, H, W)",
            "found": "Tensor torch.uint8",
        },
    ),
    "a text": (
        "photo.png",
        {
            "what": "augmented",
            "expected": "a PIL image, or a uint8 tensor (C, H, W)",
            "found": "str",
        },
    ),
}


@pytest.mark.parametrize(("image", "found"), IMAGES.values(), ids=IMAGES.keys())
def test_only_pixels_are_replayed(photos, image, found):
    """As they were read: any other image went through something already."""
    data = SoftLabelDataset(
        [(image, 0)], photos.store(), views="replay", hash_of=lambda _: photos.paths[0]
    )
    with refused(DataError, where="image 0 of list", **found):
        data[0]


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "1", "LA", "I;16"])
def test_pictures_of_another_mode_are_refused(photos, mode):
    """Numbers of a palette are no pixels, though the file's hash is right."""
    picture = Image.new("RGB", (24, 32), "red")
    picture = Image.new(mode, (24, 32)) if mode == "I;16" else picture.convert(mode)
    data = SoftLabelDataset(
        [(picture, 0)], photos.store(), views="replay", hash_of=lambda _: photos.paths[0]
    )
    with refused(DataError, what="mode", expected="RGB or L", found=mode, remedy="convert('RGB')"):
        data[0]


def test_grey_pictures_have_one_channel(photos):
    """PIL gives them without one."""
    grey = Image.fromarray(np.arange(120, dtype=np.uint8).reshape(12, 10))
    data = SoftLabelDataset(
        [(grey, 0)], photos.store(), views="replay", hash_of=lambda _: photos.paths[0]
    )
    assert data[0][0].shape == (1, 12, 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_replayed_images_are_resized_as_for_the_teacher(photos, channels):
    """By the same rule, before the view is made; a transform comes after."""
    rules = {"resize": RESIZE, "channels": CHANNELS[channels]}
    store = photos.asked(image_shape=(channels, 6, 6), **rules).store("sized.zarr", rows=4)
    data = SoftLabelDataset(ImageFolder(photos.folder), store, views="replay", transform=torch.neg)
    source = FolderSource(photos.folder)
    for i, (image, _, _) in zip(range(12), data, strict=True):
        row = photos.paths.index(Path(data.dataset.samples[i][0]))
        seen = to_channels(resize(source.decode(row), 6), channels).transpose(2, 0, 1)
        seen = torch.from_numpy(np.ascontiguousarray(seen))[None]
        view = augment(seen, torch.tensor([row]), Augmentation(crop_padding=1), seed=5, epoch=0)
        assert torch.equal(image, -view[0])


OTHER_SIZES = {
    "by another rule": {"resize": "nearest", "channels": CHANNELS[3]},
    "by an unknown rule": {},
}


@pytest.mark.parametrize("rules", OTHER_SIZES.values(), ids=OTHER_SIZES)
def test_views_of_another_size_are_refused(photos, rules):
    """The size is part of what a view is: also where any_size is asked for."""
    store = photos.asked(image_shape=(3, 6, 6), **rules).store("sized.zarr", rows=4)
    data = SoftLabelDataset(ImageFolder(photos.folder), store, views="replay", any_size=True)
    with pytest.raises(DataError) as caught:
        data[0]
    assert caught.value.where.endswith(".png")
    assert caught.value.expected == "3×6×6, as the teacher saw it"
    assert caught.value.found == "3×12×10"


def test_views_that_cannot_be_made_again_are_refused_at_once(photos, tmp_path):
    """Another project's augmentation: its labels can be used by whoever makes the views."""
    views = ViewFacts(count=3, seed=5, augmentation="colour-jitter")
    facts = photos.answers.attributes.model_copy(update={"views": views})
    replace(photos.answers, attributes=facts).write(tmp_path / "others.zarr")
    folder = ImageFolder(photos.folder)
    with refused(StoreError, where=tmp_path / "others.zarr", what="colour-jitter"):
        SoftLabelDataset(folder, tmp_path / "others.zarr", views="replay")
    own = OwnViews(folder, [2] * len(folder))
    data = SoftLabelDataset(own, tmp_path / "others.zarr", views="given", hash_of=own.path)
    assert data[0][2].shape == (photos.answers.attributes.num_classes,)
