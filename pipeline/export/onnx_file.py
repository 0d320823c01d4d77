"""ONNX: one file for onnxruntime and others, with a batch of any size.

The exporter's notes on nodes are taken out: they hold the source lines and paths of this
machine.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from pipeline.export.agreement import Agreement, probes, require_agreement
from pipeline.export.deployed import Deployed
from pipeline.export.facts import facts_text
from pipeline.export.writing import foreign, package
from pipeline.publish import staged

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.models.classifier import Classifier

__all__ = ["FACTS_PROPERTY", "read_onnx_facts", "write_onnx"]

FACTS_PROPERTY = "ltd_pipe"
_IMAGES, _LOGITS = "images", "logits"
_CPU = ["CPUExecutionProvider"]


def write_onnx(model: Classifier, facts: dict[str, Any], out: Path) -> Agreement:
    """Write a classifier as ONNX, and publish it when onnxruntime gives the same logits.

    Parameters
    ----------
    model : Classifier
        On the CPU, in evaluation mode.
    facts : dict
        Of `export_facts`; travel as the model's metadata property `ltd_pipe`.
    out : Path
        A file; replaced if it exists. Input `images`, output `logits`.

    Raises
    ------
    MachineError
        When a package of the extra `onnx` is not installed.
    ModelError
        When the exporter cannot write it, or it gives other logits.
    WriteError
        When the disk refuses.
    """
    runtime, checker = package("onnxruntime", "onnx"), package("onnx", "onnx").checker
    package("onnxscript", "onnx")
    program = _exported(model)
    _strip(program.model)
    program.model.metadata_props[FACTS_PROPERTY] = facts_text(facts)
    with staged(out) as beside:
        program.save(str(beside))
        with foreign(out, "loaded by onnxruntime"):
            checker.check_model(str(beside), full_check=True)
            session = runtime.InferenceSession(str(beside), providers=_CPU)
            return require_agreement(model, lambda images: _run(session, images), out)


def _run(session: Any, images: torch.Tensor) -> torch.Tensor:
    (logits,) = session.run([_LOGITS], {_IMAGES: images.numpy()})
    return torch.from_numpy(logits)


def read_onnx_facts(path: Path) -> dict[str, Any]:
    """The facts that travel with an ONNX file, read by onnxruntime."""
    runtime = package("onnxruntime", "onnx")
    session = runtime.InferenceSession(str(path), providers=_CPU)
    properties = session.get_modelmeta().custom_metadata_map
    content: dict[str, Any] = json.loads(properties[FACTS_PROPERTY])
    return content


def _exported(model: Classifier) -> Any:
    with foreign(model.architecture, "written as ONNX"):
        return torch.onnx.export(
            Deployed(model),
            (probes(model.shape)[:2],),
            input_names=[_IMAGES],
            output_names=[_LOGITS],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )


def _strip(model: Any) -> None:
    graph = model.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    nodes = list(graph.all_nodes())
    values += [value for node in nodes for value in node.outputs]
    for part in (model, graph, *values, *nodes):
        part.metadata_props.clear()
        part.doc_string = None
