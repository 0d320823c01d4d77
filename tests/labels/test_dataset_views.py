"""A label of one view of an image never comes with another view."""

from dataclasses import replace

import numpy as np
import pytest
from made_photos import make_photos
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from pipeline.errors import DataError, StoreError
from pipeline.labels import SoftLabelDataset, SoftLabels
from pipeline.labels.format import ViewFacts
from pipeline.labels.softmax import soften


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
        from pathlib import Path

        return Path(self.folder.samples[i][0])


def own_views(photos, views):
    """A data set over one that makes its own views."""
    own = OwnViews(ImageFolder(photos.folder), views)
    return SoftLabelDataset(own, photos.store(), views="given", hash_of=own.path)


def test_views_are_not_taken_for_the_image(photos):
    """What to do must be said."""
    with pytest.raises(
        StoreError,
        match=r"its labels are of augmented views \(crop:1, 3 of each image\), not of the images "
        "as they are. Pass views=",
    ):
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
    with pytest.raises(StoreError, match=r"of augmented views \(flip, 1 of each image\)"):
        SoftLabelDataset(ImageFolder(photos.folder), store)


def test_views_of_labels_that_have_none_are_refused(tmp_path):
    """A misunderstanding, of which one side is wrong."""
    plain = make_photos(tmp_path / "photos", each=1)
    with pytest.raises(StoreError, match="its labels are of the images as they are. Omit views="):
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
    with pytest.raises(StoreError, match=f"no such view: expected 0 to 2, found {view}"):
        own_views(photos, [view] * 12)[0]


def test_a_given_view_must_be_named(photos):
    """(image, label) leaves open which view it is."""
    folder = ImageFolder(photos.folder)
    data = SoftLabelDataset(folder, photos.store(), views="given")
    with pytest.raises(DataError, match=r"expected \(image, label, view\), found 2 things"):
        data[0]
