"""An evaluation as a whole: its numbers fit together, and every file says what it must."""

import io
import json

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn

from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.results import Metrics
from ltd_pipe.evaluation.robustness import (
    AttackResult,
    Source,
    evaluate,
    examples,
    metrics_of,
    per_class,
    per_sample,
)
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.params import EvaluateParams
from ltd_pipe.provenance import StateRecord
from ltd_pipe.stages.evaluate import metrics_lines

EPS = 0.05
PARAMS = EvaluateParams(
    eps=EPS,
    batch_size=10,
    pgd_steps=5,
    pgd_restarts=2,
    attacks=("fgsm", "cw-10"),
    autoattack="none",
    eps_grid=(0, EPS, 0.3),
)


class Other(nn.Module):
    """Another model of the same images."""

    def forward(self, images):
        return 2.0 * images.sum(dim=(1, 3)) + images[:, 0, :, 0]


@pytest.fixture
def source():
    """A second model, whose attack is tried."""
    names, shape = tuple("abcde"), (1, 5, 5)
    network = Classifier(Other(), architecture="other", class_names=names, shape=shape)
    return Source("teacher", "ab" * 32, network.eval())


@pytest.fixture
def result(model, images, source):
    return evaluate(model, images, PARAMS, seed=0, sources=[source])


def measured(result, params=PARAMS, *, quick=False):
    return metrics_of(result, params, quick=quick, checkpoint_sha256="ab" * 32)


@pytest.fixture
def metrics(result):
    """As the file has them."""
    return json.loads(json.dumps(measured(result).dump()))


def test_the_file_has_the_accuracies_first_and_is_read_back(result, metrics):
    """One schema for who writes and for who reads."""
    assert list(metrics)[:6] == ["n", "norm", "eps", "quick", "clean_accuracy", "fgsm_accuracy"]
    assert list(metrics)[-3:] == ["not_measured", "warnings", "checkpoint_sha256"]
    assert Metrics(**metrics) == measured(result)


def test_accuracies_are_ordered_and_within_their_intervals(metrics):
    """No attack leaves more than there was, and all together leave least."""
    names = list(metrics["intervals"])
    assert names == [
        f"{name}_accuracy"
        for name in ("clean", "fgsm", "cw_10", "pgd", "transfer_1", "all_attacks")
    ]
    for name, (low, high) in metrics["intervals"].items():
        assert low <= metrics[name] <= high
        assert metrics["all_attacks_accuracy"] <= metrics[name] <= metrics["clean_accuracy"]
    assert 0 < metrics["all_attacks_accuracy"] < metrics["clean_accuracy"]


def test_every_row_says_all_that_decides_it(metrics):
    """Norm, eps, n, interval; steps and loss, or the source."""
    clean, *attacked = metrics["attacks"]
    assert clean["name"] == "clean"
    for row in attacked:
        assert (row["norm"], row["eps"], row["n"]) == ("linf", EPS, 24)
        assert row["low"] <= row["accuracy"] <= row["high"]
    by_key = {row["key"]: row for row in attacked}
    assert by_key["pgd"] | {"steps": 5, "restarts": 2, "loss": "cross entropy"} == by_key["pgd"]
    assert by_key["cw-10"]["loss"] == "margin"
    assert by_key["transfer-1"]["source_sha256"] == "ab" * 32


def test_what_was_not_measured_is_said(metrics):
    """Beside the numbers, and on the screen."""
    assert metrics["not_measured"] == ["AutoAttack", "corrupted images", "L2"]
    shown = "\n".join(metrics_lines(Metrics(**metrics)))
    assert "AutoAttack was left out: the PGD number alone is no claim" in shown
    assert "not measured: AutoAttack, corrupted images, L2" in shown


def test_every_line_says_threat_and_images(metrics):
    """As in a leaderboard: norm, radius, number of images, interval."""
    lines = list(metrics_lines(Metrics(**metrics)))[: len(metrics["attacks"])]
    assert "clean" in lines[0]
    assert "no attack, 24 images" in lines[0]
    for line in lines[1:]:
        assert "Linf 0.05, 24 images" in line
        assert "95 % interval" in line


def test_the_curve_begins_with_the_clean_accuracy(result, metrics):
    """And ends at zero, which the metrics name."""
    points = result.curve.points
    assert points[0].robust_accuracy == metrics["clean_accuracy"]
    assert points[-1].robust_accuracy == 0
    assert metrics["zero_accuracy_at_eps"] == 0.3


def test_classes_add_up_to_the_whole(result, metrics):
    """N and hits of all classes are those of the test images."""
    rows = per_class(result, tuple("abcde"))
    assert [row["class"] for row in rows] == list("abcde")
    for key in ("clean", "pgd", "transfer-1"):
        hits = sum(row[key]["accuracy"] * row[key]["n"] for row in rows)
        assert hits / 24 == pytest.approx(metrics[f"{key.replace('-', '_')}_accuracy"])
    assert sum(row["clean"]["n"] for row in rows) == 24


def test_samples_are_read_by_plain_numpy(result, metrics, images):
    """Without pickle, one row per image, with its index, hash and a bit per attack."""
    buffer = io.BytesIO()
    np.savez(buffer, **per_sample(result))
    buffer.seek(0)
    found = np.load(buffer, allow_pickle=False)
    assert {len(found[name]) for name in found.files} == {24}
    np.testing.assert_array_equal(found["sample_hash"], images.sample_hash)
    np.testing.assert_array_equal(found["index"], np.arange(24))
    for name in ("clean", "pgd", "transfer-1", "all-attacks"):
        bits = found[f"correct_{name}"]
        assert bits.dtype == bool
        assert bits.mean() == pytest.approx(metrics[f"{name.replace('-', '_')}_accuracy"])
    assert set(found["broken_at_eps"].tolist()) <= {0.0, np.float32(EPS), np.float32(0.3)}


