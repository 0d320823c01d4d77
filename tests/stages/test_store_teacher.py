"""`ltd-pipe store verify --teacher`, as people run it; and images straight from a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_answers import write_store

from ltd_pipe.images.beton import write_beton
from ltd_pipe.images.decode import RESIZE
from ltd_pipe.images.sources import open_source
from ltd_pipe.labels import SoftLabels
from ltd_pipe.models.registry import build
from ltd_pipe.params import PrepareParams
from ltd_pipe.provenance import code_commit

TEACHER = "data/teacher/model.safetensors"
VERIFY = ["store", "verify", "views.zarr", "--data", "data/train.beton"]
ASK = [*VERIFY, "--device", "cpu", "--teacher"]


@pytest.fixture
def views(ltd_pipe, project):
    """A store of two views in the project's folder."""
    words = ["label", "--teacher", TEACHER, "--temperature", "0.5", "--out", "views.zarr"]
    outcome = ltd_pipe(*words, "--views", "2", "--augmentation", "crop:1")
    assert outcome.code == 0, outcome.err
    return SoftLabels.open(Path("views.zarr"))


def test_the_teacher_is_asked_again(ltd_pipe, views):
    """How many answers, of how many, by which draw, and the largest difference."""
    outcome = ltd_pipe(*ASK, TEACHER, "--sample", "100", "--seed", "5")
    assert outcome.code == 0, outcome.err
    assert "ok      teacher: 100 of 480 answers asked for again (seed 5): largest" in outcome.out
    assert "not     teacher" not in outcome.out


def test_an_accuracy_that_the_teacher_does_not_say_is_refused(ltd_pipe, views):
    """Whoever trusts labels looks at it first; a manifest that fits proves nothing of it."""
    known = views.attributes
    teacher = known.teachers[0].model_copy(update={"clean_accuracy": 0.999})
    claimed = known.model_copy(update={"teachers": (teacher,)})
    logits = views.gather_logits(np.arange(240))
    facts = claimed, logits, views.labels, views.sample_hash
    write_store(Path("views.zarr"), *facts, keep_logits=True, replace=True)
    assert ltd_pipe(*VERIFY).code == 0
    outcome = ltd_pipe(*ASK, TEACHER)
    assert outcome.code == 1
    assert "another clean accuracy of its teacher" in outcome.err
    assert "found 99.90%" in outcome.err


def test_nobody_knows_the_draw_before(ltd_pipe, views):
    """Without --seed two runs ask about other samples, and each says which."""
    words = [*ASK, TEACHER, "--sample", "5", "--json"]
    details = [
        check["detail"]
        for _ in range(2)
        for check in json.loads(ltd_pipe(*words).out)
        if check["name"] == "teacher"
    ]
    assert len(set(details)) == 2


def test_a_moved_view_fails(ltd_pipe, views):
    """One label of 480 is another view's; the manifest fits, and the teacher tells."""
    logits = views.gather_logits(np.arange(240))
    logits[30, 1] = logits[30, 0]
    facts = views.attributes, logits, views.labels, views.sample_hash
    write_store(Path("views.zarr"), *facts, keep_logits=True, replace=True)
    assert ltd_pipe(*VERIFY).code == 0
    outcome = ltd_pipe(*ASK, TEACHER)
    assert outcome.code == 1
    assert "views.zarr: sample 30, view 1: logit of class" in outcome.err


def test_another_checkpoint_is_refused_at_once(ltd_pipe, views):
    """By its hash: nothing is computed."""
    outcome = ltd_pipe(*ASK, "data/student/model.safetensors")
    assert outcome.code == 1
    assert "views.zarr: the teacher that was given is not the store's" in outcome.err


def test_a_teacher_needs_images(ltd_pipe, views):
    """Misuse is exit code 2."""
    outcome = ltd_pipe("store", "verify", "views.zarr", "--teacher", TEACHER)
    assert outcome.code == 2
    assert "--teacher needs --data" in outcome.err


def foreign_store(ltd_pipe, *words):
    """Labels of another project's weights for the pictures, at 12 pixels, normalised."""
    torch.save(build("small-cnn-w8", 10, (3, 12, 12)).state_dict(), "net.pt")
    words = ("--arch", "small-cnn-w8", "--mean", ".4,.5,.6", "--std", ".2,.3,.25", *words)
    words = ("--data", "photos/train", "--image-size", "12", "--out", "net.zarr", *words)
    outcome = ltd_pipe("label", "--teacher", "net.pt", "--temperature", "1", *words)
    assert outcome.code == 0, outcome.err
    return SoftLabels.open(Path("net.zarr")).attributes


VERIFY_NET = ("store", "verify", "net.zarr", "--data", "photos/train", "--device", "cpu")


