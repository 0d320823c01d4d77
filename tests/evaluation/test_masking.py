"""The audit: models known to be masked fail it, normally trained robust ones pass."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_answers import write_store
from refusals import refused
from torch import nn
from torch.nn import functional

from ltd_pipe.attacks import Ball
from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.audit import AuditSettings, audit, loss_surface
from ltd_pipe.evaluation.bench import select_images
from ltd_pipe.evaluation.results import Finding
from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.manifest import to_unit
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import DatasetFacts, StoreAttributes, TeacherFacts
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.params import PrepareParams, TrainParams
from ltd_pipe.report.surface import draw_surface
from ltd_pipe.training.run import new_classifier, split_samples, student_trainer
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import RunContext, Watcher

# --- The audit: models known to be masked fail it, normally trained robust ones pass.


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
    with refused(ModelError, where="model", what="chance", found=re.compile("of 48 right$")):
        audit(model.eval(), digits_to_attack, SETTINGS)


UNTOLD = {"few": (1, 0), "unequal": (48, 3)}


@pytest.mark.parametrize(("n", "others"), UNTOLD.values(), ids=UNTOLD)
def test_images_of_which_no_answers_could_beat_chance_are_refused(betons, clean, n, others):
    """Not the model, however right it is: more training would not help."""
    test = select_images(ImageStream(betons["test"], CPU), n, None, 0)
    test = replace(test, labels=torch.arange(n).lt(others).long())
    found = f"{n - others} of {n} images of one class"
    with refused(ModelError, what="too few images", found=found, remedy="more images"):
        audit(clean, test, SETTINGS)


@pytest.mark.parametrize(
    ("count", "n", "passed"), [(0, 60, True), (3, 60, True), (11, 60, False), (1, 10**5, True)]
)
def test_a_finding_fails_when_chance_cannot_explain_it(count, n, passed):
    """Its interval's lower end is above the limit."""
    assert Finding(name="x", count=count, n=n, limit=0.06, meaning="").passed is passed


# --- The audit of a model whose robustness is known: in L2, and without work done twice.


@pytest.fixture(scope="module")
def told():
    """What the audit said was under way."""
    return []


@pytest.fixture(scope="module")
def found(images, new_model, told):
    """An audit of the linear model in L2, with three starts of PGD."""
    settings = AuditSettings(
        eps=0.16, batch_size=24, steps=20, restarts=3, square_queries=20, norm="l2"
    )
    tick = lambda *words: told.append(words)  # noqa: E731
    return audit(new_model(), images, settings, tick=tick)


def test_a_linear_model_is_not_masked_in_l2(found):
    """Every check passes, the largest ball breaks all, and the curve ends at zero."""
    assert [finding.name for finding in found.findings if not finding.passed] == []
    assert found.zero_accuracy_at_eps is not None
    assert found.loss_surface.rises == 1.0


def test_no_start_is_tried_twice(found, told):
    """Of three starts the first is the plain attack's: two are left for what stands."""
    plain = [done for name, done, _ in told if name == "PGD-20" and done]
    again = [done for name, done, _ in told if name.startswith("PGD-20 start") and done]
    assert len(plain) == 1
    assert len(again) == 2
    assert max(again) < plain[0]


# --- The loss surface: what it measures, and that its picture is the same twice.


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_gradient_leads_up_on_a_smooth_surface(bench, right, norm):
    """In the middle is the clean loss; along the gradient it rises, and faster than by chance."""
    surface = loss_surface(bench(), Ball(norm, 0.05), right)
    assert surface.n == 16
    assert (surface.rises, surface.beats_random) == (1.0, 1.0)
    grid, middle = np.array(surface.loss), 10
    assert surface.offsets[middle] == 0
    assert (np.diff(grid[:, middle]) > 0).all()
    assert surface.offsets[-1] == pytest.approx(0.1)


def test_the_middle_is_the_clean_loss(bench, images, right, model):
    """The mean cross entropy of the images themselves."""
    surface = loss_surface(bench(), Ball("linf", 0.05), right)
    rows = right.nonzero().flatten()[:16]
    pixels, labels, _ = images.take(rows)
    with torch.no_grad():
        clean = nn.functional.cross_entropy(model(pixels), labels)
    assert surface.loss[10][10] == pytest.approx(float(clean))


class Flat(nn.Module):
    """The right answers, without a gradient."""

    def forward(self, images):
        return 4.0 * torch.round(images * 1e-9 + images.detach() * 255).sum(dim=(1, 3))


def test_without_a_gradient_nothing_rises(bench, right):
    """The zero direction leads nowhere, and JSON takes what comes out."""
    names = tuple("abcde")
    model = Classifier(Flat(), architecture="x", class_names=names, shape=(1, 5, 5)).eval()
    surface = loss_surface(bench(network=model), Ball("linf", 1e-9), right)
    assert surface.rises < 1
    json.dumps(surface.dump(), allow_nan=False)


def test_the_picture_says_what_it_shows_and_is_the_same_twice(bench, right):
    """Both axes, n, norm and radius; no time, no random ids."""
    surface, ball = loss_surface(bench(), Ball("l2", 0.5), right), Ball("l2", 0.5)
    text = draw_surface(surface, ball)
    assert text == draw_surface(surface, ball)
    for words in ("along the gradient", "random direction", "Loss around 16 images (L2 0.5)"):
        assert words in text
    assert "<dc:date>" not in text


# --- What a check of an audit shows, and how much it can see.


@pytest.mark.parametrize(
    ("n", "limit"), [(1, 0.0), (5, 0.05), (48, 0.02), (200, 0.05), (617, 0.06), (10_000, 0.02)]
)
def test_a_check_fails_from_the_share_that_it_says(n, limit):
    """With one image less it passes."""
    first = round(Finding(name="x", count=0, n=n, limit=limit, meaning="").fails_from * n)
    assert not Finding(name="x", count=first, n=n, limit=limit, meaning="").passed
    assert Finding(name="x", count=first - 1, n=n, limit=limit, meaning="").passed


def test_more_images_see_smaller_shares():
    """Toward the limit itself, and never below it."""
    seen = [
        Finding(name="x", count=0, n=n, limit=0.05, meaning="").fails_from
        for n in (20, 200, 2_000, 200_000)
    ]
    assert seen == sorted(seen, reverse=True)
    assert 0.05 < seen[-1] < 0.052
