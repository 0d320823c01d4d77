"""The processes that torchrun started: which one this is, and what they must agree on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from pipeline.differences import differences
from pipeline.errors import MachineError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Team"]

# Between the first process and the last: imports from a cold disk take a minute.
_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Team:
    """Processes that share a piece of work.

    They talk once, before the work, and know nothing of each other afterwards: what is done is
    told by files.

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
        try:
            torch.distributed.init_process_group("gloo", timeout=_TIMEOUT)
            try:
                torch.distributed.all_gather_object(everyone, (dict(key), decided))
            finally:
                torch.distributed.destroy_process_group()
        except RuntimeError as error:
            raise MachineError(
                f"rank {self.rank} of {self.count}",
                "another process is missing or has ended",
                remedy="See its own message, and run it again: what is done is kept.",
            ) from error
        first, decided = everyone[0]
        for rank, (other, _) in enumerate(everyone):
            for name, expected, found in differences(first, other):
                raise StateError(
                    f"rank {rank} of {self.count}",
                    f"works on other labels than rank 0: {name}",
                    expected=repr(expected)[:40],
                    found=repr(found)[:40],
                    remedy="Give all machines the same code, packages and data.",
                )
        return decided
