"""FFCV's reader, made to end when it is left and to fail when it fails.

Its thread fills a queue. In FFCV 1.0.2 a reader that stops early can leave the thread waiting
at the full queue for ever, and a thread that dies leaves the reader waiting at the empty one.
"""

from __future__ import annotations

import contextlib
import queue
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError
from pipeline.images.ffcv import ffcv_threads, require_ffcv
from pipeline.images.header import FIELDS

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["BetonReader"]


class BetonReader:
    """Decodes the samples of a beton in any order.

    Its code is compiled once, in 1.5 to 2.5 s at the first batch, whatever the orders and batch
    sizes that are asked for afterwards.

    Parameters
    ----------
    path : Path
        A beton that `open_beton` has checked: FFCV trusts every number in it.
    workers : int
        Decoding threads; more than the machine has cores are not used.
    """

    def __init__(self, path: Path, workers: int) -> None:
        require_ffcv()
        self._path = path
        with ffcv_threads():
            self._loader = _build_loader(path, workers)

    def read(
        self, order: NDArray[np.int64], batch_size: int
    ) -> Generator[tuple[Any, ...], None, None]:
        """Yield the fields of `batch_size` samples at a time.

        Parameters
        ----------
        order : ndarray of shape (M,), dtype int64
            Sample indices, all within the beton: FFCV does not check them.
        batch_size : int

        Yields
        ------
        tuple of ndarray
            Images of shape (B, H, W, 3), dtype uint8; label, index and sample_hash of shape
            (B, 1), dtype int64. They are overwritten later: copy what is kept.

        Raises
        ------
        DataError
            When FFCV stops before the end.
        """
        self._loader.batch_size = batch_size
        # `order=` with a class of one's own is broken in FFCV 1.0.2: it is set afterwards.
        self._loader.traversal_order = _Order(order)
        self._loader.first_traversal_order = order
        with ffcv_threads():
            epoch = iter(self._loader)
            try:
                # FFCV's thread sets the thread count too, before its first batch.
                fields = self._take(epoch)
            except BaseException:
                _stop(epoch)
                raise
        try:
            while fields is not None:
                yield fields
                fields = self._take(epoch)
        finally:
            _stop(epoch)

    def _take(self, epoch: Any) -> tuple[Any, ...] | None:
        while True:
            # Asked before the queue is looked at: a thread that ends in between has left None.
            alive = epoch.is_alive()
            try:
                item = epoch.output_queue.get(timeout=1.0)
            except queue.Empty:
                if alive:
                    continue
                raise DataError(
                    self._path,
                    "FFCV's reading thread died",
                    remedy="Its message is above; run 'ltd-pipe prepare' again.",
                ) from None
            return None if item is None else tuple(field.numpy() for field in item[1])


def _stop(epoch: Any) -> None:
    # Without work left the thread ends at its next step, once there is room in the queue.
    epoch.iter_ixes = iter(())
    epoch.close()
    while epoch.is_alive():
        with contextlib.suppress(queue.Empty):
            epoch.output_queue.get_nowait()
        epoch.join(0.01)


def _build_loader(path: Path, workers: int) -> Any:
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor
    from numba import config as numba_config

    pipelines = {name: [IntDecoder(), ToTensor()] for name in FIELDS}
    pipelines["image"] = [SimpleRGBImageDecoder(), ToTensor()]
    return Loader(
        str(path),
        batch_size=1,
        # numba refuses more threads than cores.
        num_workers=min(workers, numba_config.NUMBA_NUM_THREADS),  # type: ignore[attr-defined]
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        # Without a seed FFCV draws one from numpy's global generator.
        seed=0,
        pipelines=pipelines,
        drop_last=False,
    )


class _Order:
    """A traversal order that FFCV asks for at each epoch."""

    def __init__(self, order: NDArray[np.int64]) -> None:
        self._order = order.astype(np.uint64)

    def sample_order(self, epoch: int) -> NDArray[np.uint64]:
        del epoch
        return self._order