def test_what_is_wrong_when_clean_is_broken_at_zero(model, images):
    """Also by a grid that begins above it."""
    found = evaluate(model, images, PARAMS.model_copy(update={"eps_grid": (EPS, 0.3)}), seed=0)
    samples = per_sample(found)
    assert 0 < samples["correct_clean"].sum() < 24
    np.testing.assert_array_equal(samples["broken_at_eps"] == 0, ~samples["correct_clean"])


def test_a_part_of_the_images_can_stand_behind_the_curve(model, images):
    """Its points say how many; the others are NaN in the samples."""
    params = PARAMS.model_copy(update={"eps_grid_images": 7})
    found = evaluate(model, images, params, seed=0)
    assert {point.n for point in found.curve.points} == {7}
    assert np.isfinite(per_sample(found)["broken_at_eps"]).sum() == 7


def test_calibration_is_measured_clean_and_under_attack(result, metrics):
    """The first is that of the clean answers; the attack makes it worse."""
    assert metrics["expected_calibration_error"] == result.clean.calibration_error(
        result.test.labels
    )
    assert (
        metrics["expected_calibration_error_under_attack"] > metrics["expected_calibration_error"]
    )


@pytest.mark.parametrize("batches", [1, 5, 9, 14])
def test_interrupted_anywhere_it_ends_with_the_same_numbers(
    model, images, source, result, tmp_path, batches
):
    """Every attack, the transfer and the curve go on where they were."""
    told = []

    def stop(*words):
        told.append(words)
        if len(told) == batches:
            raise KeyboardInterrupt

    state = StateRecord(tmp_path, "evaluate", "metrics.json", {}, {})
    settings = {"seed": 0, "state": state, "sources": [source]}
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, images, PARAMS, tick=stop, **settings)
    again = evaluate(model, images, PARAMS, **settings)
    assert measured(again).dump() == measured(result).dump()


def test_a_first_look_is_marked(model, images):
    """In metrics.json and on the screen; it is cheap, and takes no more images than there are."""
    params = PARAMS.quick(24)
    assert (params.images, params.pgd_steps, params.autoattack) == (24, 10, "none")
    assert PARAMS.quick(10_000).images == 200
    found = measured(evaluate(model, images, params, seed=0), params, quick=True)
    assert found.quick
    assert "QUICK LOOK" in next(iter(metrics_lines(found)))
    assert "robust accuracy by eps" in found.not_measured


def test_a_model_in_training_mode_is_not_measured(model, images):
    """The refusal comes before the first attack."""
    with refused(ModelError, where="model", what="mode"):
        evaluate(model.train(), images, PARAMS, seed=0)


def test_doubts_are_told_before_the_attacks(model, images):
    """A checkpoint that claims another accuracy is contradicted at once."""
    told = []
    stated, tick = (0.3, "validation"), lambda *words: told.append(words[0])
    found = evaluate(model, images, PARAMS, seed=0, stated=stated, tick=tick, warn=told.append)
    (doubt,) = found.warnings
    assert "the checkpoint says 30.0% (validation)" in doubt
    assert set(told[: told.index(doubt)]) == {"clean"}
    assert "WARNING: clean accuracy is" in "\n".join(metrics_lines(measured(found)))


def test_rand_on_a_model_that_is_not_random_is_doubted(model, images):
    """The standard version is the stronger one."""
    params = PARAMS.model_copy(update={"autoattack": "rand"})

    def stop_at_the_first_attack(*words):
        if words[0] != "clean":
            raise KeyboardInterrupt

    told = []
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, images, params, seed=0, warn=told.append, tick=stop_at_the_first_attack)
    assert "standard is stronger" in told[0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_examples_show_what_the_attack_did(model, images, norm):
    """Pictures are in the ball, and predictions are the model's."""
    params = EvaluateParams(eps=EPS, norm=norm)
    found = examples(model, images, params, count=5, seed=0)
    change = torch.from_numpy(found["adversarial"] - found["clean"].astype(np.float32) / 255)
    order = torch.inf if norm == "linf" else 2
    assert torch.linalg.vector_norm(change.flatten(1), ord=order, dim=1).max() <= EPS + 1e-6
    adversarial = torch.from_numpy(found["adversarial"])
    with torch.no_grad():
        assert found["adversarial_prediction"].tolist() == model(adversarial).argmax(1).tolist()
    assert found["label"].tolist() == images.labels[:5].tolist()


@pytest.mark.parametrize(
    ("fell", "stood", "expected"),
    [
        ((1, 4, 6, 7), (0, 2, 3, 5), [1, 4, 0, 2]),
        ((7,), (0, 1, 2, 3), [7, 0, 1, 2]),
        ((1, 2, 3), (), [1, 2, 3, 0]),
        ((), (5,), [5, 0, 1, 2]),
    ],
    ids=["both", "few that fell", "none stood", "most are wrong before"],
)
def test_examples_hold_images_that_fell_beside_images_that_stood(
    model, images, fell, stood, expected
):
    """The first of each kind; images that are wrong when clean only where others lack."""
    pgd = torch.zeros(len(images), dtype=torch.bool)
    pgd[list(stood)] = True
    clean = pgd.clone()
    clean[list(fell)] = True
    scores = [AttackResult("clean", "clean", clean), AttackResult("pgd", "PGD", pgd)]
    found = examples(model, images, EvaluateParams(eps=EPS), count=4, seed=0, scores=scores)
    assert found["index"].tolist() == images.index[expected].tolist()
