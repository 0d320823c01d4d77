"""Labelling: images to a published store, against the bare teacher on the same batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from answers import Size, make_facts
from rivals import remove
from timing import Comparison, Rounds, interleave

from ltd_pipe.images.manifest import to_unit
from ltd_pipe.images.stream import Batch
from ltd_pipe.labels.labelling import Labeller, aligned_rows
from ltd_pipe.labels.writer import StoreWriter
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["compare_labelling"]

LABEL, BARE = "label_images and publish", "bare teacher"


class _Images:
    """Images that are in memory already: neither side waits for a decoder."""

    def __init__(self, size: Size, pixels: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (size.num_samples, 3, pixels, pixels)
        self.images = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, size.num_classes, size.num_samples, dtype=np.int32)
        self.sample_hash = rng.integers(0, 2**64, size.num_samples, dtype=np.uint64)

    def batches(self, order: NDArray[np.int64], batch_size: int, start: int = 0) -> Iterator[Batch]:
        """See `ltd_pipe.images.stream.ImageStream.batches`."""
        for begin in range(start * batch_size, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            index = torch.from_numpy(rows).to(self.images.device)
            labels = torch.from_numpy(self.labels[rows].astype(np.int64)).to(self.images.device)
            taken = self.images.index_select(0, index)
            yield Batch(taken, labels, index, rows, self.sample_hash[rows])


def compare_labelling(
    size: Size,
    folder: Path,
    *,
    architecture: str,
    pixels: int,
    batch_size: int,
    device: torch.device,
    seed: int,
    rounds: Rounds,
) -> Comparison:
    """Label images with a teacher of new weights: its answers cost what a trained one's do."""
    images = _Images(size, pixels, seed, device)
    shape = (3, pixels, pixels)
    names = tuple(map(str, range(size.num_classes)))
    torch.manual_seed(seed)
    network = build(architecture, size.num_classes, shape)
    teacher = Classifier(network, architecture=architecture, class_names=names, shape=shape)
    teacher.to(device).eval()
    facts = make_facts(size, images.labels, images.sample_hash)
    path = folder / "labelled"

    def label(_: int) -> None:
        remove(path)
        writer = StoreWriter(
            folder / "labelled.draft",
            facts,
            keep_logits=False,
            rows=aligned_rows(facts, size.top_k, batch_size),
            top_k=size.top_k,
            temperature=1.0 if size.top_k else None,
        )
        Labeller([teacher], images, batch_size, "float32").label(writer)
        writer.publish(path, 1.0)

    @torch.no_grad()
    def bare(_: int) -> None:
        for batch in images.batches(np.arange(size.num_samples), batch_size):
            teacher.raw_logits(to_unit(batch.images))
        if device.type == "cuda":
            torch.cuda.synchronize()

    clock = interleave({BARE: bare, LABEL: label}, rounds)
    remove(path)
    what = f"label {pixels}×{pixels} by {architecture}"
    return clock.comparison(what, BARE, size.num_samples, "images")
