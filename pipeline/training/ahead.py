"""Batches that are prepared while the step before them runs."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch

from pipeline.background import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from pipeline.images.stream import Batch

__all__ = ["ahead"]


def ahead(
    batches: Generator[Batch, None, None],
    fetch: Callable[[Batch], Batch],
    device: torch.device,
    *,
    count: int = 1,
) -> Generator[Batch, None, None]:
    """Give the same batches in the same order, `count` of them prepared while one is used.

    A thread reads and decodes them, checks that their labels are theirs, and gathers these; for
    a GPU it also starts the copies, on a stream of their own beside the step's kernels. What
    fails there is raised here when that batch's turn has come, after those before it.

    Parameters
    ----------
    batches : generator of Batch
        Advanced and closed here.
    fetch : callable
        What else is to be done to a batch, such as `Examples.fetch`.
    device : torch.device
        Where batches are.
    count : int
        0: nothing is done ahead, and there is no thread.

    Yields
    ------
    Batch

    Notes
    -----
    Close it when a step fails or stops: that waits for what the thread has begun, and ends it.
    """
    with contextlib.closing(batches):
        prepared = map(fetch, batches)
        if count == 0:
            yield from prepared
            return
        sender = _Sender(prepared, device)
        places: deque[Future[Batch | None]] = deque()
        with Background(threads=1, waiting=count + 1) as background, sender:
            while True:
                while len(places) <= count:
                    places.append(Future())
                    background.do(sender.send, places[-1])
                batch = places.popleft().result()
                if batch is None:
                    return
                sender.receive(batch)
                yield batch


class _Sender:
    """Prepares one batch at a time on the thread; leaving the block makes it take no other."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._left = batches, threading.Event()
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._arrived: deque[torch.cuda.Event] = deque()
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # What is resident was written by the stream that is current now.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._left.set()

    def send(self, place: Future[Batch | None]) -> None:
        """Prepare the next batch, and put it or its error in its place; None at the end."""
        try:
            with torch.cuda.stream(self._stream):
                batch = None if self._left.is_set() else next(self._batches, None)
                if self._stream is not None:
                    self._arrived.append(self._stream.record_event())
            place.set_result(batch)
        except BaseException as error:
            place.set_exception(error)

    def receive(self, batch: Batch) -> None:
        """Let the current stream begin with the batch once it has arrived; the host goes on."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._arrived.popleft())
        tensors = [batch.images, batch.labels, batch.index]
        if batch.ahead is not None:
            tensors += batch.ahead[1]
        for tensor in tensors:
            # Its memory is the other stream's, which must not use it again before this one has.
            tensor.record_stream(current)
