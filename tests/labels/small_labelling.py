"""A labelling of 48 images that takes milliseconds, by the same functions as `ltd-pipe label`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.images.stream import Batch
from ltd_pipe.labels.format import DatasetFacts, StoreFacts, TeacherFacts
from ltd_pipe.labels.labelling import Labeller
from ltd_pipe.labels.writer import StoreWriter
from ltd_pipe.publish import exclusive

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES, CLASSES, BATCH, ROWS = 48, 10, 4, 8
NAMES = tuple(f"class {number}" for number in range(CLASSES))


class Images:
    """Images in memory, as `ltd_pipe.images.stream.ImageStream` gives them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = torch.from_numpy(rng.integers(0, 256, (SAMPLES, 1, 8, 8), np.uint8))
        self.labels = rng.integers(0, CLASSES, SAMPLES)
        self.sample_hash = rng.integers(0, 2**64, SAMPLES, np.uint64)

    def batches(self, order, batch_size, start=0):
        """In the order that is asked for."""
        order = order[start * batch_size :]
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            index, labels = torch.from_numpy(rows), torch.from_numpy(self.labels[rows])
            yield Batch(self.images[index], labels, index, rows, self.sample_hash[rows])


class Teacher:
    """Multiplies by a fixed matrix."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(64, CLASSES, generator=generator)

    def raw_logits(self, images):
        """Shape (n, K)."""
        return images.flatten(1) @ self.weights


def open_writer(state: Path, images: Images, seed: int = 0, top_k: int | None = None):
    """A writer of six chunks for the answers of the teacher of that seed."""
    found = fingerprint(NAMES, images.labels.astype(np.int32), images.sample_hash)
    facts = StoreFacts(
        num_samples=SAMPLES,
        num_classes=CLASSES,
        class_names=NAMES,
        dataset=DatasetFacts(name="random", split="train", fingerprint=found),
        teachers=(TeacherFacts(sha256=f"{seed:064x}", architecture="matrix"),),
    )
    return StoreWriter(
        state,
        facts,
        keep_logits=top_k is None,
        rows=ROWS,
        top_k=top_k,
        temperature=2.0 if top_k else None,
    )


def label(target: Path, seed: int = 0, top_k: int | None = None, teacher=None) -> str:
    """Label all images into a store, going on where an earlier run was killed."""
    images = Images()
    with exclusive(target):
        writer = open_writer(target.parent / "state" / f"label-{seed}", images, seed, top_k)
        teachers = [teacher or Teacher(seed)]
        Labeller(teachers, images, BATCH, "float32").label(writer)
        return writer.publish(target, 2.0, replace=True)
