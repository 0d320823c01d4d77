"""AutoAttack as its package computes it, in both norms and versions, resumed to the bit."""

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from ltd_pipe.attacks import Ball
from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation import attacks
from ltd_pipe.evaluation.audit import AuditSettings, audit
from ltd_pipe.evaluation.bench import Journal, TestImages
from ltd_pipe.evaluation.robustness import evaluate
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.params import EvaluateParams

RADII = {"linf": 0.05, "l2": 0.16}


def hurried(adversary):
    """A tenth of the steps: the same code, for tests that do not ask how well it attacks."""
    for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        attack.n_iter = 10
    adversary.apgd.eot_iter = min(adversary.apgd.eot_iter, 2)
    adversary.square.n_queries = 20
    return adversary


@pytest.fixture
def in_a_hurry(monkeypatch):
    """Every AutoAttack of the test is hurried."""
    build = attacks.build
    monkeypatch.setattr(attacks, "build", lambda *words: hurried(build(*words)))


def run(bench, right, norm="linf", version="standard"):
    return attacks.run_autoattack(bench, Ball(norm, RADII[norm]), right, version)


def packages_own(model, images, norm, version):
    """The package run in one go, with the four targets that five classes allow."""
    names = {"linf": "Linf", "l2": "L2"}
    adversary = AutoAttack(model, norm=names[norm], eps=RADII[norm], seed=3, version=version)
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 4
    pixels, labels, _ = images.take(torch.arange(len(images)))
    _, said = hurried(adversary).run_standard_evaluation(pixels, labels, batch_size=10)
    return said == labels


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize(
    ("norm", "version"), [("linf", "standard"), ("l2", "standard"), ("linf", "rand")]
)
def test_it_is_the_packages_own(bench, model, images, right, norm, version):
    """Image by image, the verdict is that of `run_standard_evaluation`."""
    found = run(bench(), right, norm, version)
    assert torch.equal(found.correct, packages_own(model, images, norm, version))
    assert 0 < found.correct.sum() < right.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_model_it_is_exact(bench, right, exactly_robust, norm):
    """APGD-T, at full length, breaks what can be broken, and nothing else."""
    adversary = attacks.build(bench(), Ball(norm, RADII[norm]))
    found = attacks.run_one(bench(), adversary, "apgd-t", right, [])
    assert torch.equal(found, exactly_robust(norm, RADII[norm]) & right)


def test_a_version_is_what_its_authors_set(bench):
    """The iterations, queries and targets of the standard version, and rand's 20 answers."""
    standard, rand = (attacks.build(bench(), Ball("linf", 0.1), v) for v in ("standard", "rand"))
    assert standard.apgd.n_iter == standard.apgd_targeted.n_iter == standard.fab.n_iter == 100
    assert (standard.square.n_queries, standard.apgd_targeted.n_target_classes) == (5000, 4)
    assert (standard.apgd.eot_iter, rand.apgd.eot_iter) == (1, 20)


def interrupted(bench, folder, right, batches):
    """Stop after some batches."""
    done = []

    def stop(*told):
        done.append(told)
        if len(done) == batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bench(folder, stop), right)


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("batches", [1, 4, 6])
def test_interrupted_it_ends_with_the_same_result(bench, right, tmp_path, batches):
    """Stopped after some batches and continued, all that it says is equal."""
    whole = run(bench(), right)
    interrupted(bench, tmp_path, right, batches)
    found = run(bench(tmp_path), right)
    assert torch.equal(found.correct, whole.correct)
    assert (found.accuracy, found.flags) == (whole.accuracy, whole.flags)
    told = []
    run(bench(tmp_path, lambda *words: told.append(words)), right)
    assert told == []


def test_square_finding_more_is_flagged(bench, right, tmp_path):
    """When only the black-box attack succeeds, AutoAttack's warning reaches the result."""
    journal, everyone = Journal(tmp_path), int(right.sum())
    for attack, stands in (("apgd-ce", 1), ("apgd-t", 1), ("fab-t", 1), ("square", 0)):
        for size in (10, 10, everyone - 20):
            journal.append(f"autoattack-{attack}", {"left": [stands] * size, "flags": []})
    found = run(bench(tmp_path), right)
    assert any("Square Attack has decreased" in flag for flag in found.flags)
    assert list(found.accuracy) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.accuracy["square"] == 0


class Doubtful(nn.Module):
    """The model of sums with noise of its own."""

    def forward(self, images):
        sums = 4.0 * images.sum(dim=(1, 3))
        return sums + 0.1 * torch.randn_like(sums)


@pytest.mark.usefixtures("in_a_hurry")
def test_a_random_model_is_measured_to_the_bit(bench, right):
    """Its draws belong to the batch: what was drawn before changes none of them."""
    names = tuple("abcde")
    noisy = Classifier(Doubtful(), architecture="x", class_names=names, shape=(1, 5, 5)).eval()
    whole = run(bench(network=noisy), right, version="rand")
    torch.manual_seed(99)
    again = run(bench(network=noisy), right, version="rand")
    assert torch.equal(whole.correct, again.correct)
    assert list(whole.accuracy) == ["apgd-ce", "apgd-dlr"]


@pytest.mark.parametrize(
    ("version", "classes", "kept"),
    [
        ("standard", 2, ["apgd-ce", "fab-t", "square"]),
        ("standard", 4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        ("rand", 2, ["apgd-ce"]),
        ("rand", 3, ["apgd-ce", "apgd-dlr"]),
    ],
)
def test_few_classes_leave_attacks_out_and_say_so(version, classes, kept):
    """The DLR losses divide by the third or the fourth logit."""
    found, flags = attacks.attacks_of(version, classes)
    assert found == kept
    assert len(flags) == {"standard": 4, "rand": 2}[version] - len(kept)


@pytest.mark.parametrize(
    ("shape", "norm", "version"),
    [((1, 5, 5), "l2", "standard"), ((1, 4, 4), "linf", "standard"), ((1, 4, 4), "l2", "rand")],
    ids=["five pixels", "another norm", "without Square"],
)
def test_images_that_square_can_take_are_accepted(shape, norm, version):
    """Its tiles are of a fifth of the side, in L2 alone."""
    attacks.require_possible(shape, Ball(norm, 0.1), version)


def small_model_and_images():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    model = Classifier(network, architecture="s", class_names=tuple("abcd"), shape=(1, 4, 4))
    pixels = torch.arange(64, dtype=torch.uint8).reshape(4, 1, 4, 4)
    rows = torch.arange(4)
    images = TestImages(pixels, rows, rows, rows.numpy().astype("uint64"), torch.device("cpu"))
    return model.eval(), images


def evaluated(model, images, tick):
    params = EvaluateParams(norm="l2", eps=0.1, images=4, eps_grid=())
    evaluate(model, images, params, seed=0, tick=tick)


def audited(model, images, tick):
    audit(model, images, AuditSettings(eps=0.1, norm="l2"), tick=tick)


@pytest.mark.parametrize("measure", [evaluated, audited])
def test_images_too_small_for_square_are_refused_first(measure):
    """Before anything is measured, where the package divided by zero after the other attacks."""
    ticks = []
    with pytest.raises(ModelError, match="5 pixels a side or more, found 4×4. Measure with"):
        measure(*small_model_and_images(), lambda *told: ticks.append(told))
    assert not ticks
