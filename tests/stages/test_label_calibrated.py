"""`label --temperature auto:calibrated`: on images that the teacher is known to have left out."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.errors import CheckpointError, DataError
from ltd_pipe.images.beton import open_beton
from ltd_pipe.images.sources import validation_mask
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.labelling import Labeller, held_out_rows
from ltd_pipe.labels.softmax import calibrated_temperature
from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.models.facts import read_facts

TEACHER = Path("data/teacher/model.safetensors")
DATA = Path("data/train.beton")
WORDS = ["label", "--teacher", TEACHER, "--temperature", "auto:calibrated", "--out", "new.zarr"]


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory, ltd_pipe):
    """The finished pipeline with a teacher of more epochs: its margins are those of a real one."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    shutil.copytree(finished, folder)
    with contextlib.chdir(folder):
        outcome = ltd_pipe("teacher", "--epochs", "10", "--force")
        assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of it, as the working directory."""
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")


def test_the_temperature_is_that_of_the_validation_split(ltd_pipe, project):
    """As the stored logits of those 43 images give it; the store, its card and `info` say how."""
    outcome = ltd_pipe(*WORDS, "--json")
    assert outcome.code == 0, outcome.err
    store, beton = SoftLabels.open(Path("new.zarr")), open_beton(DATA)
    rows = np.flatnonzero(validation_mask(beton.sample_hash, 0.2))
    expected = calibrated_temperature(store.gather_logits(rows)[None], beton.labels[rows])
    known = store.attributes
    # Batches of other images round a logit otherwise.
    assert known.temperature == pytest.approx(expected[0], rel=1e-3)
    assert known.calibration.interval == pytest.approx(expected[1].interval, rel=1e-2)
    assert known.calibration.samples == len(rows)
    assert known.version == "1.2"
    told = json.loads(outcome.out)
    assert told["temperature"] == known.temperature
    assert told["calibration"]["interval"] == list(known.calibration.interval)
    card = Path("new.zarr/README.md").read_text()
    assert f"{known.temperature:g} |\n| calibrated | {known.calibration} |\n" in card
    shown = " ".join(ltd_pipe("store", "info", "new.zarr").out.split())
    assert f"{known.temperature:g} calibrated {known.calibration}" in shown
    assert ltd_pipe("store", "verify", "new.zarr", "--data", DATA).code == 0


def test_what_is_made_of_the_store_says_what_still_holds(ltd_pipe, project):
    """The largest alone keep it; another temperature was not found so."""
    assert ltd_pipe(*WORDS).code == 0
    known = SoftLabels.open(Path("new.zarr")).attributes.calibration
    ltd_pipe("store", "retemper", "new.zarr", "--top-k", "3", "--out", "sparse.zarr")
    assert SoftLabels.open(Path("sparse.zarr")).attributes.calibration == known
    ltd_pipe("store", "retemper", "new.zarr", "--temperature", "0.7", "--out", "warm.zarr")
    assert SoftLabels.open(Path("warm.zarr")).attributes.calibration is None
    again = ("store", "retemper", "--temperature", "auto:calibrated", "--out", "again.zarr")
    assert "nothing would change" in ltd_pipe(*again, "new.zarr").err
    assert ltd_pipe(*again, "new.zarr", "--top-k", "3").code == 0
    assert (
        SoftLabels.open(Path("again.zarr")).identity
        == SoftLabels.open(Path("sparse.zarr")).identity
    )
    refused = ltd_pipe(*again, "warm.zarr", "--force")
    assert refused.code == 1
    assert "does not say which images its teachers left out" in refused.err
    assert "'ltd-pipe label --temperature auto:calibrated'" in refused.err


@pytest.mark.parametrize("more", [["--top-k", "4"], ["--no-logits"]], ids=["top-k", "dense"])
def test_an_interrupted_run_keeps_the_temperature(ltd_pipe, project, monkeypatch, more):
    """And its chunks: the store is that of an undisturbed run, to the byte."""
    words = [*WORDS, *more, "--batch-size", "16", "--chunk-rows", "32"]
    assert ltd_pipe(*words).code == 0
    alone = SoftLabels.open(Path("new.zarr"))
    calls, answers = [], Labeller.answers

    def stopping(self, batch):
        calls.append(len(batch.rows))
        # Three batches are of the validation split.
        if len(calls) == 3 + 7:
            raise KeyboardInterrupt
        return answers(self, batch)

    monkeypatch.setattr(Labeller, "answers", stopping)
    assert ltd_pipe(*words, "--force").code != 0
    calls.clear()
    calls.extend([0] * 100)
    outcome = ltd_pipe(*words, "--force")
    assert outcome.code == 0, outcome.err
    # Of fifteen batches, six are there.
    assert len(calls) - 100 == 3 + 9
    assert SoftLabels.open(Path("new.zarr")).identity == alone.identity
    assert alone.attributes.calibration is not None


def test_a_part_of_dense_labels_asks_about_nothing_else(ltd_pipe, project, monkeypatch):
    """The temperature is applied when the parts are there; of the largest it is needed at once."""
    calls, answers = [], Labeller.answers
    monkeypatch.setattr(
        Labeller, "answers", lambda self, batch: calls.append(1) or answers(self, batch)
    )
    words = [*WORDS, "--batch-size", "16", "--chunk-rows", "16"]
    assert ltd_pipe(*words, "--part", "1/15").code == 0
    assert len(calls) == 1
    outcome = ltd_pipe(*words, "--out", "sparse.zarr", "--top-k", "4", "--part", "1/15")
    assert outcome.code == 0, outcome.err
    assert len(calls) == 1 + 3 + 1
    assert ltd_pipe(*words).code == 0
    assert SoftLabels.open(Path("new.zarr")).attributes.calibration is not None


def test_views_are_what_is_measured(ltd_pipe, project):
    """The labels are of them."""
    views = ["--views", "3", "--augmentation", "crop:1"]
    assert ltd_pipe(*WORDS).code == 0
    plain = SoftLabels.open(Path("new.zarr")).attributes
    assert ltd_pipe(*WORDS, *views, "--force").code == 0
    found = SoftLabels.open(Path("new.zarr")).attributes
    assert found.calibration.samples == plain.calibration.samples
    assert found.temperature != plain.temperature


# --- What is refused, before the teacher is asked.


def resaved(path, **facts):
    """The teacher's checkpoint with other facts."""
    model = load_classifier(TEACHER)
    known = read_facts(TEACHER)
    made = {"kind", "params", "data", "validation_fraction", "clean_accuracy"}
    said = {name: known[name] for name in made} | facts
    save_classifier(model, path, **{name: value for name, value in said.items() if value != ""})
    return path


