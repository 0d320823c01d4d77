"""What travels with an exported classifier: what it is, and what it was made from.

Equal checkpoints give equal facts: no dates, paths or host names.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline import provenance
from pipeline.models.checkpoint import read_facts
from pipeline.report.results import parse_result
from pipeline.report.runs import RunFacts

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FACTS_FILE", "export_facts", "facts_text", "threat_model"]

FACTS_FILE = "ltd_pipe.json"
_SOFTWARE = ("ltd-pipe", "torch", "torchvision", "timm")


def export_facts(checkpoint: Path) -> dict[str, Any]:
    """Plain values that describe a checkpoint to whoever has only the export.

    Parameters
    ----------
    checkpoint : Path
        Of `save_classifier`.

    Returns
    -------
    dict
        What is not known, or does not apply, is None.

    Raises
    ------
    MissingError, CheckpointError, ResultError
        When it is not there, or does not say what it is.
    """
    header = read_facts(checkpoint)
    run = parse_result(header, RunFacts, checkpoint, "ltd-pipe train")
    versions = provenance.software()
    return {
        "format": "ltd-export",
        "version": 1,
        "checkpoint_sha256": provenance.sha256_file(checkpoint),
        "weights_sha256": header["weights_sha256"],
        "architecture": run.architecture,
        "class_names": list(run.class_names),
        "input": {
            "shape": ["batch", *run.shape],
            "dtype": "float32",
            "range": [0, 1],
            # Inside, so that nobody has to apply them.
            "mean": list(header["mean"]),
            "std": list(header["std"]),
        },
        "temperature": run.temperature,
        "threat_model": threat_model(run),
        "data": None if run.data is None else run.data.model_dump(),
        "labels": _labels(run),
        "seed": run.seed,
        "software": {name: versions[name] for name in _SOFTWARE},
    }


def threat_model(run: RunFacts) -> dict[str, Any] | None:
    """The ball that a model was trained in: norm and eps in pixel units; None: clean images."""
    eps = run.params.get("eps")
    if run.kind != "student" or not isinstance(eps, int | float):
        return None
    return {"norm": str(run.params.get("norm", "linf")), "eps": float(eps)}


def facts_text(facts: dict[str, Any]) -> str:
    """The facts as one JSON text, for formats that carry texts beside the weights."""
    return json.dumps(facts, sort_keys=True, allow_nan=False)


def _labels(run: RunFacts) -> dict[str, Any] | None:
    kind = run.params.get("label_kind")
    if run.labels is not None:
        store = {"identity": run.labels.identity, "temperature": run.labels.temperature}
        return {"kind": kind, **store}
    if run.teacher is not None:
        return {"kind": kind, "teacher_sha256": run.teacher.sha256}
    return None if kind is None else {"kind": kind}
