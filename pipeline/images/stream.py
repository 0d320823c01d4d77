"""Batches of images in any order: from the device's memory where they fit, else by FFCV."""

from __future__ import annotations

import contextlib
import math
import os
import queue
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe.device import free_memory, on_device
from ltd_pipe.errors import DataError
from ltd_pipe.images.beton import FIELDS, ffcv_threads, read_samples, require_ffcv
from ltd_pipe.images.decode import to_channels
from ltd_pipe.images.manifest import Duplicates, ImageFacts
from ltd_pipe.images.sources import Source, Split, survey
from ltd_pipe.threads import usable_cores

if TYPE_CHECKING:
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.manifest import Manifest

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
    prefetched : tuple, optional
        Label rows that were gathered beforehand: the number of the view, and tensors on the device.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    rows: NDArray[np.int64]
    sample_hash: NDArray[np.uint64]
    prefetched: tuple[int, tuple[torch.Tensor, ...]] | None = None

    def part(self, which: slice) -> Batch:
        """Some of the samples."""
        images, labels, index = (x[which] for x in (self.images, self.labels, self.index))
        return Batch(images, labels, index, self.rows[which], self.sample_hash[which])


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
    workers : int, optional
        FFCV's threads; by default this process's share of the processors.
    """

    def __init__(
        self,
        beton: Beton,
        device: torch.device,
        *,
        resident: bool | None = None,
        workers: int | None = None,
    ) -> None:
        self.device, self.count = device, beton.manifest.num_samples
        # torchrun's processes on one machine share it.
        together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._workers = workers or max(1, usable_cores() // together)
        self._beton = beton
        self._reader: BetonReader | None = None
        if resident is None:
            decoded = beton.manifest.num_samples * math.prod(beton.manifest.shape)
            resident = decoded < _RESIDENT_SHARE * free_memory(device)
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
            if self._reader is None:
                self._reader = BetonReader(self._beton.path, self._workers)
            yield from self._batches(self._reader.read(order, batch_size), order, batch_size)
            return
        images, labels = self._resident
        for begin in range(0, len(order), batch_size):
            rows = np.ascontiguousarray(order[begin : begin + batch_size])
            index = on_device(rows, self.device)
            # index_select copies whole images: ten times as fast on a CPU as images[index].
            taken = images.index_select(0, index)
            yield Batch(taken, labels[index], index, rows, self._beton.sample_hash[rows])

    def _load(self) -> tuple[torch.Tensor, torch.Tensor]:
        manifest = self._beton.manifest
        count, shape = manifest.num_samples, manifest.shape
        images = torch.empty((count, *shape), dtype=torch.uint8, device=self.device)
        # FFCV holds five batches in memory.
        batch_size = max(1, min(1024, _LOAD_BYTES // (3 * shape[1] * shape[2])))
        order = np.arange(count)
        if manifest.encoding == "raw":
            parts = read_raw(self._beton.path, manifest, batch_size)
        else:
            parts = BetonReader(self._beton.path, self._workers).read(order, batch_size)
        for batch in self._batches(parts, order, batch_size):
            images[batch.index] = batch.images
        return images, torch.from_numpy(self._beton.labels.astype(np.int64)).to(self.device)

    def _batches(
        self, parts: Generator[tuple[Any, ...]], order: NDArray[np.int64], batch_size: int
    ) -> Iterator[Batch]:
        channels = self._beton.manifest.shape[0]
        # Closed by hand: a caller that stops early must not wait for garbage collection.
        with contextlib.closing(parts):
            for begin, fields in zip(range(0, len(order), batch_size), parts, strict=True):
                image, label, index, hashes = fields
                # FFCV uses its buffers again: everything is copied before it goes on.
                rows = np.array(order[begin : begin + batch_size])
                expected = self._beton.sample_hash[rows]
                wrong = (index[:, 0] != rows) | (hashes[:, 0].view(np.uint64) != expected)
                if wrong.any():
                    raise DataError(
                        self._beton.path,
                        f"sample {rows[wrong.argmax()]}: is not the one that was there when the "
                        "file was opened",
                        remedy="Do not replace a data set while it is read; run it again.",
                    )
                pixels = to_channels(image, channels).transpose(0, 3, 1, 2)
                yield Batch(
                    on_device(pixels, self.device),
                    on_device(label[:, 0], self.device),
                    on_device(rows, self.device),
                    rows,
                    expected,
                )


class FolderStream:
    """Reads a source as `ImageStream` reads a beton; its images are decoded as they come.

    `manifest`, `labels` and `sample_hash` are as a beton's; `notes` are lines for the user.

    Parameters
    ----------
    source : Source
        Is surveyed first.
    image_size : int or None
        See `ltd_pipe.images.decode.resize`; None: all images must have one size.
    channels : int
        1 or 3.
    device, split
        Where batches go, and which part of the data set they are.
    skip_bad : bool
        Leave unreadable images out, and name them in the notes.
    progress : callable, optional
        Called with the number of images just surveyed.

    Raises
    ------
    DataError
    """

    def __init__(
        self,
        source: Source,
        *,
        image_size: int | None,
        channels: int,
        device: torch.device,
        split: Split = "train",
        skip_bad: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._found = found = survey(source, skip_bad=skip_bad, progress=progress)
        shape = channels, *found.common_size(image_size)
        self.manifest, self.device = ImageFacts(**found.facts(split, shape)), device
        self.labels, self.sample_hash = found.source.labels, found.sample_hash
        duplicates = Duplicates.count((self.labels, self.sample_hash))
        warnings = self.manifest.warnings_of(found.one_colour, found.turned, duplicates)
        self.notes = [
            *(f"skipped: {line}" for line in found.skipped),
            *source.notes,
            *(f"warning: {source.name}: {line}" for line in warnings),
        ]

    def where(self, i: int) -> str:
        """Image i as the user knows it."""
        return self._found.source.where(i)

    def batches(self, order: NDArray[np.int64], batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield the samples of `order`; see `ImageStream.batches`."""
        with ThreadPoolExecutor(max(2, usable_cores())) as pool:
            for begin in range(start * batch_size, len(order), batch_size):
                rows = np.ascontiguousarray(order[begin : begin + batch_size])
                pixels = np.stack(list(pool.map(self._pixels, rows)))
                yield Batch(
                    torch.from_numpy(pixels).to(self.device),
                    torch.from_numpy(self.labels[rows].astype(np.int64)).to(self.device),
                    torch.from_numpy(rows).to(self.device),
                    rows,
                    self.sample_hash[rows],
                )

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        channels, height, width = self.manifest.shape
        # Images that are not square are all of one size, and stay as they are.
        image = self._found.pixels(int(row), height if height == width else None)
        return np.ascontiguousarray(to_channels(image, channels).transpose(2, 0, 1))


