"""Our training steps as `ltd-pipe train` takes them, and the passes that no step can do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ltd_pipe import objectives, rng
from ltd_pipe.attacks import Adversary, Ball
from ltd_pipe.device import autocast
from ltd_pipe.distributed import World
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.training.data import FreshExamples, onehot
from ltd_pipe.training.optim import MovingAverage
from ltd_pipe.training.step import Step
from ltd_pipe.training.trainer import Meters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ltd_pipe.images.stream import Batch, ImageStream
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import FitParams
    from ltd_pipe.training.precision import Passes

__all__ = ["BarePasses", "OurLoop"]


class OurLoop:
    """Steps of our loop: augmentation, attack, update, moving average and meters.

    Parameters
    ----------
    model : Classifier
    stream : ImageStream
    samples : ndarray of shape (N,), dtype int64
    params : FitParams
    passes : Passes
    settings : dict
        `batch`, `attack_steps`, `padding`.
    seed : int
    """

    def __init__(
        self,
        model: Classifier,
        stream: ImageStream,
        samples: Any,
        params: FitParams,
        passes: Passes,
        settings: dict[str, Any],
        seed: int,
    ) -> None:
        passes.apply(model)
        self._model, self._stream, self._samples = model.train(), stream, samples
        self._batch, self._seed, self._rate = settings["batch"], seed, params.learning_rate
        classes = model.num_classes
        self._step = Step(
            model=model,
            objective=objectives.Madry(),
            examples=FreshExamples(
                Augmentation(settings["padding"], flip=True),
                seed,
                lambda batch: onehot(batch.labels, classes),
            ),
            adversary=Adversary(Ball("linf", 8 / 255), 2 / 255, settings["attack_steps"]),
            awp=None,
            params=params,
            seed=seed,
            passes=passes,
            world=World(),
        )
        self._average = MovingAverage(model, params.ema_decay)
        self._meters, self._done = Meters(stream.device), 0
        self._batches = self._endless()

    def step(self) -> None:
        """One step."""
        batch, epoch = next(self._batches)
        moment = objectives.Moment(step=self._done, epoch=epoch)
        tally = self._step.take(batch, moment, self._rate, self._batch)
        self._meters.add(tally, self._batch, self._done)
        self._done += 1
        self._average.update(self._model, self._done)

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
    passes : Passes
    batch : int
    attack_steps : int
    """

    model: Classifier
    passes: Passes
    batch: int
    attack_steps: int

    def __post_init__(self) -> None:
        self.passes.apply(self.model)
        self._device = next(self.model.parameters()).device
        self._images = torch.rand(self.batch, *self.model.shape, device=self._device)

    def step(self) -> None:
        """As many passes as a step of the attack and one of training."""
        self.model.eval()
        for _ in range(self.attack_steps):
            images = self._images.detach().requires_grad_()
            torch.autograd.grad(self._logits(images).sum(), images)
        self.model.train()
        gradients = torch.autograd.grad(self._logits(self._images).sum(), self._weights())
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        del gradients

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self._device, self.passes.precision):
            logits: torch.Tensor = self.model(images)
        return logits.float()

    def _weights(self) -> list[torch.nn.Parameter]:
        return list(self.model.parameters())
