"""TorchScript files are loaded by torch alone; see test_export_alone.py, too."""

import json
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from ltd_pipe.errors import ModelError
from ltd_pipe.export.formats import write_export
from ltd_pipe.models.classifier import Classifier


def test_facts_travel_and_no_path_does(making_students, tmp_path):
    """The archive says what it is, and nothing of the machine that wrote it."""
    _, model, facts = making_students("small-cnn-w4", (1, 8, 8))
    write_export(model, facts, "torchscript", tmp_path / "model.pt")
    files = {"ltd_pipe.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that TorchScript will go
        torch.jit.load(tmp_path / "model.pt", _extra_files=files)
    assert json.loads(files["ltd_pipe.json"]) == facts
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b'"format": "ltd-export"' in content
    for place in (Path(torch.__file__).parents[1], Path(__file__).parents[2], tmp_path):
        assert str(place).encode() not in content


class _Moody(nn.Module):
    """Answers a single image otherwise: a trace sees one of its two sides."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 4)

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        return logits + 1 if len(images) == 1 else logits


def test_what_cannot_be_traced_is_not_published(tmp_path):
    """A branch is lost in a trace; the comparison finds it, and nothing is left."""
    model = Classifier(
        _Moody(),
        architecture="moody",
        class_names="abcd",
        shape=(1, 8, 8),
        mean=[0.3],
        std=[0.2],
    ).eval()
    with pytest.raises(ModelError, match="gives other logits than the checkpoint"):
        write_export(model, {}, "torchscript", tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []
