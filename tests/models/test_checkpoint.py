"""Checkpoints give back the same classifier, byte for byte, and stay whole."""

import json
import subprocess
import sys

import pytest
import safetensors
import torch
from refusals import refused
from safetensors.torch import load_file

from ltd_pipe.errors import CheckpointError, ModelError, WriteError
from ltd_pipe.images import MAX_SIDE
from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.facts import read_facts
from ltd_pipe.models.registry import build

_IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_loaded_classifier_gives_the_same_bits(classifier, checkpoint):
    """Weights, normalisation, temperature, names and shape all come back."""
    loaded = load_classifier(checkpoint)
    assert torch.equal(loaded(_IMAGES), classifier(_IMAGES))
    for name in ("architecture", "class_names", "num_classes", "shape", "temperature"):
        assert getattr(loaded, name) == getattr(classifier, name)


def test_a_trained_models_running_statistics_come_back(classifier, tmp_path):
    """Batch normalisation's buffers are part of the checkpoint."""
    classifier.train()(_IMAGES)
    save_classifier(classifier, tmp_path / "a.safetensors")
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert not loaded.training
    assert torch.equal(loaded(_IMAGES), classifier.eval()(_IMAGES))


def test_equal_models_and_facts_give_equal_bytes(classifier, tmp_path):
    """Whatever the order of the facts, the memory format, and the time."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_classifier(classifier, one, seed=1, kind="student")
    save_classifier(classifier.to(memory_format=torch.channels_last), two, kind="student", seed=1)
    assert one.read_bytes() == two.read_bytes()


def test_facts_come_back_beside_the_models_constants(checkpoint):
    """read_facts is what reports are made from."""
    facts = read_facts(checkpoint)
    assert facts["kind"] == "teacher"
    assert facts["seed"] == 3
    assert facts["architecture"] == "small-cnn-w4"
    assert facts["class_names"] == ["ant", "bee", "cat"]
    assert facts["shape"] == [1, 8, 8]
    assert facts["temperature"] == 1.5
    assert facts["mean"] == [pytest.approx(0.3, abs=1e-7)]


def test_the_digest_of_the_weights_is_of_the_weights_alone(classifier, checkpoint, tmp_path):
    """Other facts leave it, other weights change it."""
    again, other = tmp_path / "again", tmp_path / "other"
    save_classifier(classifier, again, kind="student")
    with torch.no_grad():
        classifier.network.linear.bias += 1
    save_classifier(classifier, other, kind="teacher", seed=3)
    digests = [read_facts(path)["weights_sha256"] for path in (checkpoint, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_other_programs_read_it_with_the_safetensors_package_alone(checkpoint, classifier):
    """The tensors are the network's state dict under its own names."""
    state = load_file(checkpoint)
    assert state.keys() == classifier.network.state_dict().keys()
    with safetensors.safe_open(checkpoint, "pt") as file:
        assert json.loads(file.metadata()["ltd_pipe"])["format"] == "ltd-classifier"


def test_a_fact_must_not_contradict_the_model(classifier, tmp_path):
    """A temperature in the facts that the model does not have would be believed."""
    save_classifier(classifier, tmp_path / "a", temperature=1.5, shape=(1, 8, 8))
    with refused(
        ModelError, where="fact 'temperature'", what="contradicts", expected=1.5, found=1.0
    ):
        save_classifier(classifier, tmp_path / "a", temperature=1.0)


def test_weights_that_diverged_are_not_published(classifier, checkpoint):
    """The file that stood there stays, and the tensor is named."""
    before = checkpoint.read_bytes()
    with torch.no_grad():
        classifier.network.linear.bias[1] = float("nan")
    with refused(CheckpointError, where="linear.bias", what="infinite", found="1 of 3"):
        save_classifier(classifier, checkpoint)
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_place_that_cannot_be_written_is_one_line(classifier):
    """Not even by root: /proc holds no files of ours."""
    from pathlib import Path

    with refused(WriteError, where="/proc/nothing/model.safetensors", what="written"):
        save_classifier(classifier, Path("/proc/nothing/model.safetensors"))


def test_loading_leaves_the_callers_random_numbers_alone(checkpoint):
    """The network is built with weights that are thrown away."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_classifier(checkpoint)
    assert torch.equal(torch.rand(3), expected)


def test_shared_weights_can_be_saved(tmp_path):
    """Safetensors refuses tensors that share memory; two names for one weight are no error."""
    network = build("small-cnn-w4", 3, (1, 16, 16))
    network.features[4].weight = network.features[7].weight
    model = Classifier(
        network, architecture="small-cnn-w4", class_names=("a", "b", "c"), shape=(1, 16, 16)
    )
    save_classifier(model, tmp_path / "a")
    state = load_file(tmp_path / "a")
    assert torch.equal(state["features.4.weight"], state["features.7.weight"])


def test_facts_are_read_without_torch(checkpoint):
    """Reports, comparisons and cards need them, and torch takes seconds."""
    code = f"""
import sys
from pathlib import Path
from ltd_pipe.models.facts import read_facts
assert read_facts(Path({str(checkpoint)!r}))["kind"] == "teacher"
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("start", "period"), [(b"\x80", 0x100), (b"PK", 0x10000)], ids=["pickle", "zip"]
)
def test_a_description_of_any_length_can_be_read(classifier, tmp_path, start, period):
    """A file begins with its header's length, which must not pass for a pickle's first bytes."""
    path = tmp_path / "model.safetensors"
    save_classifier(classifier, path, note="")
    length = int.from_bytes(path.read_bytes()[:8], "little")
    # Headers are padded to eight bytes, and so are both of these lengths.
    padding = (int.from_bytes(start, "little") - length) % period
    save_classifier(classifier, path, note="x" * padding)
    assert path.read_bytes().startswith(start)
    assert read_facts(path)["note"] == "x" * padding
    assert torch.equal(load_classifier(path)(_IMAGES), classifier(_IMAGES))


def test_a_model_of_the_largest_images_can_be_loaded_again(tmp_path):
    """As large as `prepare` takes them: what is saved is never refused."""
    shape = (1, 4, MAX_SIDE)
    network = build("small-cnn-w4", 3, shape)
    model = Classifier(network, architecture="small-cnn-w4", class_names=tuple("abc"), shape=shape)
    save_classifier(model, tmp_path / "model.safetensors", kind="student")
    assert load_classifier(tmp_path / "model.safetensors").shape == shape
