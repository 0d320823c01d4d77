"""The teacher is asked again: its own answers pass, and no others do."""

import re

import numpy as np
import pytest
import torch
from made_answers import give_store, write_store
from refusals import refused

from ltd_pipe.errors import JoinError, StoreError
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.derive import average
from ltd_pipe.labels.format import DatasetFacts, StoreFacts, TeacherFacts, ViewFacts
from ltd_pipe.labels.labelling import Labeller
from ltd_pipe.labels.on_device import Replay
from ltd_pipe.labels.verify import TOLERANCE, order_of_teachers, recompute, verify_store
from ltd_pipe.labels.writer import StoreWriter
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build

CPU = torch.device("cpu")
ALL = 10_000
PLAIN = ViewFacts()
THREE = ViewFacts(count=3, seed=7, augmentation="crop:1,flip")
NAMES = ("a" * 64, "b" * 64)


@pytest.fixture(scope="module")
def teachers(train_beton):
    """Two networks of different random weights, whose answers are far from uniform."""
    manifest = train_beton.manifest
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build("small-cnn-w8", 10, manifest.shape)
        model = Classifier(
            network,
            architecture="small-cnn-w8",
            class_names=manifest.class_names,
            shape=manifest.shape,
        ).eval()
        with torch.no_grad():
            network.linear.weight.mul_(30)
        made.append(model)
    return made


@pytest.fixture(scope="module")
def make_store(train_beton, train_stream, teachers, tmp_path_factory):
    """A function that labels the digits in batches of 16 and verifies the store."""

    def make(views=THREE, count=1, precision="float32", first=0, **options):
        folder, manifest = tmp_path_factory.mktemp("store"), train_beton.manifest
        asked = slice(first, first + count)
        facts = StoreFacts(
            num_samples=240,
            num_classes=10,
            class_names=manifest.class_names,
            dataset=DatasetFacts(name="digits", split="train", fingerprint=manifest.fingerprint),
            teachers=tuple(TeacherFacts(sha256=n, architecture="x") for n in NAMES[asked]),
            views=views,
        )
        options = {"rows": 64, "keep_logits": count == 1} | options
        writer = StoreWriter(folder / "draft", facts, **options)
        replay = Replay.of(views, "views")
        Labeller(teachers[asked], train_stream, 16, precision, replay).label(writer)
        writer.publish(folder / "s.zarr", 2.0)
        verify_store(folder / "s.zarr", train_beton)
        return SoftLabels.open(folder / "s.zarr")

    return make


@pytest.fixture(scope="module")
def store(make_store):
    """Three views, with logits."""
    return make_store()


def ask(store, teachers, stream, **changes):
    asked = {"sample": ALL, "seed": 0, "data": "train.beton"} | changes
    return recompute(store, teachers, stream, **asked)


SPARSE = {"top_k": 4, "temperature": 2.0, "keep_logits": False}
GOOD = {
    "views": {},
    "plain": {"views": PLAIN},
    "one fixed view": {"views": THREE.model_copy(update={"count": 1})},
    "no logits": {"keep_logits": False},
    "two teachers": {"count": 2},
    "top-k": SPARSE,
    "top-k of all": SPARSE | {"top_k": 10},
}


@pytest.mark.parametrize("kind", GOOD)
def test_the_teachers_own_answers_pass(make_store, teachers, train_stream, kind):
    """All of them, in other batches than they were made in; the differences are rounding."""
    store = make_store(**GOOD[kind])
    found = ask(store, teachers[: len(store.attributes.teachers)], train_stream)
    assert found.answers == 240 * store.num_views
    assert found.worst_probability < 1e-3
    assert (found.worst_logit is None) == (not store.has_logits)
    assert found.worst_logit is None or found.worst_logit < 0.02


