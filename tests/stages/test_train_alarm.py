"""A training that collapses, as a user meets it."""

import contextlib
from pathlib import Path

import pytest

from ltd_pipe.models.facts import read_facts

# FGSM without noise, 5.5 times too far: see tests/training/test_collapse.py.
TOO_FAR = """
device: cpu
prepare: {dataset: digits, channels: 1}
teacher: {architecture: small-cnn-w8, epochs: 1}
label: {temperature: auto:0.9}
train:
  {architecture: small-cnn-w16, epochs: 25, batch_size: 64, precision: float32, eps: 0.1,
   nesterov: true, attack: n-fgsm, attack_noise: 0, step_size: 0.55, label_kind: onehot}
evaluate: {eps: 0.1}
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, ltd_pipe):
    """What the command said, in the folder that it left behind."""
    folder = tmp_path_factory.mktemp("collapse")
    with contextlib.chdir(folder):
        Path("params.yaml").write_text(TOO_FAR)
        prepared = ltd_pipe("prepare")
        assert prepared.code == 0, prepared.err
        yield ltd_pipe("train")


def test_it_ends_well_with_a_warning(stopped):
    """Exit code 0, since there is a result; what happened and what to do is on stderr."""
    assert stopped.code == 0, stopped.err
    assert "warning: catastrophic overfitting at epoch" in stopped.err
    assert "model.safetensors is the best epoch before" in stopped.err
    assert "overfitting_alarm: warn" in stopped.err


def test_the_best_and_the_collapsed_weights_are_kept(stopped):
    """Both checkpoints say that training collapsed, and at which epoch they are."""
    best = read_facts(Path("data/student/model.safetensors"))
    last = read_facts(Path("data/student/last.safetensors"))
    collapse = best["catastrophic_overfitting"]
    assert collapse == last["catastrophic_overfitting"]
    assert (best["epoch"], last["epoch"]) == (collapse["best_epoch"], collapse["epoch"])
    assert best["validation"]["robust_accuracy"] == collapse["best_robust_accuracy"]
