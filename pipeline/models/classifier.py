"""The classifier: a network with its normalisation, temperature and class names inside.

Whatever trains, attacks, evaluates or exports it passes images in [0, 1] and gets the logits
that the classifier is judged by, so these steps cannot come to use different constants.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ltd_pipe.errors import ModelError
from ltd_pipe.models.registry import build
from ltd_pipe.text import nfc, quoted


class Classifier(nn.Module):
    """A network that takes images in [0, 1] and divides its logits by its own temperature.

    Parameters
    ----------
    network : nn.Module
        Maps normalised images of shape (B, C, H, W) to logits of shape (B, K).
    architecture : str
        The network's name in the registry.
    class_names : sequence of str
        K names, all different.
    shape : tuple of int
        (C, H, W) of the images.
    mean, std : sequence of float, optional
        C values each, subtracted from and dividing the images; None: 0 and 1. They are no
        parameters: training leaves them as they are.
    temperature : float, default 1.0
        Divides the logits, in training and inference alike. Fixed for the model's life.
    columns : sequence of int, optional
        For each class the network's output that means it, where another project's network
        has the classes in another order; None: the outputs are in the order of the names.

    Raises
    ------
    ModelError
        When one of these contradicts another or is out of its range.
    """

    mean: torch.Tensor
    std: torch.Tensor
    columns: torch.Tensor | None

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: str,
        class_names: Sequence[str],
        shape: tuple[int, int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        temperature: float = 1.0,
        columns: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            expected = "a number above 0"
            raise ModelError(architecture, "temperature", expected=expected, found=temperature)
        if len(class_names) < 2 or len(set(class_names)) != len(class_names):
            raise ModelError(
                architecture,
                "class names",
                expected="two or more, all different",
                found=", ".join(class_names) or "none",
            )
        in_order = list(range(len(class_names)))
        if columns is not None and sorted(columns) != in_order:
            expected = f"each of 0 to {in_order[-1]} once"
            raise ModelError(architecture, "columns", expected=expected, found=list(columns))
        self.network = network
        self.architecture = architecture
        self.class_names = tuple(class_names)
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self._temperature = float(temperature)
        self._taken = {self.shape}
        channels = shape[0]
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float32))
        self.register_buffer("std", torch.ones(channels, dtype=torch.float32))
        zeros, ones = [0.0] * channels, [1.0] * channels
        self.normalise(zeros if mean is None else mean, ones if std is None else std)
        moved = None if columns is None or list(columns) == in_order else torch.tensor(columns)
        self.register_buffer("columns", moved, persistent=False)

    @classmethod
    def unfitted(
        cls, architecture: str, class_names: Sequence[str], shape: tuple[int, int, int], **more: Any
    ) -> Classifier:
        """One whose weights are to be overwritten: the caller's random numbers are not used up."""
        with torch.random.fork_rng(devices=[]):
            network = build(architecture, len(class_names), shape)
        return cls(network, architecture=architecture, class_names=class_names, shape=shape, **more)

    @property
    def temperature(self) -> float:
        """The model's own temperature; it cannot be set."""
        return self._temperature

    @property
    def description(self) -> dict[str, Any]:
        """Plain values (JSON): the arguments that make this classifier of its network."""
        columns = {} if self.columns is None else {"columns": self.columns.tolist()}
        return columns | {
            "architecture": self.architecture,
            "class_names": list(self.class_names),
            "shape": list(self.shape),
            # A float32 is exact as a Python float, and JSON keeps those to the last digit.
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "temperature": self.temperature,
        }

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, K), divided by the model's temperature.

        Parameters
        ----------
        images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
            The range is not checked: on a GPU that would wait for the device at every call.

        Raises
        ------
        ModelError
            When shape or dtype are others.
        """
        return self.raw_logits(images) / self._temperature

    def raw_logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits before the model's temperature; a teacher's labels are softened from these."""
        return self._ordered(self.network(self._normalised(images)))

    def exit_logits(self, images: torch.Tensor) -> list[torch.Tensor]:
        """What `forward` gives for each exit, the first exit first; ModelError where it has one."""
        self.require_exits()
        network: Any = self.network
        logits: list[torch.Tensor] = network.exit_logits(self._normalised(images))
        return [self._ordered(exit_) / self._temperature for exit_ in logits]

    @property
    def normalises(self) -> bool:
        """Whether its input normalisation changes anything."""
        return bool((self.mean != 0).any()) or bool((self.std != 1).any())

    def normalise(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take another input normalisation: of weights that do not say theirs."""
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != self.shape[0] or not all(map(math.isfinite, values)):
                expected = f"{self.shape[0]} numbers"
                raise ModelError(self.architecture, name, expected=expected, found=[*values])
        if min(std) <= 0:
            raise ModelError(self.architecture, "std", expected="numbers above 0", found=[*std])
        self.mean, self.std = (torch.tensor([*v]).to(self.mean) for v in (mean, std))

    def require_exits(self) -> int:
        """Refuse a network without several exits; how many it has."""
        network: Any = self.network
        if not hasattr(network, "exit_logits"):
            raise ModelError(
                self.architecture,
                "has one exit only",
                remedy="Choose small-cnn-exits or resnet18-exits.",
            )
        return int(network.num_exits)

    @contextlib.contextmanager
    def also_taking(self, sizes: Iterable[tuple[int, int]]) -> Iterator[None]:
        """Take images of these heights and widths too, in the block: training with growing ones.

        Outside of it, and so wherever the classifier is judged, images have its own shape. That
        the network can take them is what `ltd_pipe.models.registry.require_sizes` proves.
        """
        # In place: twins share it.
        before = set(self._taken)
        self._taken |= {(self.shape[0], *size) for size in sizes}
        try:
            yield
        finally:
            self._taken &= before

    def at_exit(self, number: int) -> Classifier:
        """The classifier that one exit is, counted from 1; with weights of its own.

        Saved as a checkpoint, it can be evaluated, exported and used as a teacher like any other.
        It holds the weights behind the exit, too, though it does not compute with them.
        """
        self.require_exits()
        architecture = f"{self.architecture.partition('@')[0]}@{number}"
        single = Classifier.unfitted(**self.description | {"architecture": architecture})
        single.network.load_state_dict(self.network.state_dict())
        return single.to(self.mean).train(self.training)

    def twin(self) -> Classifier:
        """A copy with the same weights and buffers, whose layers can be replaced."""
        shared: list[Any] = [*self.parameters(), *self.buffers(), self._taken]
        return copy.deepcopy(self, {id(part): part for part in shared})

    def require_data(
        self, class_names: Sequence[str], shape: tuple[int, int, int], data: str
    ) -> None:
        """Refuse a data set, called `data`, of other classes or image shape than the model's."""
        counts = len(class_names), self.num_classes
        for what, theirs, ours in (
            ("image shape", tuple(shape), self.shape),
            ("number of classes", *counts),
        ):
            if theirs != ours:
                raise ModelError(data, what, expected=f"{ours} by the model", found=theirs)
        for number, (own, other) in enumerate(zip(self.class_names, class_names, strict=True)):
            if nfc(own) != nfc(other):
                raise ModelError(
                    data,
                    f"class {number}",
                    expected=f"{quoted(own)} by the model",
                    found=quoted(other),
                    remedy="Give the data set the model's classes in the model's order.",
                )

    def _ordered(self, logits: torch.Tensor) -> torch.Tensor:
        # A loss of eight bits is none: on a CPU autocast leaves it in bfloat16, where the KL of
        # TRADES' attack cancels.
        logits = logits.to(self.mean.dtype)
        return logits if self.columns is None else logits[:, self.columns]

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != self.mean.dtype:
            raise ModelError(
                self.architecture,
                "dtype of the images",
                expected=self.mean.dtype,
                found=images.dtype,
                remedy="Divide uint8 images by 255." if images.dtype == torch.uint8 else "",
            )
        if images.ndim != 4 or tuple(images.shape[1:]) not in self._taken:
            raise ModelError(
                self.architecture,
                "shape of the images",
                expected=f"(B, {', '.join(map(str, self.shape))})",
                found=tuple(images.shape),
            )
        return (images - self.mean[:, None, None]) / self.std[:, None, None]
