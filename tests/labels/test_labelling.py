"""Streaming images through teachers: the right answers, and the same after an interruption."""

import re

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.errors import ParamsError, StoreError, WriteError
from ltd_pipe.images.augment import augment
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import DatasetFacts, StoreFacts, TeacherFacts, ViewFacts
from ltd_pipe.labels.labelling import Labeller, aligned_rows
from ltd_pipe.labels.on_device import Replay
from ltd_pipe.labels.writer import StoreWriter
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build

CPU = torch.device("cpu")
BATCH = 16


@pytest.fixture(scope="module")
def teacher(train_beton):
    """A network with random weights and a temperature of its own, which must not matter."""
    torch.manual_seed(0)
    manifest = train_beton.manifest
    return Classifier(
        build("small-cnn-w8", 10, manifest.shape),
        architecture="small-cnn-w8",
        class_names=manifest.class_names,
        shape=manifest.shape,
        temperature=3.0,
    ).eval()


PLAIN = ViewFacts()
THREE = ViewFacts(count=3, seed=7, augmentation="crop:1,flip")


def writer(beton, state, rows=2 * BATCH, views=PLAIN, teachers=1):
    manifest = beton.manifest
    facts = StoreFacts(
        num_samples=240,
        num_classes=10,
        class_names=manifest.class_names,
        dataset=DatasetFacts(name="digits", split="train", fingerprint=manifest.fingerprint),
        teachers=(TeacherFacts(sha256="0" * 64, architecture="small-cnn-w8"),) * teachers,
        views=views,
    )
    return StoreWriter(state, facts, keep_logits=teachers == 1, rows=rows)


@pytest.fixture
def run(train_beton, train_stream, teacher):
    """A function that asks a teacher about all images, or those that a draft still lacks."""

    def labelled(state, progress=None, views=PLAIN, teacher=teacher):
        draft = writer(train_beton, state, views=views)
        replay = Replay.of(views, "views")
        Labeller([teacher], train_stream, BATCH, "float32", replay).label(draft, progress)
        return draft

    return labelled


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize(("classes", "batch_size"), [(10, 256), (1000, 100), (1000, 9000)])
def test_chunks_are_whole_batches(making, classes, batch_size, top_k):
    """So that a run that goes on at a chunk's end has the batches of an uninterrupted one."""
    rows = aligned_rows(making(num_classes=classes).attributes, top_k, batch_size)
    assert rows % batch_size == 0
    assert rows >= batch_size


@pytest.mark.parametrize(
    ("classes", "batch_size", "wanted", "what"),
    [
        pytest.param(28_000, 256, 5000, "label.chunk_rows", id="wide rows"),
        pytest.param(1, 256, 40_000_000, "label.chunk_rows", id="hashes"),
        pytest.param(2**20, 256, None, "label.batch_size", id="wide rows of one batch"),
    ],
)
def test_chunks_that_nobody_could_read_are_not_begun(making, classes, batch_size, wanted, what):
    """Before the labels are made; a store of few samples has no such chunk."""
    facts = making().attributes.model_copy(update={"num_classes": classes})
    assert aligned_rows(facts, None, batch_size, wanted) >= 11
    facts = facts.model_copy(update={"num_samples": 40_000_000})
    with refused(ParamsError, where=what, what="too large", expected="at most 268435456 bytes"):
        aligned_rows(facts, None, batch_size, wanted)


def test_the_answers_are_the_networks_own_logits(run, train_stream, teacher, tmp_path):
    """Before the model's temperature: the label's is applied once."""
    run(tmp_path / "state").publish(tmp_path / "s.zarr", 2.0)
    store = SoftLabels.open(tmp_path / "s.zarr")
    (batch,) = train_stream.batches(np.arange(240), 240)
    with torch.no_grad():
        logits = 3.0 * teacher(batch.images.float() / 255)
    np.testing.assert_allclose(store.gather_logits(np.arange(240)), logits, atol=2e-3)
    soft = (logits / 2.0).softmax(dim=1)
    np.testing.assert_allclose(store.gather(np.arange(240)), soft, atol=2e-3)


def shown(stream, view, views=THREE):
    """The pixels of one view, by the function that training augments with."""
    (batch,) = stream.batches(np.arange(240), 240)
    augmentation = Augmentation.parse(views.augmentation)
    images = augment(batch.images, batch.index, augmentation, seed=views.seed, epoch=view)
    return images.float() / 255


@pytest.mark.parametrize("count", [1, 3])
def test_each_view_is_answered_as_training_will_see_it(run, train_stream, teacher, tmp_path, count):
    """View v is the image augmented with the view in the epoch's place; one may be enough."""
    views = THREE.model_copy(update={"count": count})
    run(tmp_path / "state", views=views).publish(tmp_path / "s.zarr", 2.0)
    store = SoftLabels.open(tmp_path / "s.zarr")
    assert store.attributes.views == views
    for view in range(count):
        with torch.no_grad():
            logits = teacher.raw_logits(shown(train_stream, view))
        stored = store.gather_logits(np.arange(240), view=view)
        np.testing.assert_allclose(stored, logits, atol=2e-3)
        soft = store.gather(np.arange(240), view=view)
        np.testing.assert_allclose(soft, (logits / 2.0).softmax(dim=1), atol=2e-3)


