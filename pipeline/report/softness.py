"""What the soft labels are like, and the images on which they say most: unsure, or otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.labels.read import SoftLabels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.labels.format import StoreAttributes
    from pipeline.labels.softness import LabelSummary

__all__ = ["LabelFacts", "TrainingImage", "read_labels"]

_BINS = 20
# Rows at a time: about 16 MiB of float32 whatever the number of classes.
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class TrainingImage:
    """A training image with its soft label.

    Attributes
    ----------
    index : int
        Of the sample.
    label : int
        Ground truth, -1 where unknown.
    soft : ndarray of shape (K,), dtype float32
    pixels : ndarray of shape (C, H, W), dtype uint8, or None
        None where the images were not at hand.
    """

    index: int
    label: int
    soft: NDArray[np.float32]
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class LabelFacts:
    """A soft-label store in numbers.

    Attributes
    ----------
    attributes : StoreAttributes
    identity : str
    summary : LabelSummary
    histogram : ndarray of shape (20,), dtype int64
        Samples by their top probability, in equal parts of [0, 1].
    ambiguous : tuple of TrainingImage
        Those of the highest entropy, the highest first.
    known : int
        Samples whose ground truth is known.
    disagreements : int
        Those of them whose largest probability is on another class.
    contradicted : tuple of TrainingImage
        Those of them on which the teacher is furthest from the ground truth, the furthest first.
    """

    attributes: StoreAttributes
    identity: str
    summary: LabelSummary
    histogram: NDArray[np.int64]
    ambiguous: tuple[TrainingImage, ...]
    known: int
    disagreements: int
    contradicted: tuple[TrainingImage, ...]


@dataclass(frozen=True)
class _Scan:
    """What each sample's soft label gives: shape (N,) but for the histogram."""

    histogram: NDArray[np.int64]
    entropy: NDArray[np.float32]
    # Largest probability less that of the ground truth; -1 where they are of one class, or the
    # ground truth is unknown.
    excess: NDArray[np.float32]


def read_labels(
    store: Path, data: Path | None, ambiguous: int, contradicted: int = 0
) -> LabelFacts:
    """Read a store and the images it is least sure of, and contradicts most.

    Parameters
    ----------
    store : Path
    data : Path or None
        Beton of the images, or None where it is not at hand.
    ambiguous, contradicted : int
        How many of each, at most.

    Raises
    ------
    StoreError, JoinError
        When the store is damaged, or labels other images than those of `data`.
    DataError
        When the beton is damaged.
    """
    labels = SoftLabels.open(store)
    scan = _scan(labels)
    unsure = _highest(scan.entropy, ambiguous)
    disagreements = int(np.count_nonzero(scan.excess >= 0))
    against = _highest(scan.excess, min(contradicted, disagreements))
    images = _images(labels, data, np.concatenate([unsure, against]))
    return LabelFacts(
        attributes=labels.attributes,
        identity=labels.identity,
        summary=labels.summary(),
        histogram=scan.histogram,
        ambiguous=tuple(images[: len(unsure)]),
        known=int(np.count_nonzero(labels.labels[:] >= 0)),
        disagreements=disagreements,
        contradicted=tuple(images[len(unsure) :]),
    )


def _highest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    # A stable sort: of equal values the first sample comes first, on every machine.
    return np.argsort(-values, kind="stable")[:count].astype(np.int64)


def _images(labels: SoftLabels, data: Path | None, rows: NDArray[np.int64]) -> list[TrainingImage]:
    pixels = _pixels(labels, data, np.unique(rows)) if data is not None and len(rows) else {}
    return [
        TrainingImage(int(i), int(labels.labels[i]), row, pixels.get(int(i)))
        for i, row in zip(rows, _normalised(labels, rows), strict=True)
    ]


def _scan(labels: SoftLabels) -> _Scan:
    n = labels.num_samples
    found = _Scan(np.zeros(_BINS, np.int64), np.empty(n, np.float32), np.empty(n, np.float32))
    step = max(_BLOCK_ELEMENTS // labels.num_classes, 1)
    for begin in range(0, n, step):
        rows = np.arange(begin, min(begin + step, n))
        soft, truth = _normalised(labels, rows), np.asarray(labels.labels[rows])
        top = soft.max(axis=1)
        found.histogram[:] += np.histogram(top, bins=_BINS, range=(0, 1))[0]
        # p log p tends to 0 with p; the maximum keeps log(0) out of the product.
        found.entropy[rows] = -(soft * np.log(np.maximum(soft, 1e-30))).sum(axis=1)
        apart = (truth >= 0) & (soft.argmax(axis=1) != truth)
        found.excess[rows] = np.where(apart, top - soft[np.arange(len(rows)), truth], -1)
    return found


def _normalised(labels: SoftLabels, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    soft = labels.gather(rows).astype(np.float32)
    if soft.ndim == 3:
        # Of several views, what the teacher says on average.
        soft = soft.mean(axis=1)
    normalised: NDArray[np.float32] = soft / soft.sum(axis=1, keepdims=True)
    return normalised


def _pixels(
    labels: SoftLabels, data: Path, rows: NDArray[np.int64]
) -> dict[int, NDArray[np.uint8]]:
    # FFCV is needed only where pictures are wanted.
    import torch

    from pipeline.images.beton import open_beton
    from pipeline.images.stream import ImageStream

    beton = open_beton(data)
    labels.require_data(beton.manifest, str(data), beton)
    # All raw images are copied into memory, if they fit, sooner than FFCV compiles its reader.
    resident = None if beton.manifest.encoding == "raw" else False
    stream = ImageStream(beton, torch.device("cpu"), resident=resident)
    found: dict[int, NDArray[np.uint8]] = {}
    for batch in stream.batches(rows, len(rows)):
        labels.join(batch.rows, batch.sample_hash, str(data))
        found |= dict(zip(batch.rows.tolist(), batch.images.numpy(), strict=True))
    return found
