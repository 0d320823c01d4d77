"""Batches of images in any order: from the device's memory where they fit, else by FFCV."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pipeline.device import free_memory, on_device
from pipeline.errors import DataError
from pipeline.images.decode import to_channels
from pipeline.images.raw import read_raw
from pipeline.images.reader import BetonReader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numpy.typing import NDArray

    from pipeline.images.beton import Beton

__all__ = ["Batch", "ImageStream", "Stream"]

# A data set is kept on the device when it takes at most this share of the free memory.
_RESIDENT_SHARE = 0.25
_LOAD_BYTES = 2**24


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes
    ----------
    images : Tensor of shape (B, C, H, W), dtype uint8, on the device
    labels, index : Tensor of shape (B,), dtype int64, on the device
    rows : ndarray of shape (B,), dtype int64
        The indices, on the host.
    sample_hash : ndarray of shape (B,), dtype uint64
        On the host.
    ahead : tuple, optional
        Label rows that were gathered ahead: the number of the view, and tensors on the device.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    rows: NDArray[np.int64]
    sample_hash: NDArray[np.uint64]
    ahead: tuple[int, tuple[torch.Tensor, ...]] | None = None

    def part(self, which: slice) -> Batch:
        """Some of the samples."""
        return Batch(
            self.images[which],
            self.labels[which],
            self.index[which],
            self.rows[which],
            self.sample_hash[which],
        )


class Stream(Protocol):
    """Gives batches in the order that it is asked for."""

    def batches(self, order: NDArray[np.int64], batch_size: int, start: int = 0) -> Iterator[Batch]:
        """See `ImageStream.batches`."""


class ImageStream:
    """Reads a beton.

    The sequence of batches is decided by the caller's order alone: it is the same whether the
    images are resident or streamed, and whatever the number of workers.

    Parameters
    ----------
    beton : Beton
    device : torch.device
        Where batches go.
    resident : bool, optional
        Decode all images once and keep them on the device; by default when they fit in a
        quarter of its free memory.
    workers : int
        FFCV's threads.
    """

    def __init__(
        self, beton: Beton, device: torch.device, *, resident: bool | None = None, workers: int = 1
    ) -> None:
        self.device = device
        self._beton, self._workers = beton, workers
        self._reader: BetonReader | None = None
        self._channels = beton.manifest.shape[0]
        if resident is None:
            resident = _decoded_size(beton) < _RESIDENT_SHARE * free_memory(device)
        self._resident = self._load() if resident else None

    def batches(
        self, order: NDArray[np.int64], batch_size: int, start: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield the samples of `order`, `batch_size` at a time; the last batch may be short.

        Parameters
        ----------
        order : ndarray of shape (M,), dtype int64
            Sample indices.
        batch_size : int
        start : int
            Batches to leave out at the beginning.

        Raises
        ------
        IndexError
            When an index is outside the data set.
        DataError
            When the beton is no longer the one that was opened.
        """
        order = order[start * batch_size :]
        if not len(order):
            return
        if order.min() < 0 or order.max() >= self._beton.manifest.num_samples:
            # FFCV would read whatever memory is there.
            raise IndexError(f"sample index outside 0…{self._beton.manifest.num_samples - 1}")
        if self._resident is None:
            yield from self._streamed(order, batch_size)
            return
        images, labels = self._resident
        for begin in range(0, len(order), batch_size):
            rows = np.ascontiguousarray(order[begin : begin + batch_size])
            index = on_device(rows, self.device)
            # index_select copies whole images: ten times as fast on a CPU as images[index].
            taken = images.index_select(0, index)
            yield Batch(taken, labels[index], index, rows, self._beton.sample_hash[rows])

    def _load(self) -> tuple[torch.Tensor, torch.Tensor]:
        count, shape = self._beton.manifest.num_samples, self._beton.manifest.shape
        images = torch.empty((count, *shape), dtype=torch.uint8, device=self.device)
        # FFCV holds five batches in memory.
        batch_size = max(1, min(1024, _LOAD_BYTES // (3 * shape[1] * shape[2])))
        raw = self._beton.manifest.encoding == "raw"
        batches = self._copied(batch_size) if raw else self._streamed(np.arange(count), batch_size)
        for batch in batches:
            images[batch.index] = batch.images
        return images, torch.from_numpy(self._beton.labels.astype(np.int64)).to(self.device)

    def _copied(self, batch_size: int) -> Iterator[Batch]:
        manifest = self._beton.manifest
        order = np.arange(manifest.num_samples)
        parts = read_raw(self._beton.path, manifest, batch_size)
        for begin, fields in zip(range(0, len(order), batch_size), parts, strict=True):
            yield self._batch(fields, order[begin : begin + batch_size])

    def _streamed(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        if self._reader is None:
            self._reader = BetonReader(self._beton.path, self._workers)
        # Closed by hand: a caller that stops early must not wait for garbage collection.
        with contextlib.closing(self._reader.read(order, batch_size)) as parts:
            for begin, fields in zip(range(0, len(order), batch_size), parts, strict=True):
                yield self._batch(fields, order[begin : begin + batch_size])

    def _batch(self, fields: tuple[Any, ...], asked: NDArray[np.int64]) -> Batch:
        image, label, index, hashes = fields
        self._require_asked(asked, index[:, 0], hashes[:, 0].view(np.uint64))
        # FFCV uses its buffers again: everything is copied before it goes on.
        pixels = to_channels(image, self._channels).transpose(0, 3, 1, 2)
        rows = np.array(asked)
        return Batch(
            on_device(pixels, self.device),
            on_device(label[:, 0], self.device),
            on_device(rows, self.device),
            rows,
            self._beton.sample_hash[rows],
        )

    def _require_asked(
        self,
        asked: NDArray[np.int64],
        index: NDArray[np.int64],
        hashes: NDArray[np.uint64],
    ) -> None:
        wrong = (index != asked) | (hashes != self._beton.sample_hash[asked])
        if wrong.any():
            row = int(asked[wrong.argmax()])
            raise DataError(
                self._beton.path,
                f"sample {row}: is not the one that was there when the file was opened",
                remedy="Do not replace a data set while it is read; run it again.",
            )


def _decoded_size(beton: Beton) -> int:
    """Bytes that all images take when decoded."""
    return beton.manifest.num_samples * math.prod(beton.manifest.shape)
