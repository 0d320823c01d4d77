"""Dropout and stochastic depth: what a network draws for itself is a function of the step.

Such modules draw from torch's own generators, which have a state. Seeded anew before each step,
they need no place in a snapshot, and an interrupted run draws what it would have drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline import rng

if TYPE_CHECKING:
    import contextlib

__all__ = ["caller_generators_kept", "seed_dropout"]


def caller_generators_kept(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Put torch's generators back, when the block ends, to where the caller had them.

    Parameters
    ----------
    device : torch.device
        Of the network; the CPU's generator is put back too.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seed_dropout(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed what the modules of a network draw from during one step.

    Always done, since it costs microseconds, and a network without such modules draws nothing. The
    device is not waited for.

    Parameters
    ----------
    seed : int
        The run's.
    step : int
        Of the run.
    rank : int
        Of this process. Each draws for its own images, so they must not draw alike.
    device : torch.device
        Of the network; the CPU's generator is seeded too.
    """
    key = rng.stream_key(seed, f"dropout/{rank}", step) >> 1
    # Not torch.manual_seed: without a GPU it keeps a record of every call, for when one is used.
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(key)
