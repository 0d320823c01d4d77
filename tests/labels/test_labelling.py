"""Streaming images through teachers: the right answers, and the same after an interruption."""

import numpy as np
import pytest
import torch

from pipeline.images.stream import ImageStream
from pipeline.labels import SoftLabels
from pipeline.labels.format import DatasetFacts, StoreFacts, TeacherFacts
from pipeline.labels.labelling import aligned_rows, label_images
from pipeline.labels.write import StoreWriter
from pipeline.models.classifier import Classifier
from pipeline.models.registry import build

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


def writer(beton, state, rows=2 * BATCH):
    manifest = beton.manifest
    facts = StoreFacts(
        num_samples=240,
        num_classes=10,
        class_names=manifest.class_names,
        dataset=DatasetFacts(name="digits", split="train", fingerprint=manifest.fingerprint),
        teachers=(TeacherFacts(sha256="0" * 64, architecture="small-cnn-w8"),),
    )
    return StoreWriter(state, facts, keep_logits=True, rows=rows)


def run(beton, teacher, state, progress=None):
    draft = writer(beton, state)
    stream = ImageStream(beton, CPU)
    label_images([teacher], stream, draft, batch_size=BATCH, precision="float32", progress=progress)
    return draft


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize(("classes", "batch_size"), [(10, 256), (1000, 100), (1000, 9000)])
def test_chunks_are_whole_batches(making, classes, batch_size, top_k):
    """So that a run that goes on at a chunk's end has the batches of an uninterrupted one."""
    rows = aligned_rows(making(num_classes=classes).attributes, top_k, batch_size)
    assert rows % batch_size == 0
    assert rows >= batch_size


def test_the_answers_are_the_networks_own_logits(train_beton, teacher, tmp_path):
    """Before the model's temperature: the label's is applied once."""
    run(train_beton, teacher, tmp_path / "state").publish(tmp_path / "s.zarr", 2.0)
    store = SoftLabels.open(tmp_path / "s.zarr")
    (batch,) = ImageStream(train_beton, CPU).batches(np.arange(240), 240)
    with torch.no_grad():
        logits = 3.0 * teacher(batch.images.float() / 255)
    np.testing.assert_allclose(store.gather_logits(np.arange(240)), logits, atol=2e-3)
    soft = (logits / 2.0).softmax(dim=1)
    np.testing.assert_allclose(store.gather(np.arange(240)), soft, atol=2e-3)


@pytest.mark.parametrize("batches", [1, 2, 5, 14])
def test_an_interrupted_labelling_ends_with_the_same_bytes(train_beton, teacher, tmp_path, batches):
    """Stopped after some batches, continued by another writer: the same store."""

    class Stop:
        count = 0

        def __call__(self, _):
            self.count += 1
            if self.count == batches:
                raise KeyboardInterrupt

    whole = run(train_beton, teacher, tmp_path / "whole").publish(tmp_path / "whole.zarr", 2.0)
    with pytest.raises(KeyboardInterrupt):
        run(train_beton, teacher, tmp_path / "state", Stop())
    draft = run(train_beton, teacher, tmp_path / "state")
    assert draft.publish(tmp_path / "again.zarr", 2.0) == whole
