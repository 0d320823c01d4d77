"""Robust accuracy: right numbers, AutoAttack as its package computes it, resumed to the bit."""

import json

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from pipeline.errors import ModelError
from pipeline.evaluation import autoattack
from pipeline.evaluation.autoattack import run_autoattack
from pipeline.evaluation.pgd import correct_when_clean, survivors
from pipeline.evaluation.robustness import evaluate, examples
from pipeline.evaluation.selection import TestImages
from pipeline.models.classifier import Classifier
from pipeline.params import EvaluateParams

SHAPE = (1, 4, 4)
EPS = 0.1


class Sums(nn.Module):
    """Logit k is the sum of the k-th row of pixels: attacks have a known optimum."""

    def forward(self, images):
        return 4.0 * images.sum(dim=(1, 3))


def model():
    names = tuple("abcd")
    network = Sums()
    return Classifier(network, architecture="sums", class_names=names, shape=SHAPE).eval()


@pytest.fixture(scope="module")
def test_images():
    """Images of margins between 0 and 1.6, half of which an attack with eps 0.1 overcomes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 4
    images = torch.full((24, *SHAPE), 100, dtype=torch.uint8)
    for i, label in enumerate(labels):
        images[i, 0, label] += 4 * i
    images += torch.randint(0, 3, images.shape, generator=generator).to(torch.uint8)
    return TestImages(images, labels, torch.arange(24), torch.device("cpu"))


def truly_robust(test):
    """The exact answer: the true row must lead every other by more than 2 · 4 pixels · eps."""
    rows = test.images.float().div(255).sum(dim=(1, 3))
    true = rows.gather(1, test.labels[:, None])
    others = rows.scatter(1, test.labels[:, None], -9.0).amax(dim=1, keepdim=True)
    return (true - others).squeeze(1) > 2 * 4 * EPS


def test_pgd_finds_exactly_the_images_that_can_be_broken(test_images):
    """For a linear model PGD's verdict is the exact one."""
    right = correct_when_clean(model(), test_images, 7)
    robust = survivors(
        model(),
        test_images,
        right,
        eps=EPS,
        steps=20,
        restarts=2,
        seed=0,
        batch_size=7,
        tick=lambda _: None,
    )
    assert torch.equal(robust, truly_robust(test_images) & right)
    assert 0 < robust.sum() < right.sum()


def run(test, state, **changes):
    settings = {"eps": EPS, "seed": 3, "batch_size": 10, "state": state, "tick": lambda _: None}
    right = correct_when_clean(model(), test, 10)
    return run_autoattack(model(), test, right, **settings | changes)


def packages_own(test):
    """The package run in one go, with the three targets that four classes allow."""
    adversary = AutoAttack(model(), norm="Linf", eps=EPS, seed=3, version="standard")
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 3
    images, labels, _ = test.take(torch.arange(len(test)))
    attacked, _ = adversary.run_standard_evaluation(images, labels, batch_size=10)
    with torch.no_grad():
        return model()(attacked).argmax(dim=1) == labels


@pytest.fixture(scope="module")
def whole(test_images, tmp_path_factory):
    """An uninterrupted run."""
    return run(test_images, tmp_path_factory.mktemp("aa") / "state.json")


def test_autoattack_is_the_packages_standard_version(test_images, whole):
    """Image by image, the verdict is that of `run_standard_evaluation`."""
    assert whole.robust == packages_own(test_images).tolist()
    assert list(whole.accuracy) == ["apgd-ce", "apgd-t", "fab-t", "square"]


def test_autoattack_of_a_linear_model_is_exact(test_images, whole):
    """It breaks what can be broken, and nothing else."""
    right = correct_when_clean(model(), test_images, 10)
    assert whole.robust == (truly_robust(test_images) & right).tolist()


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_interrupted_autoattack_ends_with_the_same_result(test_images, whole, tmp_path, batches):
    """Stopped after some batches and continued, all that is written down is equal."""
    state, done = tmp_path / "state.json", []

    def stop(count):
        done.append(count)
        if len(done) == batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(test_images, state, tick=stop)
    assert vars(run(test_images, state)) == vars(whole)


def test_a_finished_attack_is_not_run_again(test_images, tmp_path):
    """A complete state costs nothing."""
    state, done = tmp_path / "state.json", []
    run(test_images, state)
    run(test_images, state, tick=done.append)
    assert done == []


def test_square_finding_more_is_flagged(test_images, tmp_path):
    """When only the black-box attack succeeds, AutoAttack's warning reaches the result."""
    state = tmp_path / "state.json"
    robust = [True] * len(test_images)
    accuracy = {"apgd-ce": 1.0, "apgd-t": 1.0, "fab-t": 1.0, "square": 0.5}
    state.write_text(json.dumps(vars(autoattack.AutoAttackResult(robust, accuracy))))
    assert any("Square Attack has decreased" in flag for flag in run(test_images, state).flags)


def test_evaluation_puts_it_all_together(test_images, tmp_path):
    """Accuracies are ordered, intervals hold them, and the curve falls from clean to robust."""
    params = EvaluateParams(eps=EPS, pgd_steps=20, pgd_restarts=1, eps_grid=(0, EPS, 0.3))
    result = evaluate(model(), test_images, params, seed=0, state=tmp_path, tick=lambda *_: None)
    metrics = result.metrics
    assert metrics["n"] == 24
    assert metrics["autoattack_accuracy"] <= metrics["pgd_accuracy"] < metrics["clean_accuracy"]
    for name, (low, high) in metrics["intervals"].items():
        assert low <= metrics[name] <= high
    curve = [point["robust_accuracy"] for point in result.by_eps]
    assert curve == sorted(curve, reverse=True)
    assert curve[0] == metrics["clean_accuracy"]
    assert curve[2] == 0


def test_leaving_autoattack_out_leaves_no_number(test_images, tmp_path):
    """No AutoAttack, no AutoAttack accuracy."""
    params = EvaluateParams(eps=EPS, pgd_steps=2, pgd_restarts=1, autoattack="none")
    result = evaluate(model(), test_images, params, seed=0, state=tmp_path, tick=lambda *_: None)
    assert "autoattack_accuracy" not in result.metrics
    assert "autoattack" not in result.metrics


def test_a_model_in_training_mode_is_not_measured(test_images, tmp_path):
    """The refusal comes before the first attack."""
    with pytest.raises(ModelError, match="training mode"):
        evaluate(
            model().train(),
            test_images,
            EvaluateParams(eps=EPS),
            seed=0,
            state=tmp_path,
            tick=lambda *_: None,
        )


def test_examples_show_what_the_attack_did(test_images):
    """Pictures are in the ball, and predictions are the model's."""
    found = examples(model(), test_images, EvaluateParams(eps=EPS), count=5, seed=0)
    clean = torch.from_numpy(found["clean"]).float() / 255
    adversarial = torch.from_numpy(found["adversarial"])
    assert (adversarial - clean).abs().max() <= EPS + 1e-6
    with torch.no_grad():
        assert found["adversarial_prediction"].tolist() == model()(adversarial).argmax(1).tolist()
    assert found["label"].tolist() == test_images.labels[:5].tolist()
