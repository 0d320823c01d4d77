"""The audit: models known to be masked fail it, normally trained robust ones pass."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.audit import AuditSettings, audit
from ltd_pipe.evaluation.bench import select_images
from ltd_pipe.evaluation.results import Finding
from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.manifest import to_unit
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import DatasetFacts, StoreAttributes, TeacherFacts
from ltd_pipe.labels.writer import write_store
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.params import PrepareParams, TrainParams
from ltd_pipe.training.run import new_classifier, split_samples, student_trainer
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import RunContext, Watcher

CPU = torch.device("cpu")
SETTINGS = AuditSettings(eps=0.15, steps=20, restarts=2, square_queries=100)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def betons(tmp_path_factory):
    """All training digits and 48 test digits."""
    folder = tmp_path_factory.mktemp("all-digits")
    params = PrepareParams(dataset="digits", channels=1, validation_fraction=0.1)
    for split in ("train", "test"):
        source = open_source(params, split)
        source = source if split == "train" else source.take(np.arange(48))
        write_beton(source, folder / f"{split}.beton", params, split)
    return {split: open_beton(folder / f"{split}.beton") for split in ("train", "test")}


@pytest.fixture(scope="module")
def digits_to_attack(betons):
    return select_images(ImageStream(betons["test"], CPU), 48, None, 0)


def clean_network(beton, temperature):
    """Trained on clean images with its logits divided by the temperature."""
    params = TrainParams(
        architecture="small-cnn-w8", epochs=1, eps=0.1, step_size=0.05, temperature=temperature
    )
    model = new_classifier(params, beton.manifest, seed=0, role="student", device=CPU)
    (batch,) = ImageStream(beton, CPU).batches(np.arange(1180), 1180)
    images, generator = to_unit(batch.images), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1 if temperature > 1 else 0.01)
    for _ in range(400):
        rows = torch.randint(1180, (128,), generator=generator)
        optimiser.zero_grad()
        functional.cross_entropy(model(images[rows]), batch.labels[rows]).backward()
        optimiser.step()
    return model.eval()


def wrapped(network, like):
    """A classifier of temperature one around a network."""
    return Classifier(
        network, architecture="control", class_names=like.class_names, shape=like.shape
    ).eval()


class Quantised(nn.Module):
    """Sees five levels of grey, so that no small change of a pixel has a gradient."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(torch.round(images * 4) / 4)


class Randomised(Quantised):
    """Answers with noise of its own."""

    def forward(self, images):
        logits = self.network(images)
        return logits + 0.5 * torch.randn_like(logits)


@pytest.fixture(scope="module")
def clean(betons):
    return clean_network(betons["train"], 1.0)


@pytest.fixture(scope="module")
def distilled(betons):
    """Defensive distillation's mistake: temperature 100 in training, dropped at inference."""
    hot = clean_network(betons["train"], 100.0)
    return wrapped(hot.network, hot)


@pytest.fixture(scope="module")
def student(betons, clean, tmp_path_factory):
    """A function that trains a student adversarially, on one-hot or the teacher's labels."""
    folder = tmp_path_factory.mktemp("students")
    beton = betons["train"]
    store = write_labels(folder / "labels.zarr", beton, clean)

    def train(**changes):
        content = {
            "architecture": "small-cnn-w8",
            "epochs": 10,
            "batch_size": 64,
            "eps": 0.15,
            "step_size": 0.05,
            "attack_steps": 5,
            "validation_attack_steps": 2,
            "validation_every": 10,
        }
        params = TrainParams(**content | changes)
        name = json.dumps(changes)
        model = new_classifier(params, beton.manifest, seed=0, role="student", device=CPU)
        fit = student_trainer(
            model,
            ImageStream(beton, CPU),
            split_samples(beton),
            params,
            RunContext(0, Snapshots(folder / name)),
            store=store,
        )
        fit.run(Watcher())
        return fit.average.eval()

    return train


def write_labels(path, beton, teacher):
    (batch,) = ImageStream(beton, CPU).batches(np.arange(1180), 1180)
    with torch.no_grad():
        logits = teacher(to_unit(batch.images)).numpy()
    manifest = beton.manifest
    attributes = StoreAttributes(
        temperature=4.0,
        num_samples=1180,
        num_classes=10,
        class_names=manifest.class_names,
        dataset=DatasetFacts(name="digits", split="train", fingerprint=manifest.fingerprint),
        teachers=(TeacherFacts(sha256="0" * 64, architecture="small-cnn-w8"),),
    )
    write_store(path, attributes, logits, beton.labels, beton.sample_hash)
    return SoftLabels.open(path)


def failures(model, test, **options):
    found = audit(model, test, SETTINGS, **options).findings
    return {finding.name for finding in found if not finding.passed}


def test_a_defensively_distilled_model_fails(distilled, digits_to_attack):
    """Its softmax is saturated: dead gradients, which scaled logits bring back to life."""
    found = failures(distilled, digits_to_attack)
    assert {"live gradients", "logits times 0.01", "margin loss"} <= found
    assert "unbounded attack breaks all" in found


def test_a_model_of_quantised_input_fails(clean, digits_to_attack):
    """No gradient at all, and a search without gradients does better."""
    found = failures(wrapped(Quantised(clean.network), clean), digits_to_attack)
    assert {"live gradients", "unbounded attack breaks all", "white box beats Square"} <= found


def test_a_model_that_answers_at_random_fails(clean, digits_to_attack):
    """It contradicts itself."""
    assert "deterministic" in failures(wrapped(Randomised(clean.network), clean), digits_to_attack)


def test_transfer_finds_what_the_own_gradient_does_not(clean, digits_to_attack):
    """The images that break the network break its quantised twin."""
    found = failures(
        wrapped(Quantised(clean.network), clean), digits_to_attack, sources={"twin": clean}
    )
    assert "white box beats transfer from twin" in found


ROBUST = {
    "adversarial training": {"label_kind": "onehot"},
    "low-temperature distillation": {"label_kind": "ltd"},
}


@pytest.mark.parametrize("changes", ROBUST.values(), ids=ROBUST)
def test_robust_students_pass(student, clean, digits_to_attack, changes):
    """No check fails for a model that was trained against the attack."""
    assert failures(student(**changes), digits_to_attack, sources={"teacher": clean}) == set()


def test_a_clean_model_is_no_masked_one(clean, digits_to_attack):
    """It is not robust, and does not pretend to be."""
    assert failures(clean, digits_to_attack) == set()


def test_a_model_that_knows_nothing_is_refused(betons, digits_to_attack):
    """Nothing can be said of the gradients of a coin."""
    params = TrainParams(architecture="small-cnn-w8", epochs=1, eps=0.1, step_size=0.05)
    model = new_classifier(params, betons["train"].manifest, seed=0, role="student", device=CPU)
    with pytest.raises(ModelError, match="no better than chance.*of 48 right"):
        audit(model.eval(), digits_to_attack, SETTINGS)


@pytest.mark.parametrize(
    ("count", "n", "passed"), [(0, 60, True), (3, 60, True), (11, 60, False), (1, 10**5, True)]
)
def test_a_finding_fails_when_chance_cannot_explain_it(count, n, passed):
    """Its interval's lower end is above the limit."""
    assert Finding(name="x", count=count, n=n, limit=0.06, meaning="").passed is passed
