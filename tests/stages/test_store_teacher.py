"""`ltd-pipe store verify --teacher`, as people run it; and images straight from a folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.labels import SoftLabels
from pipeline.labels.write import write_store

TEACHER = "data/teacher/model.safetensors"
VERIFY = ["store", "verify", "views.zarr", "--data", "data/train.beton", "--device", "cpu"]


@pytest.fixture
def views(ltd_pipe, project):
    """A store of two views in the project's folder."""
    words = ["label", "--teacher", TEACHER, "--temperature", "0.5", "--out", "views.zarr"]
    outcome = ltd_pipe(*words, "--views", "2", "--augmentation", "crop:1")
    assert outcome.code == 0, outcome.err
    return SoftLabels.open(Path("views.zarr"))


def test_the_teacher_is_asked_again(ltd_pipe, views):
    """How many answers, of how many, by which draw, and the largest difference."""
    outcome = ltd_pipe(*VERIFY, "--teacher", TEACHER, "--sample", "100", "--seed", "5")
    assert outcome.code == 0, outcome.err
    assert "ok      teacher: 100 of 480 answers asked for again (seed 5): largest" in outcome.out
    assert "not     teacher" not in outcome.out


def test_nobody_knows_the_draw_before(ltd_pipe, views):
    """Without --seed two runs ask about other samples, and each says which."""
    words = [*VERIFY, "--teacher", TEACHER, "--sample", "5", "--json"]
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
    outcome = ltd_pipe(*VERIFY, "--teacher", TEACHER)
    assert outcome.code == 1
    assert "views.zarr: sample 30, view 1: logit of class" in outcome.err


def test_another_checkpoint_is_refused_at_once(ltd_pipe, views):
    """By its hash: nothing is computed."""
    outcome = ltd_pipe(*VERIFY, "--teacher", "data/student/model.safetensors")
    assert outcome.code == 1
    assert "views.zarr: the teacher that was given is not the store's" in outcome.err


def test_a_teacher_needs_images(ltd_pipe, views):
    """Misuse is exit code 2."""
    outcome = ltd_pipe("store", "verify", "views.zarr", "--teacher", TEACHER)
    assert outcome.code == 2
    assert "--teacher needs --data" in outcome.err


def test_images_of_a_folder(ltd_pipe, pictures):
    """A folder verifies like its beton, by hash and with the teacher; another one does not."""
    assert ltd_pipe("prepare").code == 0
    assert ltd_pipe("teacher", "--epochs", "1").code == 0
    words = ["label", "--teacher", TEACHER, "--data", "photos/train", "--out", "folder.zarr"]
    assert ltd_pipe(*words, "--views", "2", "--augmentation", "flip").code == 0
    verify = ["store", "verify", "folder.zarr", "--device", "cpu", "--data"]
    outcome = ltd_pipe(*verify, "photos/train")
    assert outcome.code == 0, outcome.err
    assert "ok      join: classes, fingerprint, and each of 60" in outcome.out
    outcome = ltd_pipe(*verify, "photos/train", "--teacher", TEACHER)
    assert outcome.code == 0, outcome.err
    assert "120 of 120 answers" in outcome.out
    outcome = ltd_pipe(*verify, "photos/test")
    assert outcome.code == 1
    assert "folder.zarr: fingerprint of the images: expected" in outcome.err
