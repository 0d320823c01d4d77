"""TorchScript: one file that torch loads in Python and C++ without the network's code.

The network is traced, and torch's notes of source lines are taken out of the archive: they
hold the paths of this machine.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from pipeline.export.agreement import Agreement, probes, require_agreement
from pipeline.export.deployed import Deployed
from pipeline.export.facts import FACTS_FILE, facts_text
from pipeline.export.writing import foreign
from pipeline.publish import staged

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.models.classifier import Classifier

__all__ = ["read_torchscript_facts", "write_torchscript"]


def write_torchscript(model: Classifier, facts: dict[str, Any], out: Path) -> Agreement:
    """Trace a classifier, write it, and publish it when it gives the same logits.

    Parameters
    ----------
    model : Classifier
        On the CPU, in evaluation mode.
    facts : dict
        Of `export_facts`; travel as the extra file `ltd_pipe.json`.
    out : Path
        A file; replaced if it exists.

    Raises
    ------
    ModelError
        When it cannot be traced, or gives other logits.
    WriteError
        When the disk refuses.
    """
    archive = io.BytesIO()
    with foreign(model.architecture, "traced"):
        # Two images: a trace of one can take the batch for a constant.
        traced = torch.jit.trace(Deployed(model), probes(model.shape)[:2])  # type: ignore[no-untyped-call]
        torch.jit.save(traced, archive, _extra_files={FACTS_FILE: facts_text(facts)})
    with staged(out) as beside:
        _copy_without_notes(archive, beside)
        with foreign(out, "loaded by torch.jit"):
            loaded = torch.jit.load(str(beside), map_location="cpu")  # type: ignore[no-untyped-call]
            return require_agreement(model, loaded, out)


def read_torchscript_facts(path: Path) -> dict[str, Any]:
    """The facts that travel with a TorchScript file, read by torch's own means."""
    files = {FACTS_FILE: ""}
    with foreign(path, "loaded by torch.jit"):
        torch.jit.load(str(path), map_location="cpu", _extra_files=files)  # type: ignore[no-untyped-call]
    content: dict[str, Any] = json.loads(files[FACTS_FILE])
    return content


def _copy_without_notes(archive: io.BytesIO, path: Path) -> None:
    # Without dates and stored as torch itself stores tensors.
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
