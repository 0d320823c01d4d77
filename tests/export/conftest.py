"""Students of any architecture, on disk."""

from __future__ import annotations

import pytest
import torch
from made_classifiers import make_classifier, save_student

from ltd_pipe.export.formats import export_facts
from ltd_pipe.models.checkpoint import load_classifier


@pytest.fixture(scope="session")
def making_students(tmp_path_factory):
    """A function that writes a checkpoint of an architecture; its path, model and facts."""

    def make(architecture, shape, temperature=1.5):
        torch.manual_seed(0)
        model = make_classifier(architecture, shape, temperature)
        path = save_student(model, tmp_path_factory.mktemp("student") / "model.safetensors")
        return path, load_classifier(path), export_facts(path)

    return make
