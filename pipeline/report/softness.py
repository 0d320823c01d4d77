"""What the soft labels are like, and the images that the teacher found hardest to name."""

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

__all__ = ["AmbiguousImage", "LabelFacts", "read_labels"]

_BINS = 20
# Rows at a time: about 16 MiB of float32 whatever the number of classes.
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class AmbiguousImage:
    """A training image whose soft label is spread over several classes.

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
    ambiguous : tuple of AmbiguousImage
        Those of the highest entropy, the highest first.
    """

    attributes: StoreAttributes
    identity: str
    summary: LabelSummary
    histogram: NDArray[np.int64]
    ambiguous: tuple[AmbiguousImage, ...]


def read_labels(store: Path, data: Path | None, count: int) -> LabelFacts:
    """Read a store and the `count` images it is least sure of.

    Parameters
    ----------
    store : Path
    data : Path or None
        Beton of the images, or None where it is not at hand.
    count : int

    Raises
    ------
    StoreError, JoinError
        When the store is damaged, or labels other images than those of `data`.
    DataError
        When the beton is damaged.
    """
    labels = SoftLabels.open(store)
    histogram, entropy = _scan(labels)
    # A stable sort: of equal entropies the first sample comes first, on every machine.
    hardest = np.argsort(-entropy, kind="stable")[:count].astype(np.int64)
    pixels = _pixels(labels, data, hardest) if data is not None and count else {}
    soft = _normalised(labels, hardest)
    return LabelFacts(
        attributes=labels.attributes,
        identity=labels.identity,
        summary=labels.summary(),
        histogram=histogram,
        ambiguous=tuple(
            AmbiguousImage(int(i), int(labels.labels[i]), row, pixels.get(int(i)))
            for i, row in zip(hardest, soft, strict=True)
        ),
    )


def _scan(labels: SoftLabels) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    histogram = np.zeros(_BINS, dtype=np.int64)
    entropy = np.empty(labels.num_samples, dtype=np.float32)
    step = max(_BLOCK_ELEMENTS // labels.num_classes, 1)
    for begin in range(0, labels.num_samples, step):
        rows = np.arange(begin, min(begin + step, labels.num_samples))
        soft = _normalised(labels, rows)
        histogram += np.histogram(soft.max(axis=1), bins=_BINS, range=(0, 1))[0]
        # p log p tends to 0 with p; the maximum keeps log(0) out of the product.
        entropy[rows] = -(soft * np.log(np.maximum(soft, 1e-30))).sum(axis=1)
    return histogram, entropy


def _normalised(labels: SoftLabels, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    soft = labels.gather(rows).astype(np.float32)
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
    labels.require_data(beton.manifest, str(data))
    # All raw images are copied into memory, if they fit, sooner than FFCV compiles its reader.
    resident = None if beton.manifest.encoding == "raw" else False
    stream = ImageStream(beton, torch.device("cpu"), resident=resident)
    found: dict[int, NDArray[np.uint8]] = {}
    for batch in stream.batches(rows, len(rows)):
        labels.join(batch.rows, batch.sample_hash, str(data))
        found |= dict(zip(batch.rows.tolist(), batch.images.numpy(), strict=True))
    return found