def test_several_teachers_answer_the_same_views(run, train_beton, train_stream, teacher, tmp_path):
    """Teachers stand before the views: twice the same one gives its own labels."""
    draft = writer(train_beton, tmp_path / "two", views=THREE, teachers=2)
    replay = Replay.of(THREE, "views")
    Labeller([teacher, teacher], train_stream, BATCH, "float32", replay).label(draft)
    draft.publish(tmp_path / "two.zarr", 2.0)
    run(tmp_path / "one", views=THREE).publish(tmp_path / "one.zarr", 2.0)
    one, two = (
        SoftLabels.open(tmp_path / f"{n}.zarr").gather(np.arange(240)) for n in ["one", "two"]
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("views", [PLAIN, THREE], ids=["plain", "views"])
def test_a_temperature_of_a_sample_is_that_of_all(run, train_stream, teacher, tmp_path, views):
    """All 240 images fit the sample, so the two solutions are one; views count as rows."""
    replay = Replay.of(views, "views")
    labeller = Labeller([teacher], train_stream, BATCH, "float32", replay)
    before = labeller.temperature(240, 0.5)
    after = run(tmp_path / "state", views=views).solve_temperature(0.5)
    assert before == pytest.approx(after, rel=1e-4)


def test_an_augmentation_of_others_is_refused(run, tmp_path):
    """A store may name one that is not ours; making its labels is another matter."""
    views = THREE.model_copy(update={"augmentation": "rotate:15"})
    with refused(StoreError, where="views", what="rotate"):
        run(tmp_path / "state", views=views)


@pytest.mark.parametrize("views", [PLAIN, THREE], ids=["plain", "views"])
@pytest.mark.parametrize("batches", [1, 2, 5, 14])
def test_an_interrupted_labelling_ends_with_the_same_bytes(run, tmp_path, batches, views):
    """Stopped after some batches, continued by another writer: the same store."""

    class Stop:
        count = 0

        def __call__(self, _):
            self.count += 1
            if self.count == batches:
                raise KeyboardInterrupt

    whole = run(tmp_path / "whole", views=views)
    identity = whole.publish(tmp_path / "whole.zarr", 2.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", Stop(), views)
    draft = run(tmp_path / "state", views=views)
    assert draft.publish(tmp_path / "again.zarr", 2.0) == identity


class Spoiled(torch.nn.Module):
    """A teacher that answers NaN for one image of the data set."""

    def __init__(self, teacher, at):
        super().__init__()
        self.teacher, self.at, self.seen = teacher, at, 0

    def raw_logits(self, images):
        logits = self.teacher.raw_logits(images).clone()
        if self.seen <= self.at < self.seen + len(images):
            logits[self.at - self.seen, 3] = torch.nan
        self.seen += len(images)
        return logits


@pytest.mark.parametrize("at", [0, 70, 239])
def test_an_image_without_an_answer_is_named(run, train_beton, teacher, tmp_path, at):
    """The error of the writing thread ends the loop; with a sound teacher the run goes on."""
    with refused(StoreError, what=f"sample {at}", found=re.compile("nan")):
        run(tmp_path / "state", teacher=Spoiled(teacher, at))
    kept = at // (2 * BATCH) * 2 * BATCH
    assert writer(train_beton, tmp_path / "state").rows_left[0] == kept
    whole = run(tmp_path / "whole").publish(tmp_path / "whole.zarr", 2.0)
    draft = run(tmp_path / "state")
    assert draft.publish(tmp_path / "again.zarr", 2.0) == whole


def test_only_missing_chunks_are_asked_of_the_teacher(run, tmp_path):
    """Chunks in the middle that are gone or damaged are redone in batches of their own."""
    whole = run(tmp_path / "whole").publish(tmp_path / "whole.zarr", 2.0)
    run(tmp_path / "state")
    for chunk in (1, 4):
        (tmp_path / "state/logits-0/logits/c" / str(chunk) / "0").unlink()
    asked: list[int] = []
    draft = run(tmp_path / "state", asked.append)
    assert sum(asked) == 2 * 2 * BATCH
    assert draft.publish(tmp_path / "again.zarr", 2.0) == whole


def test_a_disk_that_refuses_ends_the_loop(train_beton, train_stream, teacher, tmp_path):
    """What the writing thread meets is one clear line in the caller."""
    draft = writer(train_beton, tmp_path / "state")
    (tmp_path / "state/logits-0").write_text("in the way")
    with refused(WriteError, where=tmp_path / "state/logits-0/logits", what="written"):
        Labeller([teacher], train_stream, BATCH, "float32").label(draft)
