"""Out of memory: how many images at a time would fit, found by trying."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

import torch

from pipeline.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.images.stream import Batch
    from pipeline.objectives import Moment
    from pipeline.team import Team
    from pipeline.training.step import Step

__all__ = ["out_of_memory_explained"]


@contextlib.contextmanager
def out_of_memory_explained(step: Step, batch: Batch, moment: Moment, team: Team) -> Iterator[None]:
    """Turn the block's lack of memory into an error that says what would fit.

    Parameters
    ----------
    step : Step
        Of which passes are tried with fewer images; the run is over by then.
    batch : Batch
        That did not fit.
    moment : Moment
    team : Team

    Raises
    ------
    MachineError
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_about_memory(error):
            raise
        reason = str(error).splitlines()[0]
    else:
        return
    # Outside the handler: the traceback would keep the tensors that are in the way.
    size = len(batch.rows)
    fits = _largest_that_fits(step, batch, moment) if team.count == 1 else None
    raise MachineError(
        f"{batch.images.device}: {size} images per step",
        f"do not fit into memory ({reason[:120]})",
        remedy=_remedy(size, fits),
    )


def _is_about_memory(error: BaseException) -> bool:
    # The CPU's allocator says no more than RuntimeError.
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in text
        or "not enough memory" in text
    )


def _remedy(size: int, fits: int | None) -> str:
    if fits is None:
        parts = 2
        tried = "Take fewer images at a time"
    elif fits == 0:
        return "Not even one image fits: take a smaller network or smaller images."
    else:
        parts = -(-size // fits)
        tried = f"{fits} at a time do"
    return (
        f"{tried}: set accumulation_steps: {parts}, which makes the same steps, "
        f"or batch_size: {fits or size // parts}."
    )


def _largest_that_fits(step: Step, batch: Batch, moment: Moment) -> int:
    size = len(batch.rows) // 2
    while size:
        gc.collect()
        if batch.images.is_cuda:
            torch.cuda.empty_cache()
        try:
            step.differentiate(step.attacked(batch.part(slice(size)), moment, size))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_about_memory(error):
                raise
            size //= 2
        else:
            return size
    return 0
