"""The test images of one evaluation, held in memory and attacked batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline import rng
from pipeline.errors import DataError, ParamsError
from pipeline.images.pixels import pixels_sha256, to_unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.images.folder import FolderStream
    from pipeline.images.stream import ImageStream

__all__ = ["TestImages", "select_images"]


@dataclass(frozen=True)
class TestImages:
    """Images to be attacked.

    Attributes
    ----------
    images : Tensor of shape (n, C, H, W), dtype uint8, on the CPU
    labels, index : Tensor of shape (n,), dtype int64, on the CPU
    sample_hash : ndarray of shape (n,), dtype uint64
    device : torch.device
        Where batches go.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    sample_hash: NDArray[np.uint64]
    device: torch.device

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def pixels_sha256(self) -> str:
        """Of what the model is shown; see `pipeline.images.pixels`."""
        return pixels_sha256(self.images.numpy())

    def take(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Some rows on the device: images in [0, 1] (float32), labels, sample indices."""
        return (
            to_unit(self.images[rows].to(self.device)),
            self.labels[rows].to(self.device),
            self.index[rows].to(self.device),
        )

    def part(self, rows: torch.Tensor) -> TestImages:
        """Some of the images alone."""
        images, labels, index = self.images[rows], self.labels[rows], self.index[rows]
        return TestImages(images, labels, index, self.sample_hash[rows.numpy()], self.device)

    def batches(self, rows: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Cut rows into batches."""
        for begin in range(0, len(rows), batch_size):
            yield rows[begin : begin + batch_size]


def select_images(
    stream: ImageStream | FolderStream, total: int, n: int | None, seed: int
) -> TestImages:
    """All test images, or a random `n` of them that depends on the seed alone.

    Parameters
    ----------
    stream : ImageStream or FolderStream
        Over the test images.
    total : int
        How many there are.
    n : int or None
        None takes all.
    seed : int

    Returns
    -------
    TestImages
        In ascending order of sample index.

    Raises
    ------
    ParamsError
        When there are fewer than n.
    DataError
        When an image has no label.
    """
    if n is not None and n > total:
        raise ParamsError(
            "evaluate.images", "more images than there are", expected=f"at most {total}", found=n
        )
    order = rng.permutation(rng.stream_key(seed, "evaluation-images"), np.arange(total))
    samples = np.sort(order[:n])
    parts = [
        (batch.images.cpu(), batch.labels.cpu(), batch.index.cpu(), batch.sample_hash)
        for batch in stream.batches(samples, 1024)
    ]
    *tensors, hashes = zip(*parts, strict=True)
    images, labels, index = (torch.cat(column) for column in tensors)
    _require_labels(labels, index)
    return TestImages(images, labels, index, np.concatenate(hashes), stream.device)


def _require_labels(labels: torch.Tensor, index: torch.Tensor) -> None:
    unknown = (labels < 0).nonzero().flatten()
    if len(unknown):
        raise DataError(
            f"sample {int(index[unknown[0]])}",
            f"has no label ({len(unknown)} such): accuracy cannot be measured on it",
            remedy="Put the images into one folder per class.",
        )
