"""The forms that a classifier can be exported in, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.export.facts import export_facts
from pipeline.export.onnx_file import write_onnx
from pipeline.export.robustbench_folder import write_robustbench
from pipeline.export.timm_folder import write_timm
from pipeline.export.torchscript_file import write_torchscript
from pipeline.export.writing import require_replaceable
from pipeline.models.checkpoint import load_classifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.export.agreement import Agreement
    from pipeline.models.classifier import Classifier

__all__ = ["TARGETS", "Target", "export"]


@dataclass(frozen=True)
class Target:
    """One form.

    Attributes
    ----------
    write : callable
        Writes, compares and publishes.
    folder : bool
        Whether a folder is written, or a file.
    loading : str
        Python that loads it, with {out} for its name.
    """

    write: Callable[[Classifier, dict[str, Any], Path], Agreement]
    folder: bool
    loading: str


TARGETS = {
    "robustbench": Target(
        write_robustbench,
        folder=True,
        loading="sys.path.insert(0, {out!r}); from model import load_model; model = load_model()",
    ),
    "timm": Target(
        write_timm,
        folder=True,
        loading="timm.create_model({name!r}, pretrained=True).eval()",
    ),
    "onnx": Target(write_onnx, folder=False, loading="onnxruntime.InferenceSession({out!r})"),
    "torchscript": Target(write_torchscript, folder=False, loading="torch.jit.load({out!r})"),
}


def export(checkpoint: Path, to: str, out: Path, *, replace: bool = False) -> Agreement:
    """Write a checkpoint in another form, prove that it gives the same logits, publish it.

    Parameters
    ----------
    checkpoint : Path
        Of `save_classifier`.
    to : str
        One of `TARGETS`.
    out : Path
        File or folder, as the form has it.
    replace : bool
        Replace an older export of that name.

    Returns
    -------
    Agreement

    Raises
    ------
    LtdPipeError
        When the checkpoint is none of ours, cannot be written in that form, or does not give
        the same logits in it; nothing is published then.
    """
    target = TARGETS[to]
    require_replaceable(out, folder=target.folder, replace=replace)
    return target.write(load_classifier(checkpoint), export_facts(checkpoint), out)
