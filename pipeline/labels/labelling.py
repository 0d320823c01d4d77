"""Streaming images through the teachers into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pipeline.device import autocast
from pipeline.images.pixels import to_unit
from pipeline.labels.format import rows_per_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.device import Precision
    from pipeline.images.stream import Batch
    from pipeline.labels.write import StoreWriter
    from pipeline.models.classifier import Classifier

__all__ = ["aligned_rows", "label_images"]


class Stream(Protocol):
    """Gives batches in the order that it is asked for."""

    def batches(self, order: NDArray[np.int64], batch_size: int, start: int = 0) -> Iterator[Batch]:
        """See `pipeline.images.stream.ImageStream.batches`."""


def aligned_rows(num_classes: int, batch_size: int) -> int:
    """Rows per chunk: whole batches, about 8 MiB.

    A run that is interrupted goes on at a chunk's end. The batches after it must then be those
    of an uninterrupted run, since a network's rounding depends on the batch that an image is in.
    """
    return max(rows_per_chunk(2 * num_classes) // batch_size, 1) * batch_size


@torch.no_grad()
def label_images(
    teachers: Sequence[Classifier],
    stream: Stream,
    writer: StoreWriter,
    *,
    batch_size: int,
    precision: Precision,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Append the logits of all images that the writer does not have yet.

    The logits are the networks' own, before any temperature of the model itself: the label's
    temperature is applied once, when the store is published.

    Parameters
    ----------
    teachers : sequence of Classifier
        In evaluation mode, on the stream's device; in the order of the store's facts.
    stream : ImageStream or FolderStream
    writer : StoreWriter
        Its chunks are of `aligned_rows`.
    batch_size : int
        Images per teacher call.
    precision : str
        Of the forward pass.
    progress : callable, optional
        Called with the number of images just labelled.
    """
    order = np.arange(writer.facts.num_samples)
    for batch in stream.batches(order, batch_size, start=writer.rows_done // batch_size):
        images = to_unit(batch.images)
        with autocast(images.device, precision):
            answers = [teacher.raw_logits(images) for teacher in teachers]
        logits = torch.stack(answers).float().cpu().numpy()
        writer.append(logits, batch.labels.cpu().numpy(), batch.sample_hash)
        if progress:
            progress(len(batch.labels))
