"""A teacher that is asked in the run: frozen, in evaluation mode, of the data's classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pipeline.models.checkpoint import load_classifier
from pipeline.provenance import sha256_file
from pipeline.training import targets

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.images.manifest import Manifest
    from pipeline.models.classifier import Classifier
    from pipeline.objectives import Labels

__all__ = ["LiveLabels", "LiveTeacher", "open_teacher"]


@dataclass(frozen=True)
class LiveTeacher:
    """Answers with logits at one temperature, whatever temperature it was trained at.

    Attributes
    ----------
    model : Classifier
        Frozen, in evaluation mode.
    temperature : float
        Divides its raw logits.
    sha256 : str
        Of its file.
    """

    model: Classifier
    temperature: float
    sha256: str

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, K); gradients reach the images and no weight."""
        return self.model.raw_logits(images) / self.temperature

    def placed(self, device: torch.device, *, channels_last: bool) -> LiveTeacher:
        """The teacher where images are, and in their memory format."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = self.model.to(device).to(memory_format=layout)
        return replace(self, model=model)

    @property
    def facts(self) -> dict[str, Any]:
        """What a student's checkpoint says of it; plain values."""
        return {
            "sha256": self.sha256,
            "architecture": self.model.architecture,
            "temperature": self.temperature,
        }


def open_teacher(path: Path, manifest: Manifest, temperature: float = 1.0) -> LiveTeacher:
    """Load a checkpoint of ours as a teacher for some images, on the host.

    Parameters
    ----------
    path : Path
    manifest : Manifest
        Of the training images.
    temperature : float
        Divides its raw logits.

    Raises
    ------
    MissingError, CheckpointError
        When there is no such checkpoint, or it is damaged.
    ModelError
        When it is of other classes, of another order of them, or of another shape of images.
    """
    model = load_classifier(path)
    model.require_data(manifest.class_names, manifest.shape, f"the images for teacher {path}")
    frozen = model.requires_grad_(requires_grad=False).eval()
    return LiveTeacher(frozen, temperature, sha256_file(path))


@dataclass(frozen=True)
class LiveLabels:
    """The teacher's answers to the very images of a step, as labels.

    Attributes
    ----------
    teacher : LiveTeacher
    weight : float
        Of the answer, in [0, 1]; the rest is one-hot.
    rectify : bool
        Lower the weight per sample, see `pipeline.training.targets.rectified_weight`.
    """

    teacher: LiveTeacher
    weight: float = 1.0
    rectify: bool = False

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, labels: Labels) -> Labels:
        """The labels with the teacher's answers as targets."""
        soft = torch.softmax(self.teacher(images).float(), dim=1)
        truth = labels.truth.argmax(dim=1)
        return replace(labels, target=targets.mixed(soft, truth, self.weight, rectify=self.rectify))
