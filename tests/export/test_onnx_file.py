"""ONNX files are run by onnxruntime."""

import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from ltd_pipe.errors import MachineError
from ltd_pipe.export.formats import probes, write_export


@pytest.fixture(scope="module")
def written(making_students, tmp_path_factory):
    """One file, the model that it was written from, and its facts: an export takes seconds."""
    _, model, facts = making_students("wrn-10-1", (3, 8, 8))
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_export(model, facts, "onnx", path)
    return path, model, facts


def test_onnxruntime_gets_the_logits(written):
    """For a batch of a size that was never tried."""
    path, model, _ = written
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,), (end,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.shape[1:], end.name) == ("images", [3, 8, 8], "logits")
    images = probes(model.shape)[:5]
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(images))


def test_facts_travel_and_no_path_does(written):
    """The file says what it is, and nothing of the machine that wrote it."""
    path, _, facts = written
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["ltd_pipe"]) == facts
    content = path.read_bytes()
    for place in (Path(torch.__file__).parents[1], Path(__file__).parents[2], path.parent):
        assert str(place).encode() not in content
    assert [prop.key for prop in onnx.load(path).metadata_props] == ["ltd_pipe"]


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(written, monkeypatch, tmp_path, missing):
    """Before anything is written."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        MachineError, match=rf"{missing}: is not installed.*pip install.*onnxscript>="
    ):
        write_export(written[1], written[2], "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