Stream: TypeAlias = ImageStream | FolderStream


# --- How betons are read.


def read_raw(
    path: Path, manifest: Manifest, batch_size: int
) -> Generator[tuple[NDArray[Any], ...]]:
    """Yield the fields of all samples of a raw beton in their order, as `BetonReader.read` does.

    FFCV would first compile its reader, for 2 s of processor time in every process. That pays
    where images are decoded or come in any order; here they are only copied.
    """
    samples = read_samples(path, manifest)
    _, height, width = manifest.shape
    with path.open("rb", buffering=0) as file:
        for begin in range(0, len(samples), batch_size):
            batch = samples[begin : begin + batch_size]
            images = np.empty((len(batch), height, width, 3), np.uint8)
            # Within a page images lie one after the other: what does is read at once.
            starts = batch["f0"]["data_ptr"]
            breaks = np.flatnonzero(starts[:-1] + np.uint64(images[0].nbytes) != starts[1:]) + 1
            for first, last in zip([0, *breaks], [*breaks, len(images)], strict=True):
                file.seek(int(starts[first]))
                wanted = images[first:last]
                if file.readinto(wanted.data.cast("B")) != wanted.nbytes:
                    raise DataError(
                        path,
                        "became shorter while it was read",
                        remedy="Do not replace a data set while it is read; run it again.",
                    )
            numbers = (batch[name].astype(np.int64)[:, None] for name in ("f1", "f2", "f3"))
            yield images, *numbers


class BetonReader:
    """Decodes the samples of a beton in any order by FFCV, and ends or fails when that does.

    FFCV's thread fills a queue. In FFCV 1.0.2 a reader that stops early can leave the thread
    waiting at the full queue for ever, and a thread that dies leaves the reader waiting at the
    empty one. Its code is compiled once, in 1.5 to 2.5 s at the first batch, whatever the orders
    and batch sizes that are asked for afterwards. It trusts every number of a beton and every
    index, so that `open_beton` must have checked the one, and the caller the others.
    """

    def __init__(self, path: Path, workers: int) -> None:
        require_ffcv()
        self._path = path
        with ffcv_threads():
            from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
            from ffcv.loader import Loader, OrderOption
            from ffcv.transforms import ToTensor
            from numba import config as numba_config

            pipelines = {name: [IntDecoder(), ToTensor()] for name in FIELDS}
            pipelines["image"] = [SimpleRGBImageDecoder(), ToTensor()]
            cores: int = numba_config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
            self._loader = Loader(
                str(path),
                batch_size=1,
                num_workers=min(workers, cores),  # numba refuses more threads
                os_cache=True,
                order=OrderOption.SEQUENTIAL,
                # Without a seed FFCV draws one from numpy's global generator.
                seed=0,
                pipelines=pipelines,
                drop_last=False,
            )

    def read(self, order: NDArray[np.int64], batch_size: int) -> Generator[tuple[Any, ...]]:
        """Yield the fields of `batch_size` samples of `order`, all within the beton, at a time.

        Yields
        ------
        tuple of ndarray
            Images of shape (B, H, W, 3), dtype uint8; label, index and sample_hash of shape
            (B, 1), dtype int64. They are overwritten later: copy what is kept.
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


class _Order:
    """A traversal order that FFCV asks for at each epoch."""

    def __init__(self, order: NDArray[np.int64]) -> None:
        self._order = order.astype(np.uint64)

    def sample_order(self, epoch: int) -> NDArray[np.uint64]:
        del epoch
        return self._order
