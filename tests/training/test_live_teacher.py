"""A teacher in the run is frozen, of the data's classes, and asked at a temperature of its own."""

import pytest
import torch

from ltd_pipe.errors import CheckpointError, MissingError, ModelError
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.objectives import TrainBatch
from ltd_pipe.provenance import sha256_file
from ltd_pipe.training.targets import LiveTargets, LiveTeacher

DIGITS = tuple("0123456789")


def write(path, *, names=DIGITS, shape=(1, 8, 8), temperature=1.0):
    network = build("small-cnn-w4", len(names), shape)
    facts = {"architecture": "small-cnn-w4", "class_names": names, "shape": shape}
    save_classifier(Classifier(network, **facts, temperature=temperature), path)
    return path


@pytest.fixture
def opened(tmp_path, train_beton):
    """A teacher that was trained at temperature 2 and is asked at 4."""
    path = write(tmp_path / "teacher.safetensors", temperature=2.0)
    return LiveTeacher.open(path, train_beton.manifest, 4.0)


def test_its_own_temperature_is_not_applied(opened):
    """The raw logits are divided by the one temperature that was asked for."""
    images = torch.rand(3, 1, 8, 8)
    expected = opened.model.network(images) / 4.0
    torch.testing.assert_close(opened(images), expected)


def test_it_is_frozen_and_in_evaluation_mode(opened):
    """No weight takes a gradient; the images do, as AdaAD's attack needs."""
    images = torch.rand(3, 1, 8, 8, requires_grad=True)
    opened(images).logsumexp(1).sum().backward()
    assert images.grad.abs().max() > 0
    assert all(weight.grad is None for weight in opened.model.parameters())
    assert not any(module.training for module in opened.model.modules())


def test_it_says_which_file_it_is(opened, tmp_path):
    """By hash, so that another teacher never continues a run."""
    digest = sha256_file(tmp_path / "teacher.safetensors")
    expected = {"sha256": digest, "architecture": "small-cnn-w4", "temperature": 4.0}
    assert opened.facts == expected


REFUSED = {
    "fewer": ({"names": DIGITS[:9]}, "number of classes: expected 9 by the model, found 10"),
    "order": ({"names": DIGITS[::-1]}, "class 0: expected '9' by the model, found '0'"),
    "shape": ({"shape": (1, 16, 16)}, r"image shape: expected \(1, 16, 16\) by the model"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_teacher_of_other_images_is_refused(tmp_path, train_beton, change, message):
    """Other classes, the same in another order, another size: before the first step."""
    path = write(tmp_path / "other.safetensors", **change)
    with pytest.raises(ModelError, match=f"the images for teacher .*other.*{message}"):
        LiveTeacher.open(path, train_beton.manifest)


def test_a_missing_or_damaged_teacher_is_refused(tmp_path, train_beton):
    """As any checkpoint is."""
    path = tmp_path / "teacher.safetensors"
    with pytest.raises(MissingError, match="no such"):
        LiveTeacher.open(path, train_beton.manifest)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError):
        LiveTeacher.open(path, train_beton.manifest)


class Fixed:
    """Gives the logarithms of (0.2, 0.7, 0.1)."""

    def __call__(self, images):
        return torch.tensor([[0.2, 0.7, 0.1]]).log().expand(len(images), 3)


MIXES = {
    "plain": ((1.0, False), [0.2, 0.7, 0.1]),
    "mixed": ((0.5, False), [0.6, 0.35, 0.05]),
    # λ - (0.7 - 0.2) = 0.5
    "rectified": ((1.0, True), [0.6, 0.35, 0.05]),
}


@pytest.mark.parametrize(("how", "expected"), MIXES.values(), ids=MIXES)
def test_its_answers_become_the_labels(how, expected):
    """Whole, mixed with the truth, or less so where they contradict it; nothing else changes."""
    truth = torch.tensor([[1.0, 0.0, 0.0]])
    given = TrainBatch(torch.zeros(1, 1, 2, 2), torch.full((1, 3), 1 / 3), truth)
    found = LiveTargets(Fixed(), *how)(given, None)
    torch.testing.assert_close(found.target, torch.tensor([expected]))
    assert found.truth is truth
    assert found.info is given.info
