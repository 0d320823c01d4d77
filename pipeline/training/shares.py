"""Which images of a step each process takes, so that together they are those of one alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ParamsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.team import Team

__all__ = ["images_per_epoch", "require_shares", "share_of"]


def images_per_epoch(images: int, batch_size: int) -> int:
    """How many of the images an epoch trains on: all, but for one that would be a step alone.

    One image has no batch statistics: batch normalisation refuses it where the features are one
    pixel, and learns its mean and a wrong variance where they are more. Which one is left out is
    the epoch's last, and so another one in each epoch.

    Parameters
    ----------
    images : int
        Above 0.
    batch_size : int
        Images per step.
    """
    return images - 1 if images > 1 and images % batch_size == 1 else images


def require_shares(images: int, batch_size: int, processes: int, unit: int = 1) -> None:
    """Refuse what leaves a process without an image in some step.

    Parameters
    ----------
    images : int
        Of an epoch.
    batch_size : int
        Images per step, of all processes together.
    processes : int
    unit : int
        Neighbours that are not parted.

    Raises
    ------
    ParamsError
    """
    if batch_size % (unit * processes):
        raise ParamsError(
            "batch_size",
            f"cannot be shared evenly among {processes} processes"
            + (f", {unit} neighbours together" if unit > 1 else ""),
            expected=f"a multiple of {unit * processes}",
            found=batch_size,
        )
    last = images % batch_size
    if 0 < last <= unit * (processes - 1):
        raise ParamsError(
            "batch_size",
            f"leaves {last} image(s) for the last step of an epoch of {images}",
            expected=f"at least one for each of {processes} processes",
            remedy=f"Set images: {images - last}, or another batch_size.",
        )


def share_of(
    order: NDArray[np.int64], batch_size: int, team: Team, unit: int = 1
) -> tuple[NDArray[np.int64], int]:
    """A process's images, step by step.

    Parameters
    ----------
    order : ndarray of shape (N,), dtype int64
        The epoch's samples in the order of training, the same in every process.
    batch_size : int
        Images per step, of all processes together: a multiple of their number and of `unit`.
    team : Team
    unit : int
        Neighbours that go to one process, such as the pairs that are mixed with each other.

    Returns
    -------
    ndarray, dtype int64
        The process's samples: of each step one piece, and all pieces of a step in the order of
        the processes are the step's samples.
    int
        How many of them make a step; the last step of the epoch may have fewer.
    """
    whole = len(order) // batch_size * batch_size
    size = batch_size // team.count
    steps = order[:whole].reshape(-1, team.count, size)
    last = _parts(order[whole:], team.count, unit)[team.rank]
    return np.concatenate([steps[:, team.rank].reshape(-1), last]), size


def _parts(samples: NDArray[np.int64], count: int, unit: int) -> list[NDArray[np.int64]]:
    units = -(-len(samples) // unit)
    ends = [unit * len(part) for part in np.array_split(np.arange(units), count)]
    return np.split(samples, np.cumsum(ends)[:-1])