def test_a_store_says_how_its_teacher_was_asked(ltd_pipe, pictures):
    """So that asking again needs no option; with others the answers are others."""
    known = foreign_store(ltd_pipe)
    assert known.teachers[0].mean == (0.4, 0.5, 0.6)
    assert known.teachers[0].std == (0.2, 0.3, 0.25)
    asked = known.labelling
    assert (asked.image_shape, asked.resize, asked.precision) == ((3, 12, 12), RESIZE, "float32")
    assert (asked.commit, asked.modified) == code_commit()
    verify = (*VERIFY_NET, "--teacher", "net.pt")
    outcome = ltd_pipe(*verify)
    assert outcome.code == 0, outcome.err
    assert "ok      teacher: 60 of 60 answers" in outcome.out
    outcome = ltd_pipe(*verify, "--mean", "0,0,0", "--std", "1,1,1")
    assert outcome.code == 1
    assert "answers to those views of the same pixels" in outcome.err
    outcome = ltd_pipe(*verify, "--image-size", "16")
    assert outcome.code == 1
    assert "shape of the images: expected 3×12×12, as the teacher saw them, found" in outcome.err


def test_a_teacher_of_bfloat16_is_asked_in_bfloat16(ltd_pipe, pictures):
    """Without an option, too."""
    assert foreign_store(ltd_pipe, "--precision", "bfloat16").labelling.precision == "bfloat16"
    outcome = ltd_pipe(*VERIFY_NET, "--teacher", "net.pt")
    assert outcome.code == 0, outcome.err


def test_other_pixels_are_told_from_another_teacher(ltd_pipe, project):
    """The same sources in another encoding: the teacher's answers are others, and it says why."""
    params = PrepareParams(dataset="digits", channels=1, encoding="jpeg", jpeg_quality=20)
    source = open_source(params, "train").take(np.arange(240))
    write_beton(source, Path("jpeg.beton"), params, "train")
    words = ("store", "verify", "data/labels.zarr", "--device", "cpu", "--teacher", TEACHER)
    outcome = ltd_pipe(*words, "--data", "jpeg.beton")
    assert outcome.code == 1
    assert "These images have other pixels than those that were labelled" in outcome.err


def test_labels_of_another_size_are_not_trained_on(ltd_pipe, pictures):
    """Unless told, and of views never; nor does the store verify with them."""
    for size in ("8", "16"):
        words = ("--image-size", size, "--channels", "1", "--out", f"o{size}")
        assert ltd_pipe("prepare", *words).code == 0
    words = ("--data", "o8", "--out", "t", "--epochs", "1", "--crop-padding", "0")
    assert ltd_pipe("teacher", *words).code == 0
    label = ("label", "--teacher", "t/model.safetensors", "--data", "o8/train.beton")
    assert ltd_pipe(*label, "--out", "plain.zarr").code == 0
    assert ltd_pipe(*label, "--views", "2", "--augmentation", "flip", "--out", "v.zarr").code == 0
    train = ("train", "--data", "o16/train.beton", "--epochs", "1", "--crop-padding", "0", "--flip")
    seen = "shape of the images: expected 1×8×8, as the teacher saw them, found 1×16×16 in o16"
    for store, more in (("plain", []), ("v", []), ("v", ["--any-size"])):
        outcome = ltd_pipe(*train, "--labels", f"{store}.zarr", "--out", "s", *more)
        assert outcome.code == 1
        assert seen in outcome.err
        assert not Path("s").exists()
    outcome = ltd_pipe("store", "verify", "plain.zarr", "--data", "o16/train.beton")
    assert outcome.code == 1
    assert seen in outcome.err
    allowed = (*train, "--labels", "plain.zarr", "--out", "s", "--any-size")
    outcome = ltd_pipe(*allowed, "--allow-poor-labels")
    assert outcome.code == 0, outcome.err


def test_images_of_a_folder(ltd_pipe, pictures):
    """A folder verifies like its beton, by hash and with the teacher; another one does not."""
    assert ltd_pipe("prepare").code == 0
    assert ltd_pipe("teacher", "--epochs", "1").code == 0
    words = ["label", "--teacher", TEACHER, "--data", "photos/train", "--out", "folder.zarr"]
    assert ltd_pipe(*words, "--views", "2", "--augmentation", "flip").code == 0
    verify = ["store", "verify", "folder.zarr", "--data"]
    outcome = ltd_pipe(*verify, "photos/train")
    assert outcome.code == 0, outcome.err
    assert "ok      join: classes, fingerprint, and each of 60" in outcome.out
    outcome = ltd_pipe(*verify, "photos/train", "--device", "cpu", "--teacher", TEACHER)
    assert outcome.code == 0, outcome.err
    assert "120 of 120 answers" in outcome.out
    outcome = ltd_pipe(*verify, "photos/test")
    assert outcome.code == 1
    assert "folder.zarr: fingerprint of the images: expected" in outcome.err