@pytest.mark.parametrize("kind", GOOD)
def test_another_teachers_answers_do_not(make_store, teachers, train_stream, kind):
    """The first wrong answer is named with its sample, view and class."""
    store = make_store(**GOOD[kind])
    others = [*teachers[::-1], teachers[0]][: len(store.attributes.teachers)]
    if kind == "two teachers":
        others = [teachers[0], teachers[0]]
    answer = re.compile(r"^sample \d+, view 0: (logit|probability) of class '\d'$")
    with refused(StoreError, where="s.zarr", what=answer):
        ask(store, others, train_stream)


def rewritten(store, folder, change=None, **facts):
    """The same store with other rows or facts, and a manifest that knows nothing of it."""
    rows = np.arange(240)
    logits = store.gather_logits(rows)
    if change is not None:
        change(logits)
    attributes = store.attributes.model_copy(update=facts)
    target = folder / "s.zarr"
    write_store(target, attributes, logits, store.labels, store.sample_hash, keep_logits=True)
    verify_store(target)
    return SoftLabels.open(target)


def swap(logits):
    logits[77, 2] = logits[77, 0]


def test_a_row_of_another_view_is_found(store, teachers, train_stream, tmp_path):
    """One label of 720 replaced by the same image's in another view, and everything re-signed."""
    other = rewritten(store, tmp_path, swap)
    with refused(
        StoreError,
        where=tmp_path / "s.zarr",
        what="view 2",
        expected=re.compile(r"\S+ which the teacher answers"),
        found=re.compile(r"\S+ \S+ times as far as"),
    ):
        ask(other, teachers[:1], train_stream)


def test_a_sample_finds_what_it_covers(store, teachers, train_stream, tmp_path):
    """Of one bad answer among 720, a draw of half finds it in about half of the seeds."""
    other, found = rewritten(store, tmp_path, swap), 0
    for seed in range(8):
        try:
            assert ask(other, teachers[:1], train_stream, sample=360, seed=seed).answers == 360
        except StoreError:
            found += 1
    assert 1 <= found <= 7


def without_logits(store, folder):
    """The same, published as soft labels alone."""
    target = folder / "s.zarr"
    rows = store.gather(np.arange(240))
    give_store(target, store.attributes, store.labels, store.sample_hash, soft_labels=rows)
    return SoftLabels.open(target)


