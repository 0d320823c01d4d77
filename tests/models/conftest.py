"""A small classifier with constants of its own, and its checkpoint."""

from __future__ import annotations

import pytest

from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build


@pytest.fixture
def classifier():
    """Grey 8×8 images, three classes, normalisation and a temperature other than one."""
    return Classifier(
        build("small-cnn-w4", 3, (1, 8, 8)),
        architecture="small-cnn-w4",
        class_names=("ant", "bee", "cat"),
        shape=(1, 8, 8),
        mean=[0.3],
        std=[0.2],
        temperature=1.5,
    ).eval()


@pytest.fixture
def checkpoint(classifier, tmp_path):
    """The classifier on disk."""
    path = tmp_path / "model.safetensors"
    save_classifier(classifier, path, kind="teacher", seed=3)
    return path
