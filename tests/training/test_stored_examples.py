"""Training meets the labelled views again: the images that the loop sees have their own labels."""

import re
import signal

import numpy as np
import pytest
import torch
from refusals import refused
from short_runs import SHORT

from ltd_pipe.errors import JoinError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import DatasetFacts, StoreFacts, TeacherFacts, ViewFacts
from ltd_pipe.labels.labelling import Labeller
from ltd_pipe.labels.on_device import Replay
from ltd_pipe.labels.writer import StoreWriter
from ltd_pipe.params import TeacherParams
from ltd_pipe.training.failures import Interrupted
from ltd_pipe.training.run import new_classifier, split_samples, teacher_trainer
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import RunContext, Watcher

CPU = torch.device("cpu")
VIEWS = ViewFacts(count=3, seed=7, augmentation="crop:1,flip")
CROPPED = {"crop_padding": 1, "flip": True}
SOFT = {"label_kind": "ltd", "attack_steps": 1, "validation_attack_steps": 1}
# Rounding to float16, and the rounding of another batch in float32.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def teacher(train_beton, train_stream, tmp_path_factory):
    """A teacher that knows something, so that its answers to two views differ."""
    params = TeacherParams(**SHORT | {"epochs": 4, "learning_rate": 0.2})
    fit = teacher_trainer(
        new_classifier(params, train_beton.manifest, seed=0, role="teacher", device=CPU),
        train_stream,
        split_samples(train_beton),
        params,
        RunContext(0, Snapshots(tmp_path_factory.mktemp("teacher"))),
    )
    fit.run(Watcher())
    return fit.best.eval()


@pytest.fixture(scope="module")
def make_store(train_beton, train_stream, teacher, tmp_path_factory):
    """A function that labels the digits with that teacher."""

    def make(views=VIEWS, **options):
        manifest, folder = train_beton.manifest, tmp_path_factory.mktemp("store")
        facts = StoreFacts(
            num_samples=240,
            num_classes=10,
            class_names=manifest.class_names,
            dataset=DatasetFacts(name="digits", split="train", fingerprint=manifest.fingerprint),
            teachers=(TeacherFacts(sha256="0" * 64, architecture="small-cnn-w8"),),
            views=views,
        )
        options = {"keep_logits": True, "rows": 64} | options
        writer = StoreWriter(folder / "draft", facts, **options)
        replay = Replay.of(views, "views")
        Labeller([teacher], train_stream, 64, "float32", replay).label(writer)
        writer.publish(folder / "views.zarr", 2.0)
        return SoftLabels.open(folder / "views.zarr")

    return make


@pytest.fixture(scope="module")
def store(make_store):
    """Three views of each digit."""
    return make_store()


class WatchedTransform:
    """Remembers which samples a step has transformed last."""

    def __init__(self, transform):
        self._transform, self.rows = transform, None

    def apply(self, batch, epoch):
        self.rows = batch.rows
        return self._transform.apply(batch, epoch)


class WatchedObjective:
    """Notes what the loop's step computes its loss from, then computes it."""

    def __init__(self, fit, transform):
        self._inner, self._fit, self._transform = fit._step._objective, fit, transform
        self.steps = []

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def loss(self, model, batch, adversarial):
        epoch = len(self._fit.progress.history)
        rows = self._transform.rows
        self.steps.append((epoch, rows, batch.images.clone(), batch.target.clone()))
        return self._inner.loss(model, batch, adversarial)


@pytest.fixture
def watch(make_student, tmp_path):
    """A function that trains and gives, of each step, (epoch, rows, images, target)."""

    def watched(store, **changes):
        state = tmp_path / f"state-{len(list(tmp_path.iterdir()))}"
        options = SOFT | CROPPED | changes
        fit = make_student(store=store, state=state, **options)
        transform = fit._step._transform = WatchedTransform(fit._step._transform)
        objective = fit._step._objective = WatchedObjective(fit, transform)
        fit.run(Watcher())
        assert objective.steps
        return objective.steps

    return watched


def answer(teacher, images, temperature=2.0):
    with torch.no_grad():
        return (teacher.raw_logits(images) / temperature).softmax(dim=1)


def distance(one, two):
    return (one - two).abs().amax(dim=1)


KINDS = {"dense": {}, "top-k": {"top_k": 10, "temperature": 2.0, "keep_logits": False}}


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_would_say_the_same_of_what_the_loop_sees(watch, make_store, teacher, kind):
    """In each step of four epochs, its answer to those very pixels is the target."""
    store = make_store(**KINDS[kind])
    steps = watch(store, epochs=4)
    assert {epoch for epoch, *_ in steps} == set(range(4))
    for epoch, rows, images, target in steps:
        expected = answer(teacher, images)
        assert distance(expected, target).max() < TOLERANCE
        # The check can tell: of another view the answers are others.
        other = torch.from_numpy(store.gather(rows, view=(epoch + 1) % 3)).float()
        assert (distance(expected, other) > TOLERANCE).float().mean() > 0.5


