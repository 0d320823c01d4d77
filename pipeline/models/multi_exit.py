"""Single exits of a network that has several."""

from __future__ import annotations

import torch

from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build

__all__ = ["at_exit"]


def at_exit(model: Classifier, number: int) -> Classifier:
    """The classifier that one exit is: what is attacked and measured when that exit is.

    Saved as a checkpoint, it can be evaluated, exported and used as a teacher like any other.
    It holds the weights behind the exit, too, though it does not compute with them.

    Parameters
    ----------
    model : Classifier
        Of a network with exits.
    number : int
        Counted from 1.

    Returns
    -------
    Classifier
        In the mode that the model is in, on its device, with weights of its own.

    Raises
    ------
    ModelError
        When the network has no such exit.
    """
    model.require_exits()
    architecture = f"{model.architecture.partition('@')[0]}@{number}"
    with torch.random.fork_rng(devices=[]):  # the new weights are thrown away
        network = build(architecture, model.num_classes, model.shape)
    single = Classifier(
        network,
        architecture=architecture,
        class_names=model.class_names,
        shape=model.shape,
        mean=model.mean.tolist(),
        std=model.std.tolist(),
        temperature=model.temperature,
        columns=None if model.columns is None else model.columns.tolist(),
    )
    single.load_state_dict(model.state_dict())
    return single.to(model.mean.device).train(model.training)
