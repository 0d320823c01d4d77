"""The processes that torchrun started: which one this is, what they share, and who takes what."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe.errors import MachineError, ParamsError, StateError
from ltd_pipe.text import differences

# Between the first process and the last: imports from a cold disk take a minute.
_TIMEOUT = timedelta(minutes=10)
# While another works: a calibration, a batch of AutoAttack. One that dies is noticed at once.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """Processes that share a piece of work, and this one among them.

    Without torchrun there is one: then nothing is sent, and every sum is what it was. Among those
    on this machine it is `local_rank`: which GPU is its own.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> World:
        """As torchrun's environment variables say; alone without them."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not os.environ.keys() >= {*names}:
            return cls()
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """The process's own device, of the kind that was chosen.

        Raises
        ------
        MachineError
            When there are more processes than GPUs.
        """
        if chosen.type != "cuda" or self.size == 1:
            return chosen
        found = torch.cuda.device_count()
        if self.local_rank >= found:
            raise MachineError(
                "torchrun",
                "each process needs a GPU of its own",
                expected=f"--nproc-per-node {found} or less",
                found=f"a process of local rank {self.local_rank}",
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    @contextlib.contextmanager
    def connected(self, timeout: timedelta = _TIMEOUT) -> Iterator[None]:
        """Let the processes talk while the block runs, and wait so long for each other."""
        if self.size == 1 or torch.distributed.is_initialized():
            yield
            return
        # Small decisions stay on the host, where reading them makes no device wait.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with self._missing_explained():
            torch.distributed.init_process_group(backend, timeout=timeout)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()

    @contextlib.contextmanager
    def _missing_explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.missing() from error

    def missing(self) -> MachineError:
        """What to raise where a message to the others failed."""
        return MachineError(
            f"rank {self.rank} of {self.size}",
            "another process is missing or has ended",
            remedy="See its own message, and run it again: it goes on with what is kept.",
        )

    def broadcast_config(self, key: Mapping[str, Any], decide: Callable[[], Any]) -> Any:
        """What the first process decides, in all of them, once all are at the same work.

        Parameters
        ----------
        key : dict
            Plain values that must be equal in all processes.
        decide : callable
            Called in the first process.

        Raises
        ------
        StateError
            When a process has another key, naming what differs.
        """
        if self.size == 1:
            return decide()
        with self.connected():
            # All have come; now they wait as long as the first one takes.
            with self._missing_explained():
                patient = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
            decided = decide() if self.is_main else None
            everyone = self.all_gather((dict(key), decided), patient)
        first, decided = everyone[0]
        for rank, (other, _) in enumerate(everyone):
            for name, expected, found in differences(first, other):
                raise StateError(
                    f"rank {rank} of {self.size}",
                    f"is at other work than rank 0: {name}",
                    expected=repr(expected)[:40],
                    found=repr(found)[:40],
                    remedy="Give all machines the same code, packages and data.",
                )
        return decided

    def all_gather(self, mine: Any, group: Any = None) -> list[Any]:
        """What each process has, in the order of their ranks, in all of them."""
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        with self._missing_explained():
            torch.distributed.all_gather_object(everyone, mine, group=group)
        return everyone

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all of them."""
        if self.size == 1:
            return make()
        made = [make() if self.is_main else None]
        with self._missing_explained():
            torch.distributed.broadcast_object_list(made)
        return made[0]

    def all_reduce_(self, tensors: list[torch.Tensor]) -> None:
        """Add up tensors of one dtype over all processes in place, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._missing_explained():
            torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def sums(self, *counts: int) -> tuple[int, ...]:
        """Sums of whole numbers over all processes."""
        if self.size == 1:
            return counts
        sums = torch.tensor(counts, dtype=torch.int64)
        with self._missing_explained():
            torch.distributed.all_reduce(sums)
        return tuple(sums.tolist())


ALONE = World()


# --- The images of a step that each process takes: together they are those of one alone.


def images_per_epoch(images: int, batch_size: int) -> int:
    """How many of the images an epoch trains on: all, but for one that would be a step alone.

    One image has no batch statistics: batch normalisation refuses it where the features are one
    pixel, and learns its mean and a wrong variance where they are more. Which one is left out is
    the epoch's last, and so another one in each epoch.
    """
    return images - 1 if images > 1 and images % batch_size == 1 else images


def require_shards(
    images: int, batch_size: int, processes: int, unit: int = 1, *, synced: bool = True
) -> None:
    """Refuse a batch size that leaves a process without an image in some step.

    `batch_size` is of all processes together; of `unit` neighbours none are parted. Of several
    processes that are not `synced` each has batch statistics of its own, and needs two images.
    """
    if batch_size % (unit * processes):
        raise ParamsError(
            "batch_size",
            f"cannot be shared evenly among {processes} processes"
            + (f", {unit} neighbours together" if unit > 1 else ""),
            expected=f"a multiple of {unit * processes}",
            found=batch_size,
        )
    last, alone = images % batch_size, processes > 1 and not synced
    own = ", whose batch statistics are their own (sync_batch_norm: false)" if alone else ""
    for size, what, remedy in (
        (batch_size, f"gives {processes} processes {batch_size} image(s) a step", "Raise it."),
        (
            last,
            f"leaves {last} image(s) for the last step of an epoch of {images}",
            f"Set images: {images - last}, or another batch_size.",
        ),
    ):
        shares = np.bincount(np.arange(size) // unit % processes, minlength=processes)
        if size and shares.min() < (2 if alone else 1):
            least = "two" if alone else "one"
            raise ParamsError(
                "batch_size",
                what,
                expected=f"at least {least} for each of {processes} processes{own}",
                remedy=remedy,
            )


def shard(
    order: NDArray[np.int64], batch_size: int, world: World, unit: int = 1
) -> tuple[NDArray[np.int64], int]:
    """A process's images, step by step.

    Parameters
    ----------
    order : ndarray of shape (N,), dtype int64
        The epoch's samples in the order of training, the same in every process.
    batch_size : int
        Images per step, of all processes together: a multiple of their number and of `unit`.
    world : World
    unit : int
        Neighbours that go to one process, such as the pairs that are mixed with each other.

    Returns
    -------
    ndarray, dtype int64
        Of each step every n-th unit, of n processes: so all have a share of each part of a step.
    int
        How many samples make a step; the last step of the epoch may have fewer.
    """
    taker = np.arange(len(order)) // unit % world.size
    return order[taker == world.rank], batch_size // world.size


def step_parts(
    images: int, most: int, world: World, unit: int = 1, *, synced: bool = True
) -> list[slice]:
    """The parts of a step, in a process's share of it.

    They are cut before they are shared: each is made of the same images on any number of
    processes, as long as all of them have some of each part. Else there are fewer.

    Parameters
    ----------
    images : int
        Of the step, over all processes.
    most : int
        Parts, as long as batch statistics are of two images or more.
    world : World
    unit : int
        As of `shard`.
    synced : bool
        Whether batch statistics are those of all processes.
    """
    units = -(-images // unit)
    least = 2 if synced else 2 * world.size
    count = max(1, min(most, images // least, units // world.size))
    ends = [units * part // count for part in range(count + 1)]
    mine = [-(-(end - world.rank) // world.size) * unit for end in ends]
    return [slice(*pair) for pair in itertools.pairwise(mine)]
