"""Streaming images through the teachers into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ltd_pipe.background import Background
from ltd_pipe.device import OnHost, autocast
from ltd_pipe.images.manifest import to_unit
from ltd_pipe.labels.dataset import Replay
from ltd_pipe.labels.format import row_bytes, rows_per_chunk
from ltd_pipe.labels.softmax import solve_temperature

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ltd_pipe.device import Precision
    from ltd_pipe.images.stream import Batch, Stream
    from ltd_pipe.labels.format import StoreFacts
    from ltd_pipe.labels.writer import StoreWriter
    from ltd_pipe.models.classifier import Classifier

__all__ = ["aligned_rows", "answers", "label_images", "temperature_of_sample", "view_answers"]

# The mean top probability of so many images is that of all within a percent or so.
_SAMPLE = 4096
# Batches whose answers are still to be written.
_AHEAD = 4


def aligned_rows(
    facts: StoreFacts, top_k: int | None, batch_size: int, wanted: int | None = None
) -> int:
    """Rows per chunk: whole batches, about `wanted` rows or 8 MiB.

    A run that is interrupted goes on at a chunk's end. The batches after it must then be those
    of an uninterrupted run, since a network's rounding depends on the batch that an image is in.
    """
    rows = wanted or rows_per_chunk(row_bytes(facts, top_k))
    return max(rows // batch_size, 1) * batch_size


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
    """Append the logits of all images, in all views, that the writer does not have yet.

    Answers are fetched from the device, rounded and written while the teacher is at the next
    batch; an error there ends the loop at one of the next batches.

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
    replay = Replay.of(writer.facts.views, "views")
    try:
        with Background(threads=1, waiting=_AHEAD) as behind:
            for batch in stream.batches(writer.rows_left, batch_size):
                logits = answers(teachers, batch, replay, precision)
                behind.do(_append, writer, OnHost(logits, batch.labels), batch.sample_hash)
                if progress:
                    progress(len(batch.labels))
    finally:
        # Also after an interruption: what is whole is not labelled again.
        writer.flush()


def _append(writer: StoreWriter, found: OnHost, sample_hash: NDArray[np.uint64]) -> None:
    logits, labels = found.numpy()
    writer.append(logits, labels, sample_hash)


@torch.no_grad()
def answers(
    teachers: Sequence[Classifier], batch: Batch, replay: Replay, precision: Precision
) -> torch.Tensor:
    """The teachers' logits for each view of some images.

    Parameters
    ----------
    teachers, precision
        As in `label_images`.
    batch : Batch
        Of n images.
    replay : Replay
        Of the store.

    Returns
    -------
    Tensor of shape (M, n, K), or (M, n, V, K) of several views, dtype float32
        On the images' device.
    """
    views = [view_answers(teachers, batch, replay, view, precision) for view in range(replay.count)]
    return views[0] if len(views) == 1 else torch.stack(views, dim=2)


@torch.no_grad()
def view_answers(
    teachers: Sequence[Classifier], batch: Batch, replay: Replay, view: int, precision: Precision
) -> torch.Tensor:
    """The teachers' logits for one view of some images, of shape (M, n, K); see `answers`."""
    images = to_unit(replay.images(batch.images, batch.index, view))
    with autocast(images.device, precision):
        logits = [teacher.raw_logits(images) for teacher in teachers]
    return torch.stack(logits).float()


@torch.no_grad()
def temperature_of_sample(
    teachers: Sequence[Classifier],
    stream: Stream,
    num_samples: int,
    target_top_probability: float,
    *,
    replay: Replay,
    batch_size: int,
    precision: Precision,
) -> float:
    """Solve for the temperature on evenly spaced images, before the labels are made.

    Of a top-k store the logits are never kept, so the temperature has to be known first.

    Parameters
    ----------
    teachers, stream, batch_size, precision
        As in `label_images`.
    num_samples : int
        N; at most 4,096 of them are asked about.
    target_top_probability : float
        See `ltd_pipe.labels.softmax.solve_temperature`.
    replay : Replay
        The views that will be labelled.
    """
    order = np.unique(np.linspace(0, num_samples - 1, min(num_samples, _SAMPLE)).astype(np.int64))
    logits = [
        answers(teachers, batch, replay, precision).to(torch.float16).cpu()
        for batch in stream.batches(order, batch_size)
    ]
    # The views of a sample are so many rows.
    rows = torch.cat(logits, dim=1).flatten(1, -2)
    return solve_temperature(rows.numpy(), target_top_probability)
