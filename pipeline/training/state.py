"""Snapshots: what a run needs to continue as if it had never stopped.

Everything random is a function of (seed, stream, epoch, sample index), so the state is the
weights, their average, the optimiser and the number of steps done; there is no generator.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import StateError
from pipeline.publish import remove_state, staged, unwritable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Progress", "Snapshots"]


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
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)


class Snapshots:
    """The state of one run, in a folder named by the hash of all that decides its result.

    Parameters
    ----------
    folder : Path
        `STATE/<kind>-<key>`: an equal key, and only that, continues a run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "snapshot.pt"

    def save(self, progress: Progress, tensors: dict[str, Any]) -> None:
        """Write the state beside the last one, then rename."""
        with staged(self._file) as beside:
            try:
                torch.save({"progress": asdict(progress), "tensors": tensors}, beside)
            except RuntimeError as error:  # torch's writer does not say OSError
                raise unwritable(self._file, error) from error

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        """The last state, or None when there is none.

        Raises
        ------
        StateError
            When the file is damaged.
        """
        if not self._file.exists():
            return None
        try:
            content = torch.load(self._file, map_location="cpu", weights_only=True)
            return Progress(**content["progress"]), content["tensors"]
        except Exception as error:
            raise StateError(
                self._file,
                f"the snapshot cannot be read ({type(error).__name__})",
                remedy="Start over with --fresh.",
            ) from error

    def clear(self) -> None:
        """Forget the run."""
        remove_state(self.folder)
