"""The distribution that each image is trained towards: of its label, or a teacher in the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

from ltd_pipe.models.checkpoint import load_classifier
from ltd_pipe.provenance import sha256_file

if TYPE_CHECKING:
    from ltd_pipe.images.manifest import Manifest
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives import StepInfo, TrainBatch


def onehot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """All mass on the true class: shape (B, K), dtype float32, from labels of shape (B,)."""
    return functional.one_hot(labels, num_classes).to(torch.float32)


def smoothed(labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """(1 - s) · onehot + s / K (Szegedy et al. 2016, section 7): shape (B, K), float32."""
    return onehot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def mixed(
    soft: torch.Tensor, labels: torch.Tensor, weight: float, *, rectify: bool
) -> torch.Tensor:
    """λ · soft label + (1 - λ) · one-hot label: shape (B, K), float32.

    `rectify` lowers λ where a soft label contradicts the ground truth, to
    λ_i = clip(λ - (max_k q_k - q_y), 0, 1), as in ADR (arXiv 2305.12118; yuyuwu5/ADR, adr.py).
    """
    hard = onehot(labels, soft.shape[1])
    if not rectify:
        return weight * soft + (1.0 - weight) * hard
    true = soft.gather(1, labels[:, None]).squeeze(1)
    share = (weight - (soft.amax(dim=1) - true)).clamp(0.0, 1.0)[:, None]
    return share * soft + (1.0 - share) * hard


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher in the run: frozen, in evaluation mode, its raw logits divided by a temperature.

    The hash is its file's.
    """

    model: Classifier
    temperature: float
    sha256: str

    @classmethod
    def open(cls, path: Path, manifest: Manifest, temperature: float = 1.0) -> LiveTeacher:
        """Load a checkpoint of ours, on the host; ModelError when it is of other images."""
        model = load_classifier(path)
        model.require_data(manifest.class_names, manifest.shape, f"the images for teacher {path}")
        frozen = model.requires_grad_(requires_grad=False).eval()
        return cls(frozen, temperature, sha256_file(path))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, K); gradients reach the images and no weight."""
        return self.model.raw_logits(images) / self.temperature

    def to(self, device: torch.device, *, channels_last: bool) -> LiveTeacher:
        """The teacher where images are, and in their memory format."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return replace(self, model=self.model.to(device).to(memory_format=layout))

    @property
    def facts(self) -> dict[str, Any]:
        """What a student's checkpoint says of it; plain values."""
        return {
            "sha256": self.sha256,
            "architecture": self.model.architecture,
            "temperature": self.temperature,
        }


class TeacherTargets(Protocol):
    """Targets that a model gives, in the run, for the very images of the step.

    It is asked once a step, before the attack, with the moving average of the weights as it is
    now; what it gives carries no gradient.
    """

    def __call__(self, batch: TrainBatch, average: Classifier) -> TrainBatch:
        """The batch with other targets."""


@dataclass(frozen=True)
class LiveTargets:
    """The teacher's answers to the clean images; `weight` and `rectify` as in `mixed`."""

    teacher: LiveTeacher
    weight: float = 1.0
    rectify: bool = False

    @torch.no_grad()
    def __call__(self, batch: TrainBatch, average: Classifier) -> TrainBatch:
        """See `TeacherTargets`."""
        del average
        soft = torch.softmax(self.teacher(batch.images), dim=1)
        truth = batch.truth.argmax(dim=1)
        return replace(batch, target=mixed(soft, truth, self.weight, rectify=self.rectify))


@dataclass(frozen=True)
class SelfDistillation:
    """ADR: the moving average's answers to the clean images (Wu et al. 2024, arXiv 2305.12118).

    With p = softmax(average's raw logits / τ), the target is λ_i · p + (1 - λ_i) · onehot(y), λ_i
    rectified as in `mixed`: equations 3 to 5, as third parties number them.

    In the authors' code (yuyuwu5/ADR, adr.py and advTrainer.py) the average begins at the
    initial weights with its full decay; ours follows faster in the first steps. Their attack in
    adversarial training maximises the loss of this target (`attack_label: target`); TRADES' is
    as it was.
    """

    # τ and λ at the first step and after the last one; annealed over all steps of the run.
    temperatures: tuple[float, float]
    weights: tuple[float, float]

    @torch.no_grad()
    def __call__(self, batch: TrainBatch, average: Classifier) -> TrainBatch:
        """See `TeacherTargets`."""
        temperature = annealed(self.temperatures, batch.info)
        weight = annealed(self.weights, batch.info)
        soft = torch.softmax(average.raw_logits(batch.images) / temperature, dim=1)
        truth = batch.truth.argmax(dim=1)
        return replace(batch, target=mixed(soft, truth, weight, rectify=True))


def annealed(ends: tuple[float, float], info: StepInfo) -> float:
    """Half a cosine wave from the first step's value towards the value after the last step."""
    first, last = ends
    wave = 0.5 * (1.0 + math.cos(math.pi * info.step / info.steps))
    return last + (first - last) * wave
