"""What ends a run early: a request to stop, too little memory, a batch of one image."""

from __future__ import annotations

import contextlib
import gc
import re
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import torch

from ltd_pipe.distributed import World
from ltd_pipe.errors import MachineError, ParamsError, reason_of

if TYPE_CHECKING:
    from ltd_pipe.images.stream import Batch
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives import StepInfo
    from ltd_pipe.params import FitParams
    from ltd_pipe.training.step import Step


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved."""


class StopRequest:
    """Turns signals that end a process into a request that the block looks at when it is ready.

    The first one sets `received`, a second one stops at once. SIGHUP comes when a terminal or an
    ssh session is closed, SIGUSR1 from batch systems; where they are ignored, as under nohup,
    they stay so. `on_request` is called at the first one, in the signal's handler; with
    `keep_waiting` a second one is the first, passed on by another process.
    """

    def __init__(self, *, keep_waiting: bool, on_request: Callable[[], None]) -> None:
        self.received, self._keep_waiting, self._on_request = False, keep_waiting, on_request
        self._at_once = False

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
        ignored = [n for n in numbers[2:] if signal.getsignal(n) is signal.SIG_IGN]
        self._before = {n: signal.signal(n, self._handle) for n in numbers if n not in ignored}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.received and not self._keep_waiting:
            raise KeyboardInterrupt
        if not self.received:
            self._on_request()
        self.received = True
        if self._at_once:
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Interrupted within the block, which leaves nothing half done."""
        if self._keep_waiting:  # the others would wait for this process
            yield
            return
        if self.received:
            raise Interrupted
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


# Such as the adaptive pooling of VGG and AlexNet, to more than one pixel, on a GPU.
_NOT_DETERMINISTIC = "does not have a deterministic implementation"
# Of what carries messages between processes, where one has gone within a pass.
_NO_MESSAGE = re.compile("/gloo/|NCCL")
# Of torch.nn.functional.batch_norm, where the features of the one image are one pixel.
_NO_STATISTICS = "Expected more than 1 value per channel when training"


@contextlib.contextmanager
def failures_explained(
    step: Step, batch: Batch, info: StepInfo, accumulated: int, *, alone: bool
) -> Iterator[None]:
    """Turn the failures that a batch size causes into errors that say what to set.

    ParamsError on a single image, of which batch normalisation has no statistics; MachineError
    on too little memory, with how many images fit where the process is alone: passes are tried
    with fewer, since the run is over by then. `accumulated` is `accumulation_steps`.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, ValueError) as error:
        if _NO_STATISTICS in str(error):
            raise ParamsError(
                "batch_size",
                f"{step.model.architecture} normalises by batch statistics, which one image has "
                "not",
                expected="two images or more in each pass of each process",
                remedy="Raise batch_size (or images), or lower accumulation_steps.",
            ) from error
        _explain(error, step.model)
        reason = reason_of(error)
    else:
        return
    # Outside the handler: the traceback would keep the tensors that are in the way.
    size = len(batch.rows)
    fits = _largest_that_fits(step, batch, info) if alone else None
    if fits == 0:
        remedy = "Not even one image fits: take a smaller network or smaller images."
    else:
        remedy = _with_fewer(size, fits, accumulated)
    raise _too_large(batch.images.device, size, reason, remedy)


@contextlib.contextmanager
def passes_explained(model: Classifier, params: FitParams, world: World) -> Iterator[None]:
    """The same for passes of a measurement or a validation, of as many images as a step's.

    What would fit is not tried.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        _explain(error, model)
        size = -(-params.batch_size // world.size)
        remedy = _with_fewer(size, None, params.accumulation_steps)
        raise _too_large(model.mean.device, size, reason_of(error), remedy) from error


def _explain(error: Exception, model: Classifier) -> None:
    """Raise what is not about memory: as an error that says what to do, where one is known."""
    if _NOT_DETERMINISTIC in str(error):
        operator = str(error).partition(" ")[0]
        raise MachineError(
            f"{model.mean.device}: {model.architecture}",
            f"torch has no deterministic kernel of {operator} for this device",
            remedy="Two runs would differ. Take a network without it, such as a ResNet, or "
            "set device: cpu.",
        ) from error
    if _NO_MESSAGE.search(str(error)):
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        raise World(rank, size).missing() from error
    if not _is_about_memory(error):
        raise error


def _too_large(device: torch.device, size: int, reason: str, remedy: str) -> MachineError:
    where, what = f"{device}: {size} images per step", f"do not fit into memory ({reason[:120]})"
    return MachineError(where, what, remedy=remedy)


def _with_fewer(size: int, fits: int | None, accumulated: int) -> str:
    """What to set, where steps of `fits` images in as many parts were tried and do."""
    parts = accumulated * (-(-size // fits) if fits else 2)
    tried = f"{-(-fits // accumulated)} at a time do" if fits else "Take fewer images at a time"
    return (
        f"{tried}: set accumulation_steps: {parts}, which makes steps of as many images, "
        f"or batch_size: {fits or size // 2}."
    )


def _is_about_memory(error: Any) -> bool:
    # The CPU's allocator says no more than RuntimeError.
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in text
        or "not enough memory" in text
        # Of CUDA's runtime, and of cuBLAS and cuDNN.
        or "out of memory" in text
        or "ALLOC_FAILED" in text
        or "could not create a primitive" in text  # oneDNN's, whatever it has not got
    )


def _largest_that_fits(step: Step, batch: Batch, info: StepInfo) -> int:
    size = len(batch.rows) // 2
    while size:
        gc.collect()
        if batch.images.is_cuda:
            torch.cuda.empty_cache()
        try:
            step.differentiate(step.attack(batch.part(slice(size)), info, size))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_about_memory(error):
                raise
            size //= 2
        else:
            return size
    return 0
