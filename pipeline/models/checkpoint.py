"""Classifiers on disk: safetensors with the whole description in the metadata.

The tensors are the network's own state dict, under the names of RobustBench's model zoo where
it has that network; `ltd_pipe.models.facts` lists what stands beside them. No pickle is read here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from ltd_pipe.errors import CheckpointError, ModelError
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.facts import KEY, CheckpointFacts, open_safetensors
from ltd_pipe.publish import staged, unwritable

if TYPE_CHECKING:
    from torch import nn


def save_classifier(model: Classifier, path: Path, **facts: Any) -> None:
    """Publish a classifier; equal weights and facts give equal bytes.

    Parameters
    ----------
    model : Classifier
        On any device.
    path : Path
        Replaced in one step if it exists.
    **facts
        Plain values (JSON) on how the model came to be; `read_facts` gives them back.

    Raises
    ------
    CheckpointError
        When a weight is NaN or infinite.
    ModelError
        When a fact contradicts the model.
    WriteError
        When the disk refuses; nothing is published.
    """
    # Copies, because safetensors refuses tensors that share memory or are not contiguous.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.network.state_dict().items()
    }
    _require_finite(state, path)
    own = model.description | {
        "format": "ltd-classifier",
        "version": 1 if model.columns is None else 2,
        "num_classes": model.num_classes,
        "weights_sha256": _digest(state),
    }
    told = json.loads(json.dumps(facts, allow_nan=False))
    for name in own.keys() & told.keys():
        if told[name] != own[name]:
            raise ModelError(
                f"fact '{name}'", "contradicts the model", expected=own[name], found=told[name]
            )
    metadata = {KEY: json.dumps(own | told, sort_keys=True, allow_nan=False)}
    with staged(path) as beside:
        try:
            safetensors.torch.save_file(state, beside, metadata)
        except safetensors.SafetensorError as error:  # its writer does not say OSError
            raise unwritable(path, error) from error


def load_classifier(path: Path) -> Classifier:
    """Load what `save_classifier` wrote, on the CPU and in evaluation mode.

    Raises
    ------
    MissingError
        When there is no such file.
    CheckpointError
        When it is of another kind or version, damaged, or does not fit its own description.
    """
    facts = CheckpointFacts.read(
        path,
        f"'ltd-pipe teacher --checkpoint {quote(str(path))} --arch NAME' makes one of ours of it.",
    )
    try:
        made_of = ("architecture", "class_names", "shape", "mean", "std", "temperature", "columns")
        model = Classifier.unfitted(**facts.model_dump(include=set(made_of)))
    except ModelError as error:
        raise CheckpointError(path, f"describes no model of ours ({error})") from error
    state = read_tensors(path)
    fit(model.network, state, path)
    found = _digest(state)
    if found != facts.weights_sha256:
        raise CheckpointError(
            path,
            "weights were changed after they were saved",
            expected=f"SHA-256 {facts.weights_sha256[:12]}",
            found=found[:12],
            remedy="Copy it again from where it came from.",
        )
    return model.eval()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file's tensors to the CPU; raises CheckpointError when it is damaged."""
    with open_safetensors(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def fit(network: nn.Module, state: Mapping[str, torch.Tensor], where: object) -> None:
    """Copy weights into a network after checking every name, shape, kind and value.

    A CheckpointError at `where` names the first differences; the network keeps its weights.
    """
    expected = network.state_dict()
    _require_names(expected.keys(), state.keys(), where)
    for name, tensor in expected.items():
        _require_like(tensor, state[name], f"{where}: {name}")
    # After the shapes: a view of huge shape over a few bytes must not be looked through.
    _require_finite(state, where)
    network.load_state_dict(dict(state))


def _require_names(expected: Collection[str], found: Collection[str], where: object) -> None:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if missing or unexpected:
        theirs = any("downsample" in name for name in unexpected)
        whose = " as torchvision:NAME or timm:NAME" if theirs else ""
        raise CheckpointError(
            where,
            f"holds weights of another network: {_listed('missing', missing)}, "
            f"{_listed('unexpected', unexpected)}",
            remedy=f"Name the architecture that it was trained with{whose}.",
        )


def _listed(what: str, names: list[str]) -> str:
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what} ({first})" if names else f"none {what}"


def _require_like(expected: torch.Tensor, found: torch.Tensor, where: str) -> None:
    if found.layout != torch.strided or found.is_meta or found.is_quantized:
        raise CheckpointError(where, "is no plain dense tensor")
    if found.shape != expected.shape:
        raise CheckpointError(
            where,
            "shape",
            expected=tuple(expected.shape),
            found=tuple(found.shape),
            remedy="Check architecture, number of classes and image shape.",
        )
    if found.is_floating_point() != expected.is_floating_point() or found.is_complex():
        raise CheckpointError(where, "dtype", expected=expected.dtype, found=found.dtype)


def _require_finite(state: Mapping[str, torch.Tensor], where: object) -> None:
    for name, tensor in state.items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise CheckpointError(
                f"{where}: {name}",
                "NaN or infinite weights",
                found=f"{bad:,} of {tensor.numel():,}",
                remedy="The training that wrote it diverged: take an earlier checkpoint.",
            )


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values of tensors on the CPU, in any order."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
