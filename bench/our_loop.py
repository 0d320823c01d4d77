"""Our training steps as `ltd-pipe train` takes them, and the passes that no step can do without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ltd_pipe import objectives, rng
from ltd_pipe.attacks import Adversary, Ball
from ltd_pipe.device import autocast
from ltd_pipe.training.data import BatchTransform, LabelTargets
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.step import Step
from ltd_pipe.training.trainer import Meters, RunContext, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ltd_pipe.device import PrecisionSettings
    from ltd_pipe.images.stream import Batch, ImageStream
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import FitParams

__all__ = ["BarePasses", "OurLoop"]


class OurLoop:
    """Steps of our loop: augmentation, attack, update, moving average and meters.

    Parameters
    ----------
    model : Classifier
    stream : ImageStream
    samples : ndarray of shape (N,), dtype int64
    params : FitParams
    precision : PrecisionSettings
    settings : dict
        `batch`, `attack_steps`.
    seed : int
    """

    def __init__(
        self,
        model: Classifier,
        stream: ImageStream,
        samples: Any,
        params: FitParams,
        precision: PrecisionSettings,
        settings: dict[str, Any],
        seed: int,
    ) -> None:
        self._stream, self._samples = stream, samples
        model.train()
        self._batch, self._seed, self._rate = settings["batch"], seed, params.learning_rate
        task = Task(
            objective=objectives.Madry(),
            transform=BatchTransform(params, seed, LabelTargets(model.num_classes)),
            adversary=Adversary(Ball("linf", 8 / 255), 2 / 255, settings["attack_steps"]),
        )
        # Nothing is written: no snapshot is taken of single steps.
        context = RunContext(seed, Snapshots(Path("none")), precision)
        self._step = Step(model, task, params, context)
        self._meters, self._done = Meters(stream.device), 0
        self._batches = self._endless()

    def step(self) -> None:
        """One step."""
        batch, epoch = next(self._batches)
        info = objectives.StepInfo(step=self._done, epoch=epoch, learning_rate=self._rate)
        tally = self._step.take(batch, info, self._batch)
        self._meters.add(tally, self._batch, self._done)
        self._done += 1

    def mean_loss(self) -> float:
        """Of the steps since the last call; waits for the device."""
        sums = self._meters.read()
        self._meters = Meters(self._stream.device)
        return sums["loss"] / sums["images"]

    def _endless(self) -> Iterator[tuple[Batch, int]]:
        epoch = 0
        while True:
            order = rng.permutation(rng.stream_key(self._seed, "order", epoch), self._samples)
            whole = len(order) // self._batch * self._batch
            for batch in self._stream.batches(order[:whole], self._batch):
                yield batch, epoch
            epoch += 1


@dataclass
class BarePasses:
    """The floor of a step: its forward and backward passes through the bare network, alone.

    Attributes
    ----------
    model : Classifier
    precision : PrecisionSettings
    batch : int
    attack_steps : int
    """

    model: Classifier
    precision: PrecisionSettings
    batch: int
    attack_steps: int

    def __post_init__(self) -> None:
        self.precision.apply(self.model)
        self._device = next(self.model.parameters()).device
        self._images = torch.rand(self.batch, *self.model.shape, device=self._device)

    def step(self) -> None:
        """As many passes as a step of the attack and one of training."""
        self.model.eval().requires_grad_(requires_grad=False)
        for _ in range(self.attack_steps):
            images = self._images.detach().requires_grad_()
            torch.autograd.grad(self._logits(images).sum(), images)
        self.model.train().requires_grad_(requires_grad=True)
        gradients = torch.autograd.grad(self._logits(self._images).sum(), self._weights())
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        del gradients

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self._device, self.precision.precision):
            logits: torch.Tensor = self.model(images)
        return logits.float()

    def _weights(self) -> list[torch.nn.Parameter]:
        return list(self.model.parameters())
