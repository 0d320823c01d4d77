"""The processes that torchrun started: which one this is, and what they must agree on."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from pipeline.differences import differences
from pipeline.errors import MachineError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Team"]

# Between the first process and the last: imports from a cold disk take a minute.
_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Team:
    """Processes that share a piece of work.

    One process alone is a team, too: then nothing is sent, and every sum is what it was.

    Attributes
    ----------
    rank : int
        Of this process, below `count`.
    count : int
        Of processes; one without torchrun.
    local_rank : int
        Of this process among those on this machine: which GPU is its own.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Team:
        """As torchrun's environment variables say; alone without them."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        found = [os.environ.get(name) for name in names]
        if any(value is None for value in found):
            return cls()
        return cls(*(int(value or 0) for value in found))

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """The process's own device, of the kind that was chosen.

        Raises
        ------
        MachineError
            When there are more processes than GPUs.
        """
        if chosen.type != "cuda" or self.count == 1:
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
    def connected(self) -> Iterator[None]:
        """Let the processes talk while the block runs.

        Raises
        ------
        MachineError
            When they cannot find each other.
        """
        if self.count == 1 or torch.distributed.is_initialized():
            yield
            return
        # Small decisions stay on the host, where reading them makes no device wait.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with self._all_there():
            torch.distributed.init_process_group(backend, timeout=_TIMEOUT)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()

    @contextlib.contextmanager
    def _all_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise MachineError(
                f"rank {self.rank} of {self.count}",
                "another process is missing or has ended",
                remedy="See its own message, and run it again: what is done is kept.",
            ) from error

    def agree(self, key: Mapping[str, Any], decide: Callable[[], Any]) -> Any:
        """Make sure that all are at the same work, and let the first decide what may vary.

        Parameters
        ----------
        key : dict
            Plain values that must be equal in all processes.
        decide : callable
            Called in the first process.

        Returns
        -------
        Any
            What `decide` gave there.

        Raises
        ------
        StateError
            When a process has another key, naming what differs.
        MachineError
            When another process is missing, or has ended.
        """
        if self.count == 1:
            return decide()
        decided = decide() if self.leads else None
        everyone: list[Any] = [None] * self.count
        with self.connected(), self._all_there():
            torch.distributed.all_gather_object(everyone, (dict(key), decided))
        first, decided = everyone[0]
        for rank, (other, _) in enumerate(everyone):
            for name, expected, found in differences(first, other):
                raise StateError(
                    f"rank {rank} of {self.count}",
                    f"is at other work than rank 0: {name}",
                    expected=repr(expected)[:40],
                    found=repr(found)[:40],
                    remedy="Give all machines the same code, packages and data.",
                )
        return decided

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all of them."""
        if self.count == 1:
            return make()
        made = [make() if self.leads else None]
        with self._all_there():
            torch.distributed.broadcast_object_list(made)
        return made[0]

    def sum_(self, tensors: list[torch.Tensor]) -> None:
        """Add up tensors of all processes in place, in one message.

        Parameters
        ----------
        tensors : list of Tensor, dtype float32
            Of the same shapes in every process, on its device.
        """
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._all_there():
            torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is up in some process."""
        if self.count == 1:
            return flags
        return tuple(total > 0 for total in self.totals(*map(int, flags)))

    def totals(self, *counts: int) -> tuple[int, ...]:
        """Sums of whole numbers over all processes."""
        if self.count == 1:
            return counts
        sums = torch.tensor(counts, dtype=torch.int64)
        with self._all_there():
            torch.distributed.all_reduce(sums)
        return tuple(sums.tolist())