CLAIMS = {
    "seed": {"seed": 8},
    "augmentation": {"augmentation": "crop:1"},
    "more padding": {"augmentation": "crop:2,flip"},
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("logits", [True, False], ids=["logits", "soft labels"])
def test_views_of_another_seed_or_augmentation_are_found(
    store, teachers, train_stream, tmp_path, claim, logits
):
    """A store that misnames how its views were made says other images than were labelled."""
    views = store.attributes.views.model_copy(update=CLAIMS[claim])
    other = rewritten(store, tmp_path, views=views)
    other = other if logits else without_logits(other, tmp_path / "plain")
    with refused(StoreError, where="s.zarr", what="view 0"):
        ask(other, teachers[:1], train_stream)


def test_a_misnamed_temperature_is_found(store, teachers, train_stream, tmp_path):
    """Soft labels alone are compared at the temperature that the store says."""
    attributes = store.attributes.model_copy(update={"temperature": 2.1})
    rows = store.gather(np.arange(240))
    target = tmp_path / "s.zarr"
    give_store(target, attributes, store.labels, store.sample_hash, soft_labels=rows)
    with refused(StoreError, where=target, what="view 0: probability"):
        ask(SoftLabels.open(target), teachers[:1], train_stream)


def test_sparse_rows_that_leave_out_a_large_class_are_found(
    make_store, teachers, train_stream, tmp_path
):
    """The listed probabilities are right, but the largest is not among them."""
    store = make_store(**SPARSE)
    indices, probs = store.gather_topk(np.arange(240))
    indices, probs = indices[..., 1:], probs[..., 1:]
    attributes = store.attributes.model_copy(
        update={"top_k": store.attributes.top_k.model_copy(update={"k": 3})}
    )
    rows = {"topk_indices": indices, "topk_probs": probs}
    give_store(tmp_path / "s.zarr", attributes, store.labels, store.sample_hash, **rows)
    with refused(StoreError, where=tmp_path / "s.zarr", what="sample 0, view 0: probability"):
        ask(SoftLabels.open(tmp_path / "s.zarr"), teachers[:1], train_stream)


UNEQUAL = {
    "weights": ({}, {"weights": (7, 3)}),
    "cut labels": (SPARSE, {}),
}


@pytest.mark.parametrize(("kind", "options"), UNEQUAL.values(), ids=UNEQUAL.keys())
def test_an_average_of_unequal_shares_is_not_called_wrong(
    make_store, teachers, train_stream, tmp_path, kind, options
):
    """Nobody can tell from the teachers' answers; of equal shares they can."""
    two = [make_store(PLAIN, first=number, **kind) for number in (0, 1)]
    average(two, **options).write(tmp_path / "c.zarr")
    with refused(StoreError, where=tmp_path / "c.zarr", what="is an average", remedy="one by one"):
        ask(SoftLabels.open(tmp_path / "c.zarr"), teachers[:2], train_stream)


def test_an_average_of_equal_shares_is_the_teachers(make_store, teachers, train_stream, tmp_path):
    """Their mean, as of labels that were made by both at once."""
    average([make_store(PLAIN, first=number) for number in (0, 1)]).write(tmp_path / "c.zarr")
    ask(SoftLabels.open(tmp_path / "c.zarr"), teachers[:2], train_stream)


def test_bfloat16_needs_its_tolerance(make_store, teachers, train_stream):
    """Labels made in bfloat16 are further off than rounding in float32 explains, and say so."""
    store = make_store(precision="bfloat16")
    with refused(
        StoreError,
        where="s.zarr",
        what="logit",
        found=re.compile("times as far as rounding explains"),
    ):
        ask(store, teachers[:1], train_stream)
    ask(store, teachers[:1], train_stream, tolerance=0.05)
    assert TOLERANCE < 0.05


def test_other_images_are_not_asked_about(store, teachers, train_stream, tmp_path):
    """Each image's hash is compared before its answer."""
    hashes = store.sample_hash.copy()
    hashes[9] += np.uint64(1)
    found = fingerprint(store.attributes.class_names, store.labels, hashes)
    dataset = store.attributes.dataset.model_copy(update={"fingerprint": found})
    attributes = store.attributes.model_copy(update={"dataset": dataset})
    target = tmp_path / "s.zarr"
    write_store(target, attributes, store.gather_logits(np.arange(240)), store.labels, hashes)
    with refused(
        JoinError,
        where=target,
        what="sample 9",
        expected=re.compile(r"sample_hash \w+"),
        found=re.compile(r"\w+ in train\.beton"),
    ):
        ask(SoftLabels.open(target), teachers[:1], train_stream)


def test_teachers_are_put_in_the_stores_order(make_store):
    """However they are given; each is known by its hash."""
    store = make_store(count=2)
    assert order_of_teachers(store, NAMES) == [0, 1]
    assert order_of_teachers(store, NAMES[::-1]) == [1, 0]


WRONG = {
    "another": (
        [*NAMES, "c" * 64],
        {"what": "teacher", "found": re.compile("^c{8}")},
    ),
    "one missing": (
        NAMES[1:],
        {
            "what": "teachers",
            "expected": re.compile(r"\w+… , \w+…"),
            "found": re.compile(r"no \w+"),
        },
    ),
    "none": ([], {"what": "teachers"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_teachers_are_refused(make_store, case):
    """By hash, before anything is computed."""
    given, fields = WRONG[case]
    with refused(StoreError, where="s.zarr", **fields):
        order_of_teachers(make_store(count=2), given)
