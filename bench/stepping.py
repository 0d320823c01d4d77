"""One adversarial training step on this machine, and the least that one takes on a GPU."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from timing import Spread
from torch.utils.flop_counter import FlopCounterMode

from ltd_pipe.attacks import Adversary, Ball, cross_entropy
from ltd_pipe.device import autocast, choose_precision
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.rng import stream_key

__all__ = ["fastest_step", "forward_flops", "measure_step"]

# Peak of dense bfloat16 products, NVIDIA's data sheet of the H100 SXM: no step is faster.
_H100_FLOPS = 989e12
_NETWORKS = (("resnet18", 10, 32), ("torchvision:resnet50", 1000, 224))


def fastest_step(batch: int, attack_steps: int = 10) -> dict[str, float]:
    """Seconds of a step if a GPU always ran at its peak: a bound, not what anybody reaches.

    A pass of the attack is a forward and a backward one to the input, twice a forward one; the
    training pass also has the weights' gradients, three times.
    """
    passes = 2 * attack_steps + 3
    return {
        f"{name}, {pixels}×{pixels}": batch
        * passes
        * forward_flops(name, classes, pixels)
        / _H100_FLOPS
        for name, classes, pixels in _NETWORKS
    }


def forward_flops(architecture: str, classes: int, pixels: int) -> int:
    """Operations of a forward pass of one image, two for each multiply-add; nothing is computed."""
    shape = (3, pixels, pixels)
    with torch.device("meta"), torch.no_grad():
        # Before it counts: some networks are tried when they are built.
        network = build(architecture, classes, shape).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *shape))
    return int(counter.get_total_flops())


def measure_step(
    *, architecture: str, batch: int, attack_steps: int, count: int, device: torch.device, seed: int
) -> dict[str, Any]:
    """Time PGD adversarial training steps on random images, after one that is not counted."""
    torch.manual_seed(seed)
    shape, names = (3, 32, 32), tuple(map(str, range(10)))
    network = build(architecture, 10, shape)
    model = Classifier(network, architecture=architecture, class_names=names, shape=shape)
    model.to(device).train()
    precision = choose_precision(model, batch).precision
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.rand(batch, *shape, device=device)
    target = torch.softmax(torch.randn(batch, 10, device=device), dim=1)
    index = torch.arange(batch, device=device)

    adversary = Adversary(Ball("linf", 8 / 255), 2 / 255, attack_steps)
    attack = partial(
        adversary.attack, start="uniform", index=index, key=stream_key(seed, "attack-start")
    )

    def step() -> float:
        begin = time.perf_counter()
        with autocast(device, precision):
            points = attack(model, images, partial(cross_entropy, target=target))
            loss = cross_entropy(model(points), target).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()  # waits for the device
        return time.perf_counter() - begin

    step()
    return {
        "architecture": architecture,
        "batch": batch,
        "attack_steps": attack_steps,
        "precision": precision,
        "device": device.type,
        "seconds": vars(Spread.of([step() for _ in range(count)])),
    }
