"""Small classifiers whose every constant shows in the logits."""

from __future__ import annotations

import torch

from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build

CLASSES = ("ant", "bee", "<b>cat</b>", "döner")


def make_classifier(architecture, shape, temperature=1.5, columns=None):
    """A network in evaluation mode whose normalisation has moved, too."""
    network = build(architecture, len(CLASSES), shape)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # New ones are all alike: an export that lost them would not be found out.
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    channels = shape[0]
    return Classifier(
        network,
        architecture=architecture,
        class_names=CLASSES,
        shape=shape,
        mean=[0.3, 0.4, 0.5][:channels],
        std=[0.2, 0.25, 0.3][:channels],
        temperature=temperature,
        columns=columns,
    ).eval()


def save_student(model, path):
    """A checkpoint as `ltd-pipe train` writes it."""
    save_classifier(
        model,
        path,
        kind="student",
        seed=3,
        params={"eps": 0.1, "label_kind": "ltd"},
        data={"dataset": "digits", "fingerprint": "f" * 64},
        labels={"identity": "a" * 64, "temperature": 1.5},
    )
    return path
