"""`ltd-pipe label --views`: what decides the store, and what cannot be asked for."""

import json
from pathlib import Path

import pytest

from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import ViewFacts

TEACHER = "data/teacher/model.safetensors"
WORDS = ["label", "--teacher", TEACHER, "--temperature", "2.0", "--json", "--out"]
THREE = ["--views", "3", "--augmentation", "crop:1"]


def test_the_store_says_its_views(ltd_pipe, project):
    """Count, seed and augmentation; the summary counts views, and people read of them."""
    outcome = ltd_pipe(*WORDS, "new.zarr", *THREE, "--seed", "5")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["num_views"] == 3
    store = SoftLabels.open(Path("new.zarr"))
    assert store.attributes.views == ViewFacts(count=3, seed=5, augmentation="crop:1")
    words = [word for word in WORDS if word != "--json"]
    outcome = ltd_pipe(*words, "new.zarr", *THREE, "--force")
    assert "new.zarr: 240 × 3 views soft labels over 10 classes" in outcome.out


def identity(ltd_pipe, *words):
    outcome = ltd_pipe(*WORDS, "new.zarr", "--force", *words)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["identity"]


def test_the_seed_draws_the_views(ltd_pipe, project):
    """The run's seed, unless the section has its own; another one makes other labels."""
    first = identity(ltd_pipe, *THREE)
    assert identity(ltd_pipe, *THREE, "-S", "seed=1") != first
    assert identity(ltd_pipe, *THREE, "-S", "seed=1", "--seed", "0") == first


def test_plain_labels_have_no_seed(ltd_pipe, project):
    """Nothing is drawn, so that the same store comes of any seed."""
    assert identity(ltd_pipe) == identity(ltd_pipe, "-S", "seed=1")


def test_the_first_view_alone_is_the_first_of_three(ltd_pipe, project):
    """One view, augmented: allowed, and the same as view 0 of more."""
    identity(ltd_pipe, *THREE)
    three = SoftLabels.open(Path("new.zarr"))
    words = ["--views", "1", "--augmentation", "crop:1"]
    assert ltd_pipe(*WORDS, "one.zarr", *words).code == 0
    one = SoftLabels.open(Path("one.zarr"))
    rows = range(240)
    assert (one.gather(rows) == three.gather(rows, view=0)).all()


def test_a_student_of_views_of_other_pixels_is_warned_of(ltd_pipe, project):
    """Of the same images encoded otherwise: their views are not those that were labelled."""
    jpeg = ("--encoding", "jpeg", "--jpeg-quality", "20")
    for data, words in (("same", ()), ("other", jpeg)):
        assert ltd_pipe("prepare", *words, "--out", data).code == 0
    identity(ltd_pipe, *THREE, "--data", "same/train.beton")
    words = ("--labels", "new.zarr", "--crop-padding", "1", "--epochs", "1", "--attack-steps", "1")
    for data in ("same", "other"):
        given = ("--data", f"{data}/train.beton", "--out", f"of-{data}", "--allow-poor-labels")
        outcome = ltd_pipe("train", *words, *given)
        assert outcome.code == 0, outcome.err
        assert ("labels are of views of other pixels" in outcome.err) == (data == "other")


def test_sparse_labels_of_views(ltd_pipe, project):
    """--top-k and auto: the temperature is solved on views, before they are stored."""
    words = ["--temperature", "auto:0.8", "--top-k", "4"]
    assert ltd_pipe(*WORDS, "sparse.zarr", *THREE, *words).code == 0
    store = SoftLabels.open(Path("sparse.zarr"))
    assert (store.num_views, store.top_k) == (3, 4)
    assert store.summary().mean_top_probability == pytest.approx(0.8, abs=0.01)


REFUSED = {
    "equal views": (["--views", "3"], "3 views without an augmentation would all be the same"),
    "no such thing": (["--augmentation", "rotate:9"], "found 'rotate:9'"),
    "another spelling": (["--augmentation", "flip,crop:1"], "found 'flip,crop:1'"),
    "no view": (["--views", "0"], "label.views"),
    "a large crop": (["--augmentation", "crop:8"], "label.augmentation: crop_padding: some crops"),
    "a large cutout": (["--augmentation", "cutout:9"], "cutout: is larger than the image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(ltd_pipe, project, case):
    """At once, in one line, and nothing is written."""
    words, message = REFUSED[case]
    outcome = ltd_pipe(*WORDS, "new.zarr", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert not Path("new.zarr").exists()
