"""Adversarial training as published code writes it: a DataLoader, torchattacks, float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RivalLoop", "torchattacks"]

try:
    import torchattacks
except ImportError:
    # It pins a requests of 2020, so that no resolver takes it in beside today's packages.
    torchattacks = None


class _Pictures(Dataset[tuple[Any, int]]):
    """Pictures augmented one by one, as torchvision's CIFAR10 gives them."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], padding: int) -> None:
        self._images, self._labels = images, labels
        self._transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(images.shape[1], padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(self._images[index]), int(self._labels[index])


class RivalLoop:
    """Steps of PGD adversarial training in the manner of MAIR and of torchattacks' README.

    Parameters
    ----------
    network : Module
        Maps images in [0, 1] to logits.
    images : ndarray of shape (N, H, W, 3), dtype uint8
    labels : ndarray of shape (N,), dtype int64
    settings : dict
        `batch`, `attack_steps`, `rate`, `momentum`, `weight_decay`, `padding`.
    device : torch.device
    workers : int
        Of the loader.
    """

    def __init__(
        self,
        network: nn.Module,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        settings: dict[str, Any],
        device: torch.device,
        workers: int,
    ) -> None:
        self._network, self._device = network.to(device), device
        self._loader = DataLoader(
            _Pictures(images, labels, settings["padding"]),
            settings["batch"],
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._attack = torchattacks.PGD(
            self._network, eps=8 / 255, alpha=2 / 255, steps=settings["attack_steps"]
        )
        self._optimiser = torch.optim.SGD(
            self._network.parameters(),
            lr=settings["rate"],
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
        )
        self._batches = self._endless()

    def set_rate(self, rate: float) -> None:
        """The learning rate from the next step on."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate

    def step(self) -> float:
        """One step; its loss."""
        images, labels = next(self._batches)
        images, labels = images.to(self._device), labels.to(self._device)
        self._network.train()
        adversarial = self._attack(images, labels)
        loss = nn.functional.cross_entropy(self._network(adversarial), labels)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return loss.item()

    def _endless(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from self._loader
