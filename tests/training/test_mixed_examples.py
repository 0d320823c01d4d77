"""CutMix and Mixup in training: pixels, targets and truth are of the same two samples."""

import numpy as np
import pytest
import torch
from refusals import refused
from short_runs import ATTACK, SHORT

from ltd_pipe.distributed import World, shard
from ltd_pipe.errors import ParamsError
from ltd_pipe.images.augment import augment, mix
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import DatasetFacts, StoreFacts, TeacherFacts, ViewFacts
from ltd_pipe.labels.softmax import soften
from ltd_pipe.labels.writer import StoreWriter
from ltd_pipe.params import TrainParams
from ltd_pipe.training.data import student_transform
from ltd_pipe.training.trainer import Watcher

CPU = torch.device("cpu")
MIXED = {"cutmix_probability": 0.5, "mixup_probability": 0.5, "mixup_alpha": 1.0}
ORDER = np.random.default_rng(0).permutation(240)[:101]
VIEWS = ViewFacts(count=2, seed=7, augmentation="crop:1,flip")


def params(**changes):
    return TrainParams(**SHORT | ATTACK | MIXED | {"label_kind": "ltd"} | changes)


@pytest.fixture(scope="module")
def stores(train_beton, tmp_path_factory):
    """Labels drawn at random of the plain digits, and of two views of each."""
    folder, manifest, found = tmp_path_factory.mktemp("stores"), train_beton.manifest, {}
    for name, views in (("plain", ViewFacts()), ("views", VIEWS)):
        facts = StoreFacts(
            num_samples=240,
            num_classes=10,
            class_names=manifest.class_names,
            dataset=DatasetFacts(name="digits", split="train", fingerprint=manifest.fingerprint),
            teachers=(TeacherFacts(sha256="0" * 64, architecture="small-cnn-w8"),),
            views=views,
        )
        shape = (240, 10) if views.count == 1 else (240, views.count, 10)
        logits = np.random.default_rng(1).normal(0, 3, shape).astype(np.float32)
        writer = StoreWriter(folder / "draft", facts, keep_logits=True, rows=64)
        writer.append(logits, train_beton.labels, train_beton.sample_hash)
        writer.publish(folder / f"{name}.zarr", 2.0)
        found[name] = SoftLabels.open(folder / f"{name}.zarr"), soften(logits, 2.0)
    return found


def transform_of(store, **changes):
    crops = {"crop_padding": 1, "flip": True}
    return student_transform(params(**crops | changes), 10, store, "train.beton", CPU, 3)


@pytest.mark.parametrize("name", ["plain", "views"])
def test_target_and_truth_are_mixed_as_the_pixels_are(stores, train_stream, name):
    """Crops or replayed views, then pairs: each row is its two samples' in the pixels' shares."""
    store, soft = stores[name]
    (batch,) = train_stream.batches(ORDER, 101)
    found, seed = transform_of(store).apply(batch, 5), 7 if name == "views" else 3
    view = 5 % 2 if name == "views" else 5
    cropped = augment(
        batch.images, batch.index, params(crop_padding=1, flip=True).augmentation,
        seed=seed, epoch=view,
    )  # fmt: skip
    images, mixture = mix(cropped, batch.index, params(), seed=3, epoch=5)
    assert torch.equal(found.images, images)
    assert not torch.equal(images, cropped)
    rows = soft[batch.rows] if name == "plain" else soft[batch.rows, 1]
    for kind, of_sample in (("target", rows), ("truth", np.eye(10)[batch.labels])):
        one = torch.from_numpy(of_sample).float()
        # Each with its neighbour; the last is alone.
        other = torch.cat([one[:100].view(50, 2, 10).flip(1).reshape(100, 10), one[100:]])
        share = mixture.own[:, None]
        torch.testing.assert_close(
            getattr(found, kind), share * one + (1 - share) * other, rtol=0, atol=1e-3
        )


def everything(parts):
    return [torch.cat([getattr(part, name) for part in parts]) for name in parts[0]._fields]


@pytest.mark.parametrize("size", [2, 34, 100])
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_batches_and_residency_cannot_be_told(stores, train_beton, train_stream, size, resident):
    """The same pixels and labels in any batch of pairs, from memory or from the file."""
    stream = train_stream if resident else ImageStream(train_beton, CPU, resident=False, workers=2)
    transform = transform_of(stores["plain"][0], policy="trivialaugment", cutout=3)
    whole = everything([transform.apply(x, 1) for x in train_stream.batches(ORDER, 240)])
    parts = [transform.apply(transform.prefetch(x, 1), 1) for x in stream.batches(ORDER, size)]
    for one, two in zip(whole, everything(parts), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_cannot_be_told(train_stream, processes):
    """What each makes of its share, put together, is what one alone makes."""
    onehot = params(label_kind="onehot")
    transform = student_transform(onehot, 10, None, "", CPU, 3)
    (batch,) = train_stream.batches(ORDER, 240)
    whole, found = transform.apply(batch, 0), {}
    for rank in range(processes):
        mine, size = shard(ORDER, 24, World(rank, processes), unit=2)
        for part in train_stream.batches(mine, size):
            found |= dict(zip(part.rows.tolist(), transform.apply(part, 0).images, strict=True))
    assert len(found) == len(ORDER)
    for row, image in zip(ORDER.tolist(), whole.images, strict=True):
        assert torch.equal(found[row], image)


class Noting:
    """An objective that notes what is attacked and trained towards."""

    def __init__(self, inner):
        self._inner, self.truths, self.targets = inner, [], []

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def attack(self, adversary, model, batch, **how):
        self.truths.append(batch.truth.clone())
        return self._inner.attack(adversary, model, batch, **how)

    def loss(self, model, batch, adversarial):
        self.targets.append(batch.target.clone())
        return self._inner.loss(model, batch, adversarial)


def test_the_loop_attacks_and_trains_the_mixture(make_student, stores):
    """Truth and target are distributions over two classes or more; accuracy is a share of them."""
    fit = make_student(store=stores["plain"][0], label_kind="ltd", epochs=1, **MIXED)
    objective = fit._step._objective = Noting(fit._step._objective)
    (row,) = fit.run(Watcher())
    for rows in (torch.cat(objective.truths), torch.cat(objective.targets)):
        torch.testing.assert_close(rows.sum(dim=1), torch.ones(len(rows)))
    truths = torch.cat(objective.truths)
    assert ((truths > 0).sum(dim=1) == 2).float().mean() > 0.5
    assert 0 < row["train/robust_accuracy"] < 1


def test_pairs_need_an_even_batch(make_student):
    """For one process as for many."""
    with pytest.raises(ValueError, match="batch_size: cutmix and mixup take pairs of images"):
        make_student(batch_size=31, **MIXED)
    with refused(
        ParamsError, where="batch_size", what="neighbours", expected="a multiple of 4", found=30
    ):
        from ltd_pipe.distributed import require_shards

        require_shards(100, 30, 2, unit=2)
