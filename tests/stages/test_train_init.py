"""`ltd-pipe train --init`: training that begins with weights which are there already."""

from pathlib import Path

import pytest
import torch

from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.facts import read_facts
from ltd_pipe.models.registry import build
from ltd_pipe.provenance import sha256_file

TEACHER = Path("data/teacher/model.safetensors")
WORDS = ("train", "--epochs", "1", "--attack-steps", "1", "--label-kind", "onehot", "--out", "new")
# So small a rate that the first weights can still be seen in the last ones.
STILL = ("--learning-rate", "1e-9", "--weight-decay", "0", "--ema-decay", "0")


def first_weights(path):
    return next(load_classifier(Path(path)).network.parameters())


def rewritten(path, **changes):
    """The teacher's checkpoint, with other facts and the same weights."""
    model = load_classifier(TEACHER)
    own = {
        "architecture": model.architecture,
        "class_names": model.class_names,
        "shape": model.shape,
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "columns": None,
    } | changes
    network = model.network
    if own["architecture"] != model.architecture:
        network = build(own["architecture"], len(own["class_names"]), own["shape"])
    save_classifier(Classifier(network, **own), Path(path))
    return str(path)


def test_training_begins_with_a_checkpoints_weights(ltd_pipe, project):
    """And says which; the student's temperature is its own."""
    words = (*WORDS, *STILL, "--init", str(TEACHER), "--temperature", "3")
    outcome = ltd_pipe(*words)
    assert outcome.code == 0, outcome.err
    torch.testing.assert_close(first_weights("new/model.safetensors"), first_weights(TEACHER))
    facts = read_facts(Path("new/model.safetensors"))
    assert facts["init_sha256"] == sha256_file(TEACHER)
    assert facts["temperature"] == 3
    plain = ltd_pipe(*WORDS, *STILL, "--force")
    assert plain.code == 0, plain.err
    assert "init_sha256" not in read_facts(Path("new/model.safetensors"))
    assert not torch.equal(first_weights("new/model.safetensors"), first_weights(TEACHER))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "small-cnn-w4"}, "train.init: architecture"),
        ({"mean": [0.5]}, "train.init: mean"),
        ({"std": [0.3]}, "train.init: std"),
        ({"columns": [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]}, "train.init: order of its outputs"),
        ({"class_names": [f"class {i}" for i in range(10)]}, "class 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_weights_of_another_model_are_refused(ltd_pipe, project, changes, said):
    """Those of the same form, too, whose outputs mean other classes."""
    outcome = ltd_pipe(*WORDS, "--init", rewritten("other.safetensors", **changes))
    assert outcome.code == 1
    assert said in outcome.err
    assert not Path("new/model.safetensors").exists()


def test_a_checkpoint_that_is_not_there_is_named_with_its_option(ltd_pipe, project):
    """Before anything is read."""
    outcome = ltd_pipe(*WORDS, "--init", "no.safetensors")
    assert outcome.code == 1
    assert "train.init: no.safetensors: no such file or folder." in outcome.err


@pytest.mark.parametrize("option", ["--init", "--teacher"])
def test_of_a_folder_the_file_inside_is_named(ltd_pipe, project, option):
    """As the command that made it wrote it there."""
    live = ("--label-kind", "live") if option == "--teacher" else ()
    outcome = ltd_pipe(*WORDS, *live, option, TEACHER.parent)
    assert outcome.code == 1
    assert outcome.err == f"ltd-pipe: {TEACHER.parent}: is a folder. Name {TEACHER}.\n"


def test_weights_of_another_project_are_told_how_to_become_ours(ltd_pipe, project):
    """`train --arch` is the student's, and could not say it."""
    Path("w.pt").write_bytes(b"\x80\x02.")
    outcome = ltd_pipe(*WORDS, "--init", "w.pt")
    assert outcome.code == 1
    assert "'ltd-pipe teacher --checkpoint w.pt --arch NAME'" in outcome.err


@pytest.mark.parametrize("known", [True, False])
def test_weights_that_may_know_the_validation_images_are_warned_of(ltd_pipe, project, known):
    """Those images choose the epoch, and sound the alarm."""
    first = str(TEACHER) if known else rewritten("unknown.safetensors")
    outcome = ltd_pipe(*WORDS, "--init", first)
    assert outcome.code == 0, outcome.err
    warned = f"warning: {first} may have been trained on the validation images" in outcome.err
    assert warned != known
