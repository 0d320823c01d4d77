"""Batches of images in any order: from the device's memory where they fit, else by FFCV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.images.ffcv import ffcv_threads, require_ffcv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.images.beton import Beton

__all__ = ["Batch", "ImageStream"]

# A data set is kept on the device when it takes at most this share of the free memory.
_RESIDENT_SHARE = 0.25


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
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    rows: NDArray[np.int64]
    sample_hash: NDArray[np.uint64]


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
        require_ffcv()
        self.device = device
        self._beton, self._workers = beton, workers
        self._channels = beton.manifest.shape[0]
        if resident is None:
            resident = self._size() < _RESIDENT_SHARE * _free_memory(device)
        self._resident = self._load() if resident else None

    def batches(self, order: NDArray[np.int64], batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield the samples of `order`, `batch_size` at a time; the last batch may be short.

        Parameters
        ----------
        order : ndarray of shape (N,), dtype int64
            Sample indices.
        batch_size : int
        start : int
            Batches to leave out at the beginning.
        """
        order = order[start * batch_size :]
        if not len(order):
            return
        if self._resident is None:
            yield from self._streamed(order, batch_size)
            return
        images, labels = self._resident
        for begin in range(0, len(order), batch_size):
            rows = np.ascontiguousarray(order[begin : begin + batch_size])
            index = torch.from_numpy(rows).to(self.device)
            yield Batch(images[index], labels[index], index, rows, self._beton.sample_hash[rows])

    def _size(self) -> int:
        count, (channels, height, width) = (
            self._beton.manifest.num_samples,
            (self._beton.manifest.shape),
        )
        return count * channels * height * width

    def _load(self) -> tuple[torch.Tensor, torch.Tensor]:
        parts = list(self._streamed(np.arange(self._beton.manifest.num_samples), 1024))
        images = torch.cat([batch.images for batch in parts])
        return images, torch.cat([batch.labels for batch in parts])

    def _streamed(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        with ffcv_threads():
            loader = self._loader(batch_size)
            loader.traversal_order = _Order(order)
            loader.first_traversal_order = order
            epoch = iter(loader)
        try:
            for fields in epoch:
                yield self._batch(fields)
        finally:
            epoch.close()

    def _batch(self, fields: tuple[Any, ...]) -> Batch:
        image, label, index, hashes = (field.numpy() for field in fields)
        # FFCV uses its buffers again: everything is copied before it goes on.
        pixels = np.ascontiguousarray(image.transpose(0, 3, 1, 2)[:, : self._channels])
        rows = index[:, 0].astype(np.int64)
        return Batch(
            torch.from_numpy(pixels).to(self.device),
            torch.from_numpy(label[:, 0].astype(np.int64)).to(self.device),
            torch.from_numpy(rows).to(self.device),
            rows,
            hashes[:, 0].astype(np.int64).view(np.uint64),
        )

    def _loader(self, batch_size: int) -> Any:
        from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor

        pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()]} | {
            name: [IntDecoder(), ToTensor()] for name in ("label", "index", "sample_hash")
        }
        # `order=` with a class of one's own is broken in FFCV 1.0.2: it is set afterwards.
        return Loader(
            str(self._beton.path),
            batch_size=batch_size,
            num_workers=self._workers,
            order=OrderOption.SEQUENTIAL,
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


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return int(found["MemAvailable"].split()[0]) * 1024
