"""Classifiers on disk: safetensors with the whole description in the metadata.

The tensors are the network's own state dict, under the names of RobustBench's model zoo where
it has that network; `header` lists what stands beside them. No pickle's code is ever run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from ltd_pipe.errors import CheckpointError, ModelError
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.foreign import (
    KEY,
    Header,
    describe,
    fit,
    is_pickle,
    load_foreign,
    parse_header,
    read_metadata,
    read_tensors,
    require_file,
    require_finite,
    weights_digest,
)
from ltd_pipe.models.registry import build
from ltd_pipe.publish import staged, unwritable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "is_own",
    "load_classifier",
    "load_foreign",
    "open_classifier",
    "read_facts",
    "save_classifier",
]


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
    require_finite(state, path)
    metadata = {KEY: describe(model, weights_digest(state), facts)}
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
    header = _read_header(path)
    try:
        model = _described(header)
    except ModelError as error:
        raise CheckpointError(path, f"describes no model of ours ({error})") from error
    state = read_tensors(path)
    fit(model.network, state, path)
    found = weights_digest(state)
    if found != header.weights_sha256:
        raise CheckpointError(
            path,
            "weights were changed after they were saved",
            expected=f"SHA-256 {header.weights_sha256[:12]}",
            found=found[:12],
            remedy="Copy it again from where it came from.",
        )
    return model.eval()


def is_own(path: Path) -> bool:
    """Whether a file is of `save_classifier`, and so describes itself.

    Raises
    ------
    MissingError, CheckpointError
        When it is no file, or damaged.
    """
    require_file(path)
    return not is_pickle(path) and KEY in read_metadata(path)


def read_facts(path: Path) -> dict[str, Any]:
    """The checkpoint's description: the model's constants and the facts saved with it.

    Raises
    ------
    MissingError, CheckpointError
        As `load_classifier`, but the weights are not looked at.
    """
    return _read_header(path).model_dump(mode="json")


def open_classifier(
    path: Path,
    *,
    architecture: str,
    class_names: Sequence[str],
    shape: tuple[int, int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    columns: Sequence[int] | None = None,
) -> Classifier:
    """Load a checkpoint of either kind for a data set.

    Parameters
    ----------
    path : Path
        Of `save_classifier`, which describes itself, or of another project.
    architecture : str
        Of the other project's network; a checkpoint of ours brings its own.
    class_names, shape
        The data set's; a checkpoint of ours must have been made for them.
    mean, std, columns : optional
        As for `load_foreign`; a checkpoint of ours brings its own.

    Raises
    ------
    MissingError, CheckpointError, ModelError
        See `load_classifier` and `load_foreign`.
    """
    if not is_own(path):
        return load_foreign(
            path,
            architecture,
            len(class_names),
            shape,
            class_names,
            mean,
            std,
            columns=columns,
        )
    model = load_classifier(path)
    model.require_data(class_names, shape, f"the data for {path}")
    return model


def _read_header(path: Path) -> Header:
    require_file(path)
    if is_pickle(path):
        raise CheckpointError(
            path,
            "is a pickle, which can hold code and is never loaded as it is",
            remedy="Pass --arch NAME, its network: only the tensors are taken out of it.",
        )
    metadata = read_metadata(path)
    if KEY not in metadata:
        raise CheckpointError(
            path,
            "holds weights without a description of their network",
            remedy="Pass --arch NAME to say which network they belong to.",
        )
    return parse_header(metadata[KEY], path)


def _described(header: Header) -> Classifier:
    # The new weights are overwritten: the caller's random numbers must not be used up.
    with torch.random.fork_rng(devices=[]):
        network = build(header.architecture, header.num_classes, header.shape)
    return Classifier(
        network,
        architecture=header.architecture,
        class_names=header.class_names,
        shape=header.shape,
        mean=header.mean,
        std=header.std,
        temperature=header.temperature,
        columns=header.columns,
    )
