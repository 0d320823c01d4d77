"""Batches straight from an image folder, for work that passes over it once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.images.decode import resize, to_channels
from pipeline.images.fingerprint import fingerprint
from pipeline.images.manifest import Duplicates, ImageFacts
from pipeline.images.survey import common_size, require_unchanged, survey, without_bad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from pipeline.images.sources import Source, Split
    from pipeline.images.stream import Batch

__all__ = ["FolderStream", "open_folder"]


class FolderStream:
    """Reads a source as `ImageStream` reads a beton; its images are decoded as they come.

    Parameters
    ----------
    source : Source
    facts : ImageFacts
        Of that source.
    sample_hash : ndarray of shape (N,), dtype uint64
    device : torch.device
    notes : sequence of str
        What the user should know of the images, in lines.
    """

    def __init__(
        self,
        source: Source,
        facts: ImageFacts,
        sample_hash: NDArray[np.uint64],
        device: torch.device,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = notes
        self.facts, self.sample_hash, self.device = facts, sample_hash, device
        self.labels = source.labels
        self._source = source

    @property
    def manifest(self) -> ImageFacts:
        """What the images are, under the name that a beton has it by."""
        return self.facts

    def where(self, i: int) -> str:
        """Image i as the user knows it."""
        return self._source.where(i)

    def batches(self, order: NDArray[np.int64], batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield the samples of `order`; see `ImageStream.batches`."""
        with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
            for begin in range(start * batch_size, len(order), batch_size):
                rows = np.ascontiguousarray(order[begin : begin + batch_size])
                yield self._batch(rows, np.stack(list(pool.map(self._pixels, rows))))

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        channels, height, width = self.facts.shape
        # Images that are not square are all of one size, and stay as they are.
        image = resize(self._source.decode(int(row)), height if height == width else None)
        require_unchanged(self._source, int(row), int(self.sample_hash[row]))
        return np.ascontiguousarray(to_channels(image, channels).transpose(2, 0, 1))

    def _batch(self, rows: NDArray[np.int64], pixels: NDArray[np.uint8]) -> Batch:
        import torch

        from pipeline.images.stream import Batch

        labels = torch.from_numpy(self.labels[rows].astype(np.int64))
        return Batch(
            torch.from_numpy(pixels).to(self.device),
            labels.to(self.device),
            torch.from_numpy(rows).to(self.device),
            rows,
            self.sample_hash[rows],
        )


def open_folder(
    source: Source,
    *,
    image_size: int | None,
    channels: Literal[1, 3],
    device: torch.device,
    split: Split = "train",
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[FolderStream, list[str]]:
    """Survey a source and open it for reading.

    Parameters
    ----------
    source : Source
    image_size : int or None
        See `pipeline.images.decode.resize`; None: all images must have one size.
    channels : int
        1 or 3.
    device : torch.device
    split : str
        Which part of the data set they are.
    skip_bad : bool
        Leave unreadable images out.
    progress : callable, optional
        Called with the number of images just surveyed.

    Returns
    -------
    tuple of FolderStream and list of str
        The second names what was left out.

    Raises
    ------
    DataError
        See `pipeline.images.survey`.
    """
    source, found, skipped = without_bad(source, survey(source, progress), skip=skip_bad)
    height, width = common_size(source, found, image_size)
    facts = ImageFacts(
        dataset=source.name,
        split=split,
        num_samples=len(source),
        class_names=source.class_names,
        shape=(channels, height, width),
        fingerprint=fingerprint(source.class_names, source.labels, found.sample_hash),
    )
    duplicates = Duplicates.count((source.labels, found.sample_hash))
    doubts = facts.doubts(int(found.one_colour.sum()), int(found.turned.sum()), duplicates)
    notes = [*source.notes, *(f"warning: {source.name}: {line}" for line in doubts)]
    return FolderStream(source, facts, found.sample_hash, device, notes), skipped
