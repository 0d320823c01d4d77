"""Snapshots: what a run needs to continue as if it had never stopped.

Everything random is a function of (seed, stream, epoch, sample index), so the state is the
weights, their average, the optimiser and the number of steps done; there is no generator. What
was chosen by a measurement, which could end otherwise, is kept with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import StateError
from pipeline.publish import remove_state, staged, unwritable

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.provenance import StateRecord

__all__ = ["Progress", "Snapshots"]

_KEPT = 2


@dataclass
class Progress:
    """How far a run has come.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    history : list of dict
        One row per finished epoch: what was measured.
    sums : dict of str to float
        Sums over the steps of the epoch under way.
    best : dict
        Row of the best checkpoint so far, empty before the first.
    targets : dict of str to float
        The last finished epoch's sums, where a teacher in the run gave its targets.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)


class Snapshots:
    """The state of one run, in a folder named by the hash of all that decides its result.

    The last two are kept: when a power cut or a bad disk has spoilt the last one, the run goes
    on from the one before, to the same end.

    Parameters
    ----------
    folder : Path
        `STATE/<kind>-<key>`: an equal key, and only that, continues a run. What is measured
        (`Passes`) is not in the key.
    record : StateRecord, optional
        Kept beside the first one.
    """

    def __init__(self, folder: Path, record: StateRecord | None = None) -> None:
        self.folder, self._record = folder, record

    def save(
        self, progress: Progress, tensors: dict[str, Any], passes: dict[str, Any] | None = None
    ) -> None:
        """Write the state beside the last ones, rename it, and forget all but two.

        Parameters
        ----------
        progress : Progress
        tensors : dict
        passes : dict, optional
            How passes are computed (`Passes.chosen`).
        """
        # An epoch's last step has two: before its validation, and after.
        name = f"step-{progress.step:09d}-epoch-{len(progress.history):06d}.pt"
        target = self.folder / name
        if self._record is not None:
            self._record.write()
        with staged(target) as beside:
            try:
                torch.save(
                    {"progress": asdict(progress), "tensors": tensors, "passes": passes}, beside
                )
            except RuntimeError as error:  # torch's writer does not say OSError
                raise unwritable(target, error) from error
        for old in self._files()[_KEPT:]:
            old.unlink(missing_ok=True)

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        """The last state that can be read, or None when there is none.

        Raises
        ------
        StateError
            When there are some, and all are damaged.
        """
        found = self._newest()
        return found and found[:2]

    def passes(self) -> dict[str, Any] | None:
        """How the run's passes are computed; None when there is no state.

        Raises
        ------
        StateError
            When there are some, and all are damaged.
        """
        # Mapped, the tensors are not read; it is the same in all snapshots of a run.
        found = self._newest(mmap=True)
        return found and found[2]

    def _newest(
        self, *, mmap: bool = False
    ) -> tuple[Progress, dict[str, Any], dict[str, Any] | None] | None:
        first_error: Exception | None = None
        for file in self._files():
            try:
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
                return Progress(**content["progress"]), content["tensors"], content["passes"]
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

    def clear(self) -> None:
        """Forget the run."""
        remove_state(self.folder)

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)
