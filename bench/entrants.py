"""The training loops that are compared, and their floor, from the same initial weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from our_loop import BarePasses, OurLoop
from rival_loop import RivalLoop
from sklearn.datasets import load_digits

from ltd_pipe.attacks import Frozen
from ltd_pipe.device import choose_device, choose_precision
from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.sources import ArraySource
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.params import PrepareParams, TeacherParams
from ltd_pipe.training.run import new_classifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ltd_pipe.device import PrecisionSettings
    from ltd_pipe.images.beton import Beton

__all__ = ["FLOOR", "OURS", "RIVAL", "Entrants"]

OURS, RIVAL, FLOOR = "ltd-pipe", "torchattacks, plain loop", "bare passes"


@dataclass
class Entrants:
    """Ours, the plain loop and the floor, on digits enlarged to 32×32 RGB.

    Attributes
    ----------
    ours : OurLoop
    rival : RivalLoop
    floor : BarePasses
    precision : PrecisionSettings
        Of ours and of the floor; the plain loop's are float32.
    settings : dict
        What all have in common.
    """

    ours: OurLoop
    rival: RivalLoop | None
    floor: BarePasses
    precision: PrecisionSettings
    settings: dict[str, Any]

    @classmethod
    def of(
        cls,
        folder: Path,
        *,
        architecture: str,
        batch: int,
        attack_steps: int,
        workers: int,
        precision: str,
        compiled: str,
        device_name: str,
        seed: int,
        channels_last: bool | str = "auto",
        rivalled: bool = True,
    ) -> Entrants:
        """Make them; without a rival, which needs torchattacks, when not `rivalled`."""
        device = choose_device(device_name)
        images, labels = _pictures()
        beton = _beton(folder / "train.beton", images, labels)
        params = TeacherParams(
            architecture=architecture,
            epochs=1,
            batch_size=batch,
            learning_rate=0.05,
            momentum=0.9,
            ema_decay=0.999,
            crop_padding=4,
            flip=True,
            precision=precision,
            channels_last=channels_last,
            compile=compiled,
        )
        model = new_classifier(params, beton.manifest, seed=seed, role="student", device=device)
        chosen = choose_precision(
            Frozen(model).current(),
            batch,
            precision=params.precision,
            channels_last=params.channels_last,
            compile=params.compile,
        )
        settings = {
            "architecture": architecture,
            "batch": batch,
            "attack_steps": attack_steps,
            "rate": params.learning_rate,
            "momentum": params.momentum,
            "weight_decay": params.weight_decay,
            "padding": params.crop_padding,
        }
        torch.manual_seed(seed)
        rival = None
        if rivalled:
            network = copy.deepcopy(model.network)
            rival = RivalLoop(network, images, labels, settings, device, workers)
        floor = BarePasses(copy.deepcopy(model), chosen, batch, attack_steps)
        stream, samples = ImageStream(beton, device), np.arange(len(labels))
        ours = OurLoop(model, stream, samples, params, chosen, settings, seed)
        return cls(ours, rival, floor, chosen, settings)

    def steps(self) -> dict[str, Callable[[], float]]:
        """By way: take a step, return its loss."""
        return {OURS: self._our_step, RIVAL: self._their_step}

    def _their_step(self) -> float:
        # As published code has it: with any kernels.
        before = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode("default")
        try:
            return self.rival.step()
        finally:
            torch.set_deterministic_debug_mode(before)

    def _our_step(self) -> float:
        self.ours.step()
        return self.ours.mean_loss()


def _beton(path: Path, images: Any, labels: Any) -> Beton:
    if not path.exists():
        prepare = PrepareParams(dataset="digits", validation_fraction=0)
        source = ArraySource("digits", tuple(map(str, range(10))), images, labels.astype(np.int32))
        write_beton(source, path, prepare, "train")
    return open_beton(path)


def _pictures() -> tuple[Any, Any]:
    """1,797 pictures of 32×32 RGB, dtype uint8, with their labels."""
    digits = load_digits()
    grey = (digits.images * 255 / 16).round().astype(np.uint8)
    large = grey.repeat(4, axis=1).repeat(4, axis=2)
    return np.stack([large] * 3, axis=3), digits.target.astype(np.int64)
