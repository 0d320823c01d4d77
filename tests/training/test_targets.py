"""Targets are distributions: mixed by formula, or given by a teacher in the run."""

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import CheckpointError, MissingError, ModelError
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.objectives import StepInfo, TrainBatch
from ltd_pipe.provenance import sha256_file
from ltd_pipe.training import targets
from ltd_pipe.training.targets import LiveTargets, LiveTeacher, SelfDistillation, annealed

LABELS = torch.tensor([0, 2])
# The first row agrees with its label, the second contradicts it: max q = 0.7, q_y = 0.1.
SOFT = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]])


def test_onehot():
    """All mass on the true class."""
    assert targets.onehot(LABELS, 3).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_smoothed_by_hand():
    """With s = 0.3 and K = 3 the true class has 0.7 + 0.1 and the others 0.1."""
    torch.testing.assert_close(
        targets.smoothed(LABELS, 3, 0.3), torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    )


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(0.0, [0.0, 0.0, 1.0]), (0.5, [0.35, 0.1, 0.55]), (1.0, [0.7, 0.2, 0.1])],
)
def test_mixed_by_hand(weight, expected):
    """Weight · soft + (1 - weight) · one-hot."""
    mix = targets.mixed(SOFT, LABELS, weight, rectify=False)
    torch.testing.assert_close(mix[1], torch.tensor(expected))


def test_rectified_weight_falls_where_the_teacher_contradicts():
    """λ - (max q - q_y): 0.9 - 0 where it agrees, 0.9 - 0.6 where not."""
    mix = targets.mixed(SOFT, LABELS, 0.9, rectify=True)
    torch.testing.assert_close(mix[:, 1], torch.tensor([0.09, 0.3 * 0.2]))


def test_rectified_weight_is_clipped():
    """It never goes below 0."""
    mix = targets.mixed(SOFT, LABELS, 0.2, rectify=True)
    assert mix[1].tolist() == [0.0, 0.0, 1.0]


def test_rectified_mix_by_hand():
    """The contradicting row keeps 0.3 of the teacher."""
    mix = targets.mixed(SOFT, LABELS, 0.9, rectify=True)
    torch.testing.assert_close(mix[1], torch.tensor([0.21, 0.06, 0.73]))


@pytest.mark.parametrize("rectify", [True, False])
def test_every_mix_is_a_distribution(rectify):
    """Rows are non-negative and sum to one, at every weight."""
    soft = torch.rand(50, 7).softmax(dim=1)
    labels = torch.arange(50) % 7
    for weight in (0.0, 0.3, 1.0):
        mix = targets.mixed(soft, labels, weight, rectify=rectify)
        assert (mix >= 0).all()
        torch.testing.assert_close(mix.sum(dim=1), torch.ones(50))


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
    "fewer": (
        {"names": DIGITS[:9]},
        {"what": "classes", "expected": "9 by the model", "found": 10},
    ),
    "order": (
        {"names": DIGITS[::-1]},
        {"what": "class", "expected": "'9' by the model", "found": "'0'"},
    ),
    "shape": (
        {"shape": (1, 16, 16)},
        {"what": "image", "expected": "(1, 16, 16) by the model", "found": (1, 8, 8)},
    ),
}


@pytest.mark.parametrize(("change", "fields"), REFUSED.values(), ids=REFUSED)
def test_a_teacher_of_other_images_is_refused(tmp_path, train_beton, change, fields):
    """Other classes, the same in another order, another size: before the first step."""
    path = write(tmp_path / "other.safetensors", **change)
    with refused(ModelError, where="other.safetensors", **fields):
        LiveTeacher.open(path, train_beton.manifest)


def test_a_missing_or_damaged_teacher_is_refused(tmp_path, train_beton):
    """As any checkpoint is."""
    path = tmp_path / "teacher.safetensors"
    with refused(MissingError, where=path, what="file"):
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


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [1.5, 1.0, 0.0], [-2.0, 1.0, 3.0]])
TRUTH = torch.eye(3)[[0, 1, 0]]
# `ADR(3, 10, 4, 2.0, 2.5, 0.7, 0.95)` of yuyuwu5/ADR at 515da0e (src/adr.py), run on these
# logits and labels at three of its forty steps: temperature, weight, and rectified labels.
PUBLISHED = {
    0: (
        2.5,
        0.7,
        [
            [0.6998805, 0.1796779, 0.1204417],
            [0.2633261, 0.5921575, 0.1445164],
            [0.8588277, 0.0437670, 0.0974053],
        ],
    ),
    13: (
        2.3806246411789873,
        0.7596876794105063,
        [
            [0.6832104, 0.1911816, 0.1256080],
            [0.2897171, 0.5559953, 0.1542876],
            [0.8203658, 0.0541616, 0.1254726],
        ],
    ),
    39: (
        2.000770666566718,
        0.949614666716641,
        [
            [0.6471468, 0.2196208, 0.1332324],
            [0.3781671, 0.4431478, 0.1786851],
            [0.7012386, 0.0803719, 0.2183895],
        ],
    ),
}


class Itself:
    """A model whose raw logits are its input."""

    def raw_logits(self, images):
        return images


ENDS = {"temperatures": (2.5, 2.0), "weights": (0.7, 0.95)}


@pytest.mark.parametrize("step", PUBLISHED)
def test_targets_are_the_published_ones(step):
    """The second image's truth is its second class, the third one's its least likely."""
    temperature, weight, expected = PUBLISHED[step]
    info = StepInfo(step=step, steps=40)
    assert annealed(ENDS["temperatures"], info) == pytest.approx(temperature, abs=1e-12)
    assert annealed(ENDS["weights"], info) == pytest.approx(weight, abs=1e-12)
    batch = TrainBatch(LOGITS, TRUTH, TRUTH, info)
    found = SelfDistillation(**ENDS)(batch, Itself())
    torch.testing.assert_close(found.target, torch.tensor(expected), atol=1e-6, rtol=0)
    assert torch.equal(found.truth, TRUTH)


def test_the_students_own_temperature_is_not_applied_to_its_answers():
    """It divides the logits in training and attack; labels are softened by `adr_temperatures`."""
    network = build("small-cnn-w4", 10, (1, 8, 8))
    facts = {"architecture": "small-cnn-w4", "class_names": DIGITS, "shape": (1, 8, 8)}
    truth = torch.eye(10)[[3, 7]]
    batch = TrainBatch(torch.rand(2, 1, 8, 8), truth, truth)
    found = [
        SelfDistillation(**ENDS)(batch, Classifier(network, **facts, temperature=t).eval()).target
        for t in (1.0, 0.1)
    ]
    torch.testing.assert_close(*found)


def test_an_answer_far_from_the_truth_is_not_taken_at_all():
    """λ - (max p - p_y) below zero: the label is one-hot."""
    adr = SelfDistillation((1.0, 1.0), (0.5, 0.5))
    batch = TrainBatch(torch.tensor([[-9.0, 9.0]]), torch.eye(2)[:1], torch.eye(2)[:1])
    found = adr(batch, Itself())
    torch.testing.assert_close(found.target, torch.eye(2)[:1])


def test_targets_carry_no_gradient():
    """The average is not trained by its own answers."""
    logits = LOGITS.clone().requires_grad_()
    found = SelfDistillation(**ENDS)(TrainBatch(logits, TRUTH, TRUTH), Itself())
    assert not found.target.requires_grad
