"""What a run says of its labels is what it is trained on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_answers import attributes, make_answers, write_store

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.params import TrainParams
from ltd_pipe.training import softness
from ltd_pipe.training.softness import (
    TARGET_SUMS,
    TargetSoftness,
    measure_targets,
    require_teaching,
    target_sums,
)

# Softmax at temperature 1: (1/2, 1/4, 1/4), which is right, and (1/4, 1/4, 1/2), which is not.
LOGITS = np.log(np.array([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]], np.float32))


@pytest.fixture
def store(tmp_path):
    """Twelve samples of class 0: the teacher is right about the first nine."""
    answers = make_answers(12, temperature=1.0)
    labels = np.zeros(12, np.int32)
    facts = attributes(labels, answers.sample_hash, answers.attributes.class_names, 1.0)
    logits = LOGITS[[0] * 9 + [1] * 3]
    answers = replace(answers, attributes=facts, labels=labels, logits=logits)
    return SoftLabels.open(answers.write(tmp_path / "labels.zarr"))


def params(**changes):
    return TrainParams(architecture="x", epochs=1, eps=0.1, **changes)


def measure(store, samples=range(12), **changes):
    return measure_targets(params(**changes), store, np.array(samples))


def test_of_the_labels_as_they_are_stored(store):
    """Mean top probability 1/2, entropy 1.5 ln 2, and 3 of 12 are on another class."""
    found = measure(store)
    assert found.mean_top_probability == pytest.approx(0.5, abs=1e-3)
    assert found.mean_entropy == pytest.approx(1.5 * math.log(2), abs=1e-3)
    assert (found.contradictions, found.targets) == (0.25, 12)


POOR = {
    "uniform": (0.109, 0.2, {}, ("0.15 or more", "0.109")),
    "uniform, and allowed": (0.109, 0.2, {"allow_poor_labels": True}, None),
    "uniform, and softened anew": (0.109, 0.2, {"objective": "ard", "label_temperature": 30}, None),
    "soft": (0.16, 0.2, {}, None),
    "contradicting": (0.9, 0.51, {}, ("for at most 50%", "for 51.0%")),
    "contradicting, and allowed": (0.9, 0.51, {"allow_poor_labels": True}, None),
    "a poor teacher's": (0.9, 0.5, {}, None),
}


@pytest.mark.parametrize(("top", "wrong", "changes", "refused"), POOR.values(), ids=POOR)
def test_targets_that_teach_nothing_are_refused(top, wrong, changes, refused):
    """Before the first step, unless that is what is asked for."""
    found = TargetSoftness(top, 1.0, wrong, 100)
    if refused is None:
        require_teaching(found, params(**changes), 10, "labels.zarr")
        return
    with pytest.raises(StoreError) as error:
        require_teaching(found, params(**changes), 10, "labels.zarr")
    assert (error.value.where, error.value.expected, error.value.found) == ("labels.zarr", *refused)
    assert "--allow-poor-labels" in error.value.remedy


def test_samples_of_unknown_class_contradict_nothing(store, tmp_path):
    """All of class -1: their labels are not judged by it."""
    unknown = np.full(12, -1, np.int32)
    rows = np.arange(12)
    facts = attributes(unknown, store.sample_hash, store.attributes.class_names, 1.0)
    path = tmp_path / "unknown.zarr"
    write_store(path, facts, store.gather_logits(rows), unknown, store.sample_hash)
    assert measure(SoftLabels.open(path)).contradictions == 0.0


def test_only_the_training_samples_count(store):
    """Those of the validation split are not trained on."""
    assert measure(store, samples=range(9)).contradictions == 0.0


def test_mixing_with_the_truth_is_taken_into_account(store):
    """Half one-hot: (3/4, 1/8, 1/8) where it was right, (5/8, 1/8, 1/4) where it was not."""
    found = measure(store, soft_weight=0.5)
    assert found.mean_top_probability == pytest.approx((9 * 0.75 + 3 * 0.625) / 12, abs=1e-3)
    assert found.contradictions == 0.0


def test_rectification_is_taken_into_account(store):
    """The wrong ones have weight 1 - (1/2 - 1/4): (7/16, 3/16, 3/8), right again."""
    found = measure(store, rectify=True)
    assert found.mean_top_probability == pytest.approx((9 * 0.5 + 3 * 7 / 16) / 12, abs=1e-3)
    assert found.contradictions == 0.0


def test_another_temperature_is_taken_into_account(store):
    """At temperature 1/2 the odds are squared: 4/6."""
    found = measure(store, label_temperature=0.5)
    assert found.mean_top_probability == pytest.approx(2 / 3, abs=1e-3)


def test_every_view_counts(tmp_path):
    """Three views of eleven samples are 33 targets."""
    answers = make_answers(11, views=3)
    labels = np.zeros(11, np.int32)
    names = answers.attributes.class_names
    facts = attributes(labels, answers.sample_hash, names, 2.0, views=3)
    answers = replace(answers, attributes=facts, labels=labels)
    store = SoftLabels.open(answers.write(tmp_path / "views.zarr"))
    found = measure(store, samples=range(11))
    logits = answers.logits.astype(np.float64) / 2
    soft = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert found.targets == 33
    assert found.mean_top_probability == pytest.approx(soft.max(axis=-1).mean(), abs=1e-3)
    assert found.contradictions == pytest.approx((soft.argmax(axis=-1) != 0).mean())


def test_of_many_samples_evenly_spaced_ones_are_measured(store, monkeypatch):
    """Samples 0, 3, 6 and 9 of twelve, the last of which is wrong."""
    monkeypatch.setattr(softness, "_MAX_ROWS", 4)
    found = measure(store)
    assert (found.targets, found.contradictions) == (4, 0.25)


def test_the_summary_and_the_facts_say_it():
    """In words and as plain values."""
    found = TargetSoftness(0.9123, 0.3, 0.0042, 100)
    assert found.sentence() == (
        "mean top probability of its labels 0.912, mean entropy 0.300 nats; 0.42% contradict the "
        "ground truth"
    )
    assert vars(found)["contradictions"] == 0.0042
    assert found.warnings(params()) == []


WARNED = {
    "soft": (TargetSoftness(0.85, 0.5, 0.0, 9), ["are soft, which may cost robustness"]),
    "wrong": (TargetSoftness(0.95, 0.1, 0.031, 9), ["3.1% of the labels contradict"]),
    "both": (TargetSoftness(0.5, 1.0, 0.5, 9), ["are soft", "50.0% of the labels contradict"]),
}


@pytest.mark.parametrize(("found", "expected"), WARNED.values(), ids=WARNED)
def test_labels_that_may_do_harm_are_warned_of(found, expected):
    """With where it was measured."""
    warnings = found.warnings(params())
    assert len(warnings) == len(expected)
    for warning, text in zip(warnings, expected, strict=True):
        assert text in warning
        assert warning.endswith("see docs/robustness.md of ltd-pipe")


SOFT_ON_PURPOSE = {
    "ard": ({"objective": "ard", "label_temperature": 30}, True),
    "ard-rectified": ({"objective": "ard", "label_temperature": 30, "rectify": True}, False),
    "mtard": ({"objective": "mtard", "label_temperature": 1, "teacher": "robust"}, False),
}


@pytest.mark.parametrize(("changes", "remedy"), SOFT_ON_PURPOSE.values(), ids=SOFT_ON_PURPOSE)
def test_labels_that_are_meant_to_be_soft_need_no_warning_of_softness(changes, remedy):
    """Contradictions stay contradictions; what is refused or done already is not recommended."""
    found = TargetSoftness(0.2, 2.0, 0.1, 9).warnings(params(**changes))
    assert [warning[:5] for warning in found] == ["10.0%"]
    assert ("'rectify: true'" in found[0]) == remedy


def test_of_the_targets_of_a_step():
    """The same measures: 1/2, 1.5 ln 2, and one of two on another class; one-hot has no entropy."""
    target = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    sums = target_sums(target, torch.eye(3)[[0, 1]]).tolist()
    found = TargetSoftness.of_sums(dict(zip(TARGET_SUMS, sums, strict=True)), 2)
    assert (found.mean_top_probability, found.contradictions, found.targets) == (0.75, 0.5, 2)
    assert found.mean_entropy == pytest.approx(0.75 * math.log(2))
