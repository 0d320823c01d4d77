"""RobustBench: a folder with a state dict and a module that its model zoo can take in.

`benchmark()` takes any nn.Module in evaluation mode that maps images in [0, 1] to logits
(robustbench/eval.py), and a zoo entry is a class without arguments beside a file of
`torch.save` (robustbench/utils.py, `load_model`). A submission is an issue with the claims
and a link to checkpoint and code: this folder.
"""

from __future__ import annotations

import io
import types
from typing import TYPE_CHECKING, Any

import torch

from pipeline.export.agreement import Agreement, require_agreement
from pipeline.export.facts import FACTS_FILE
from pipeline.export.writing import foreign
from pipeline.export.zoo_module import module_text
from pipeline.publish import staged_folder, write_json, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.models.classifier import Classifier

__all__ = ["MODULE_FILE", "WEIGHTS_FILE", "write_robustbench"]

MODULE_FILE, WEIGHTS_FILE = "model.py", "weights.pt"


def write_robustbench(model: Classifier, facts: dict[str, Any], out: Path) -> Agreement:
    """Write a folder for RobustBench, and publish it when its module gives the same logits.

    Parameters
    ----------
    model : Classifier
        On the CPU, in evaluation mode.
    facts : dict
        Of `export_facts`; travel in `ltd_pipe.json`.
    out : Path
        A folder; replaced if it exists.

    Raises
    ------
    ModelError
        When it is a network of RobustBench's own zoo, or the logits are others.
    WriteError
        When the disk refuses.
    """
    with staged_folder(out) as beside:
        write_text(beside / MODULE_FILE, module_text(model))
        (beside / WEIGHTS_FILE).write_bytes(_weights(model))
        write_json(beside / FACTS_FILE, facts)
        with foreign(out, "loaded from the folder"):
            return require_agreement(model, _loaded(beside / MODULE_FILE), out)


def _weights(model: Classifier) -> bytes:
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.network.state_dict().items()
    }
    # Given a path, torch writes the file's name into the archive.
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def _loaded(path: Path) -> Any:
    # Our own text, just written. Not imported, which would leave byte code in the folder.
    module = types.ModuleType("model")
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))  # noqa: S102
    return module.load_model()