def test_the_logits_of_a_view_at_another_temperature(watch, store, teacher):
    """label_temperature reads the same view's logits."""
    for _, _, images, target in watch(store, epochs=2, label_temperature=0.7):
        # A logit in float16 is off by 2^-11 of itself, and is divided by 0.7.
        assert distance(answer(teacher, images, 0.7), target).max() < 5 * TOLERANCE


def by_sample(steps, epoch):
    """Images of one epoch, ordered by sample."""
    parts = [(rows, images) for number, rows, images, _ in steps if number == epoch]
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    return torch.cat([images for _, images in parts])[torch.from_numpy(order)]


def order_of(steps, epoch):
    return np.concatenate([rows for number, rows, *_ in steps if number == epoch]).tolist()


def test_views_come_round_and_the_order_does_not(watch, store):
    """Epoch 3 has epoch 0's images, in another order; epochs 0 to 2 have three."""
    steps = watch(store, epochs=4)
    assert torch.equal(by_sample(steps, 0), by_sample(steps, 3))
    assert order_of(steps, 0) != order_of(steps, 3)
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(by_sample(steps, one), by_sample(steps, two))


def test_another_run_meets_the_same_views(watch, store):
    """The store's seed draws them; the run's seed orders them and starts attacks."""
    one, two = watch(store, epochs=1), watch(store, epochs=1, seed=1)
    assert torch.equal(by_sample(one, 0), by_sample(two, 0))
    assert order_of(one, 0) != order_of(two, 0)


def test_one_fixed_view(watch, make_store, teacher):
    """A store of one augmented view: the same images in each epoch, with their labels."""
    views = VIEWS.model_copy(update={"count": 1})
    steps = watch(make_store(views=views), epochs=2)
    assert torch.equal(by_sample(steps, 0), by_sample(steps, 1))
    for _, _, images, target in steps:
        assert distance(answer(teacher, images), target).max() < TOLERANCE


def test_labels_of_plain_images_are_taken_for_any_crop(watch, make_store, train_stream, teacher):
    """As ever: each epoch crops anew by the run's seed, and the label is the whole image's."""
    steps = watch(make_store(views=ViewFacts()), epochs=4)
    assert not torch.equal(by_sample(steps, 0), by_sample(steps, 3))
    (batch,) = train_stream.batches(np.arange(240), 240)
    plain = answer(teacher, batch.images.float() / 255)
    for _, rows, _, target in steps:
        assert distance(plain[torch.from_numpy(rows)], target).max() < TOLERANCE


def weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


@pytest.mark.parametrize("step", [4, 13])
def test_an_interrupted_run_on_views_ends_with_the_same_bits(make_student, store, tmp_path, step):
    """Stopped in any epoch, the views that come after are those of an uninterrupted run."""

    class Stop(Watcher):
        def step(self, done, *_):
            if done == step:
                signal.raise_signal(signal.SIGINT)

    changes = SOFT | CROPPED | {"epochs": 3, "store": store, "validation_every": 3}
    whole = make_student(state=tmp_path / "whole", **changes)
    history = whole.run(Watcher())
    with pytest.raises(Interrupted):
        make_student(**changes).run(Stop())
    again = make_student(**changes)
    assert again.run(Watcher()) == history
    assert torch.equal(weights(again.average), weights(whole.average))


OTHERS = {
    "none": (
        {},
        {
            "what": "augmentation",
            "expected": "'crop:1,flip'",
            "found": re.compile(r"'none' by train\.crop_padding, crop_scale"),
        },
    ),
    "no flip": (
        {"crop_padding": 1},
        {
            "what": "augmentation",
            "expected": "'crop:1,flip'",
            "found": re.compile("'crop:1' by train"),
        },
    ),
    "more": (
        {"crop_padding": 2, "flip": True},
        {"what": "augmentation", "expected": "'crop:1,flip'", "found": re.compile("'crop:2,flip'")},
    ),
    "cutout": (
        CROPPED | {"cutout": 2},
        {
            "what": "augmentation",
            "expected": "'crop:1,flip'",
            "found": re.compile("'crop:1,flip,cutout:2'"),
        },
    ),
    "policy": (
        CROPPED | {"policy": "trivialaugment"},
        {
            "what": "augmentation",
            "expected": "'crop:1,flip'",
            "found": re.compile("'crop:1,flip,trivialaugment'"),
        },
    ),
    "another crop": (
        {"crop_scale": (0.5, 1)},
        {
            "what": "augmentation",
            "expected": "'crop:1,flip'",
            "found": re.compile(r"'resized-crop:0\.5-1'"),
        },
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_crops_than_the_labelled_ones_are_refused(make_student, store, case):
    """The line names both and says what to set; nobody trains on other crops than he believes."""
    changes, fields = OTHERS[case]
    changes = SOFT | {"crop_padding": 0, "flip": False} | changes
    remedy = "crop_scale: null, flip: true, policy: null, cutout: 0"
    with refused(JoinError, where="views.zarr", remedy=remedy, **fields):
        make_student(store=store, **changes)
