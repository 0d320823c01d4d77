"""What soft labels are like in more detail, from a bounded number of evenly spaced rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.labels.half import to_float32
from pipeline.labels.softness import LabelSummary, Softness
from pipeline.labels.topk import expand

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.labels.arrays import ArrayLayout

__all__ = ["MAX_TABLE_CLASSES", "NUM_BINS", "ClassStatistics", "LabelStatistics", "measure"]

# Enough for three digits of a mean; of a thousand classes 128 MiB, which takes a second.
_MAX_ROWS, _MAX_ELEMENTS = 2**16, 2**26
# Elements in memory at a time.
_BLOCK_ELEMENTS = 2**20
NUM_BINS = 20
MAX_TABLE_CLASSES = 20


@dataclass(frozen=True)
class ClassStatistics:
    """The measured rows whose ground truth is one class.

    Attributes
    ----------
    rows : int
        How many they are.
    mean_top_probability, mean_own_probability : float
        Of whatever class is largest, and of this one.
    agreement : float
        Share of rows whose largest probability is on this class.
    """

    rows: int
    mean_top_probability: float
    mean_own_probability: float
    agreement: float


@dataclass(frozen=True)
class LabelStatistics:
    """What the measured rows are like.

    Attributes
    ----------
    samples, rows : int
        How many were measured; a sample has one row per view.
    summary : LabelSummary
        Means over them.
    histogram : tuple of int
        Rows by largest probability, in `NUM_BINS` equal bins from 0 to 1.
    classes : tuple of ClassStatistics or None
        One per class, None for a class of no measured row; empty when there are more classes
        than `MAX_TABLE_CLASSES`, or no class is known.
    """

    samples: int
    rows: int
    summary: LabelSummary
    histogram: tuple[int, ...]
    classes: tuple[ClassStatistics | None, ...]


def measure(folder: Path, layouts: Sequence[ArrayLayout]) -> LabelStatistics:
    """Measure at most 65,536 rows, fewer when they are very wide.

    Parameters
    ----------
    folder : Path
        A store whose chunk files were just written: their checksums are not checked again.
    layouts : sequence of ArrayLayout
        Of its arrays.
    """
    arrays = {layout.name: layout for layout in layouts}
    sparse = "topk_probs" in arrays
    names = ("topk_indices", "topk_probs") if sparse else ("soft_labels",)
    last = arrays[names[-1]]
    index = _evenly_spaced(last)
    softness, tally = Softness(last.num_classes), _Tally(last.num_classes)
    step = max(_BLOCK_ELEMENTS // int(np.prod(last.row_shape)), 1)
    for at in range(0, len(index), step):
        rows = index[at : at + step]
        labels, *stored = (_rows_of(folder, arrays[name], rows) for name in ("labels", *names))
        softness.add(labels, *stored)
        tally.add(labels, *stored)
    return LabelStatistics(
        samples=len(index),
        rows=len(index) * last.num_views,
        summary=softness.summary(),
        histogram=tuple(tally.histogram.tolist()),
        classes=tally.classes(),
    )


def _evenly_spaced(layout: ArrayLayout) -> NDArray[np.int64]:
    elements = int(np.prod(layout.row_shape))
    count = min(_MAX_ROWS // layout.num_views, _MAX_ELEMENTS // elements, layout.num_samples)
    count = max(count, 1)
    return np.arange(count, dtype=np.int64) * layout.num_samples // count


def _rows_of(folder: Path, layout: ArrayLayout, index: NDArray[np.int64]) -> NDArray[Any]:
    # Only the pages with these rows are read, whatever the size of the store.
    def parts() -> Iterator[NDArray[Any]]:
        chunks = index // layout.rows
        for chunk in np.unique(chunks).tolist():
            path = folder / layout.chunk_name(chunk)
            mapped = np.memmap(path, layout.dtype, mode="r", shape=layout.chunk_shape)
            yield np.asarray(mapped[index[chunks == chunk] - chunk * layout.rows])

    return np.concatenate([*parts()])


class _Tally:
    # Counts by largest probability, and by class where these are few.

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self.histogram = np.zeros(NUM_BINS, np.int64)
        few = num_classes if num_classes <= MAX_TABLE_CLASSES else 0
        # Rows, sums of the top and of the own probability, and rows that agree.
        self._sums = np.zeros((few, 4), np.float64)

    def add(self, labels: NDArray[np.integer[Any]], *stored: NDArray[Any]) -> None:
        columns = [block.reshape(-1, block.shape[-1]) for block in stored]
        truth = np.repeat(labels, len(columns[0]) // len(labels))
        probs = to_float32(columns[-1])
        total = probs.sum(axis=1)
        if len(columns) > 1 and probs.shape[1] < self._num_classes:
            total = np.maximum(total, 1.0)  # the rest is spread
        top = probs.max(axis=1) / total
        bins = np.minimum((top * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        self.histogram += np.bincount(bins, minlength=NUM_BINS)
        if len(self._sums):
            dense = expand(columns[0], probs, self._num_classes) if len(columns) > 1 else probs
            best = columns[0][:, 0] if len(columns) > 1 else probs.argmax(axis=1)
            self._add_classes(truth, dense / dense.sum(axis=1, keepdims=True), top, best)

    def _add_classes(
        self,
        truth: NDArray[np.integer[Any]],
        dense: NDArray[np.float32],
        top: NDArray[np.float32],
        best: NDArray[np.integer[Any]],
    ) -> None:
        for number in range(len(self._sums)):
            of = truth == number
            self._sums[number] += (
                of.sum(),
                top[of].sum(dtype=np.float64),
                dense[of, number].sum(dtype=np.float64),
                (best[of] == number).sum(),
            )

    def classes(self) -> tuple[ClassStatistics | None, ...]:
        if not self._sums[:, 0].any():
            return ()
        return tuple(
            ClassStatistics(int(rows), top / rows, own / rows, agreeing / rows) if rows else None
            for rows, top, own, agreeing in self._sums.tolist()
        )
