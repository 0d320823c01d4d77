"""Snapshots: what a run needs to continue as if it had never stopped.

Everything random is a function of (seed, stream, epoch, sample index), so the state is the
weights, their average, the optimiser and the number of steps done; there is no generator. What
was chosen by a measurement, which could end otherwise, is kept with it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map_only

from ltd_pipe.device import PrecisionSettings
from ltd_pipe.errors import StateError
from ltd_pipe.publish import remove_state, staged, unwritable

if TYPE_CHECKING:
    from ltd_pipe.provenance import StateRecord

_KEPT = 2

# What was measured in an epoch.
Row = dict[str, float]


@dataclass
class Progress:
    """How far a run has come."""

    # Optimiser steps done.
    step: int = 0
    # One row per finished epoch, and the best checkpoint's.
    history: list[Row] = field(default_factory=list)
    best: Row = field(default_factory=dict)
    # Sums over the steps of the epoch under way, and over the last finished one, where a teacher
    # in the run gave its targets.
    sums: dict[str, float] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)


class Snapshots:
    """The state of one run, in a folder named by the hash of all that decides its result.

    The last two are kept: when a power cut or a bad disk has spoilt the last one, the run goes
    on from the one before, to the same end. The record, if any, is kept beside the first one.
    From a GPU the state is copied to the host and written on a thread, while it goes on.
    """

    def __init__(
        self, folder: Path, record: StateRecord | None = None, *, device: str = "cpu"
    ) -> None:
        self.folder, self._record, self._device = folder, record, device
        behind = device == "cuda"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshot") if behind else None
        self._pending: Future[None] | None = None

    def save(
        self, progress: Progress, tensors: dict[str, Any], precision: PrecisionSettings
    ) -> None:
        """Write the state beside the last ones, rename it, and forget all but two."""
        self.wait()
        # An epoch's last step has two: before its validation, and after.
        name = f"step-{progress.step:09d}-epoch-{len(progress.history):06d}.pt"
        chosen = precision.decides | {"measured": precision.measured}
        content: dict[str, Any] = {"progress": asdict(progress), "tensors": tensors}
        content |= {"precision": chosen, "device": self._device}
        if self._pool is None:
            self._write(self.folder / name, content)
            return
        content["tensors"] = tree_map_only(
            torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), tensors
        )
        self._pending = self._pool.submit(self._write, self.folder / name, content)

    def wait(self) -> None:
        """Let the last snapshot be on disk; raises what kept it from getting there."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, target: Path, content: dict[str, Any]) -> None:
        if self._record is not None:
            self._record.write()
        with staged(target) as beside:
            try:
                torch.save(content, beside)
            except RuntimeError as error:  # torch's writer does not say OSError
                raise unwritable(target, error) from error
        for old in self._files()[_KEPT:]:
            old.unlink(missing_ok=True)

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        """The last state that can be read; StateError when there are some, all damaged."""
        content = self._newest()
        return content and (Progress(**content["progress"]), content["tensors"])

    def precision(self) -> PrecisionSettings | None:
        """The choice with which the run goes on; errors as in `load`."""
        # Mapped, the tensors are not read.
        content = self._newest(mmap=True)
        # What was chosen for a GPU says nothing of a CPU.
        if not content or content["device"] != self._device:
            return None
        return PrecisionSettings(**content["precision"], resumed=True)

    def clear(self) -> None:
        """Forget the run."""
        self.wait()
        remove_state(self.folder)

    def _newest(self, *, mmap: bool = False) -> Any:
        first_error: Exception | None = None
        for file in self._files():
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
            except PermissionError:
                raise  # it is whole, and of somebody else
            except Exception as error:
                first_error = first_error or error
        if first_error is None:
            return None
        raise StateError(
            self._files()[0],
            f"the snapshot cannot be read ({type(first_error).__name__})",
            remedy="Start over with --fresh.",
        ) from first_error

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)