def test_the_checkpoint_says_what_it_left_out(project):
    """A teacher's and a student's."""
    for name in ("teacher", "student"):
        assert read_facts(Path(f"data/{name}/model.safetensors"))["validation_fraction"] == 0.2
    beton = open_beton(DATA)
    assert len(held_out_rows(beton, DATA, [resaved(Path("same.safetensors"))])) == 43


SEEN = {
    "a run of before": ({"validation_fraction": ""}, "do not say"),
    "a run without a split": ({"validation_fraction": 0.0}, re.compile("^0 of digits")),
    "another split": ({"validation_fraction": 0.3}, re.compile("^0.3 of digits")),
    "other images": (
        {"data": {"dataset": "digits", "fingerprint": "ab" * 32}},
        re.compile("^0.2 of digits abab"),
    ),
    "weights that began elsewhere": ({"params": {"init": "first.safetensors"}}, "first"),
}


@pytest.mark.parametrize(("facts", "found"), SEEN.values(), ids=SEEN.keys())
def test_a_teacher_that_may_have_seen_the_split_is_refused(project, facts, found):
    """Also as one of several."""
    path = resaved(Path("other.safetensors"), **facts)
    found = re.compile(found) if isinstance(found, str) else found
    with refused(
        CheckpointError,
        where="other.safetensors",
        what="may have trained on the validation images",
        expected=re.compile("held out: 0.2 of digits"),
        found=found,
        remedy="auto:P",
    ):
        held_out_rows(open_beton(DATA), DATA, [TEACHER, path])


def test_weights_from_elsewhere_are_refused(ltd_pipe, project):
    """A file of tensors, and one that `teacher --checkpoint` has taken over."""
    torch.save(load_classifier(TEACHER).network.state_dict(), "plain.pt")
    words = ["label", "--temperature", "auto:calibrated", "--out", "new.zarr", "--teacher"]
    outcome = ltd_pipe(*words, "plain.pt", "--arch", "small-cnn-w8", "--mean", "0", "--std", "1")
    assert outcome.code == 1
    assert "plain.pt: label.temperature auto:calibrated: it may have trained" in outcome.err
    assert ltd_pipe("teacher", "--checkpoint", TEACHER, "--out", "taken").code == 0
    outcome = ltd_pipe(*words, "taken/model.safetensors")
    assert outcome.code == 1
    assert "weights that do not say what they were trained on" in outcome.err
    assert not list(Path().glob("state/*"))


def test_data_without_a_split_or_classes_is_refused(ltd_pipe, project):
    """Of a beton without one, of a folder, and of images nobody has looked at."""
    beton = open_beton(DATA)
    none = replace(beton, manifest=beton.manifest.model_copy(update={"validation_fraction": 0.0}))
    with refused(DataError, where=DATA, what="needs a validation split", remedy="auto:P"):
        held_out_rows(none, DATA, [TEACHER])
    unknown = replace(beton, labels=np.full_like(beton.labels, -1))
    with refused(DataError, where=DATA, what="the classes", found="43 of 43 without"):
        held_out_rows(unknown, DATA, [TEACHER])
    manifest = Path("data/train.beton.json")
    known = json.loads(manifest.read_text()) | {"validation_fraction": 0.0}
    manifest.write_text(json.dumps(known))
    outcome = ltd_pipe(*WORDS)
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "data/train.beton: label.temperature auto:calibrated needs a validation" in outcome.err


def test_a_folder_has_no_split(ltd_pipe, pictures):
    """It is no beton, which says which images its teacher left out."""
    Path("t.pt").write_bytes(b"PK not looked at")
    foreign = ["--teacher", "t.pt", "--arch", "small-cnn-w8", "--data", "photos/train"]
    outcome = ltd_pipe("label", *foreign, *WORDS[3:])
    assert outcome.code == 1
    assert "photos/train: label.temperature auto:calibrated needs a validation" in outcome.err
