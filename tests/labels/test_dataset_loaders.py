"""The same labels through any DataLoader: workers, epochs, ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.datasets import ImageFolder

from ltd_pipe.errors import JoinError
from ltd_pipe.labels import SoftLabelDataset


def to_tensor(image):
    """Of uint8, so that equal pictures are equal tensors; at the top, so that it is pickled."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0)


@pytest.fixture
def data(photos):
    """The pictures as tensors."""
    return SoftLabelDataset(ImageFolder(photos.folder, to_tensor), photos.store())


def require_all(photos, batches, count=12):
    """Each picture has come once, with its own label."""
    of_pixels = {
        to_tensor(ImageFolder(photos.folder).loader(path)).numpy().tobytes(): path
        for path in photos.paths
    }
    seen = set()
    for images, labels, soft in batches:
        for image, label, row in zip(images, labels, soft, strict=True):
            path = of_pixels[image.numpy().tobytes()]
            assert ("bird", "cat", "dog")[label] == path.parent.name
            np.testing.assert_allclose(row, photos.soft(path), atol=1e-3)
            seen.add(path)
    assert len(seen) == count


WORKERS = {
    "none": {},
    "forked": {"num_workers": 2, "multiprocessing_context": "fork"},
    "forked once": {
        "num_workers": 2,
        "multiprocessing_context": "fork",
        "persistent_workers": True,
    },
    "spawned once": {
        "num_workers": 1,
        "multiprocessing_context": "spawn",
        "persistent_workers": True,
    },
}


@pytest.mark.parametrize("options", WORKERS.values(), ids=WORKERS.keys())
def test_workers_of_every_kind_give_the_same(photos, data, options):
    """Batches are (B, …) images, (B,) labels and (B, K) float32 soft labels, in two epochs."""
    loader = DataLoader(data, batch_size=5, shuffle=True, **options)
    for _ in range(2):
        batches = list(loader)
        assert [tuple(soft.shape) for _, _, soft in batches] == [(5, 3), (5, 3), (2, 3)]
        assert batches[0][2].dtype == torch.float32
        require_all(photos, batches)


@pytest.mark.parametrize("options", WORKERS.values(), ids=WORKERS.keys())
def test_a_wrong_image_stops_every_kind_of_worker(photos, data, options):
    """The error reaches the training loop, with its line."""
    photos.paths[7].write_bytes(photos.paths[7].read_bytes() + b"x")
    # DataLoader makes a worker's error again from its text alone, without fields.
    with pytest.raises(JoinError, match="has no label for sample 7"):
        list(DataLoader(data, batch_size=5, **options))


def test_ranks_share_the_samples(photos, data):
    """Each of two gets half of the images, with their labels."""
    batches = []
    for rank in (0, 1):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, seed=3)
        sampler.set_epoch(1)
        batches += DataLoader(data, batch_size=4, sampler=sampler)
    require_all(photos, batches)


class Counting(Dataset):
    """Writes down which process hashed which sample."""

    def __init__(self, photos):
        self.folder = ImageFolder(photos.folder, to_tensor)
        self.log = photos.folder.parent / "hashed"

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, i):
        return self.folder[i]

    def path(self, i):
        with self.log.open("a") as log:
            log.write(f"{i}\n")
        return Path(self.folder.samples[i][0])


@pytest.mark.parametrize("persistent", [False, True])
def test_forked_workers_share_what_they_found(photos, persistent):
    """In three epochs of two workers each, which may be new ones, each sample is hashed once."""
    counting = Counting(photos)
    data = SoftLabelDataset(counting, photos.store(), hash_of=counting.path)
    loader = DataLoader(
        data,
        batch_size=2,
        shuffle=True,
        num_workers=2,
        multiprocessing_context="fork",
        persistent_workers=persistent,
    )
    for _ in range(3):
        require_all(photos, list(loader))
    assert sorted(map(int, counting.log.read_text().split())) == list(range(12))
