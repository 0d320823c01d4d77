"""How soft labels are, and how often they contradict the ground truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import StoreError
from ltd_pipe.evaluation.statistics import chance_text, class_counts
from ltd_pipe.labels.format import to_float32
from ltd_pipe.labels.layout import SPARSE

if TYPE_CHECKING:
    from ltd_pipe.labels.layout import ArrayLayout

# Rows at a time: float32 copies of a few MiB stay in the cache and never fill the memory.
_BLOCK_ELEMENTS = 2**20
# Measured for a card: enough for three digits of a mean; of a thousand classes 128 MiB, which
# takes a second.
_MAX_ROWS, _MAX_ELEMENTS = 2**16, 2**26
NUM_BINS = 20
MAX_TABLE_CLASSES = 20


@dataclass(frozen=True)
class LabelSummary:
    """What soft labels are like.

    Attributes
    ----------
    mean_entropy : float
        In nats; between 0 and ln K.
    mean_top_probability : float
        Between 1/K and 1.
    disagreement : float or None
        Share of samples of known class whose largest probability is on another class; None
        when no class is known.
    warnings : tuple of str
        Whether the labels agree with the ground truth no more than guesses may, or are as good as
        one-hot or as uniform ones.
    """

    mean_entropy: float
    mean_top_probability: float
    disagreement: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ClassStatistics:
    """The measured rows of one class: how many, means of the largest and of its own probability.

    `agreement` is the share of rows whose largest probability is on this class.
    """

    rows: int
    mean_top_probability: float
    mean_own_probability: float
    agreement: float


@dataclass(frozen=True)
class LabelStatistics:
    """What the measured rows are like.

    A sample has one row per view. `histogram` counts rows by largest probability, in `NUM_BINS`
    equal bins from 0 to 1. `classes` has None for a class of no measured row, and is empty when
    there are more than `MAX_TABLE_CLASSES`, or none is known.
    """

    samples: int
    rows: int
    summary: LabelSummary
    histogram: tuple[int, ...]
    classes: tuple[ClassStatistics | None, ...]


class Softness:
    """Sums over soft labels that come in blocks."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._entropy = self._top = 0.0
        self._samples = self._rows = self._wrong = 0
        self._histogram = np.zeros(NUM_BINS, np.int64)
        self._counts = np.zeros(num_classes, np.int64)  # of all classes: rows that are of it
        few = num_classes if num_classes <= MAX_TABLE_CLASSES else 0
        # Of each class: rows, sums of the top and of its own probability, rows that agree.
        self._classes = np.zeros((few, 4), np.float64)

    def add(self, labels: NDArray[np.integer[Any]], *stored: NDArray[Any]) -> Self:
        """Take some samples.

        Parameters
        ----------
        labels : ndarray of shape (n,)
            Classes; -1 where unknown.
        stored : ndarray of shape (n, K) or (n, V, K); or two of shape (n, k) or (n, V, k)
            Probabilities, or the classes and probabilities of a top-k store.
        """
        width = stored[-1].shape[-1]
        columns = [block.reshape(-1, width) for block in stored]
        truth = np.repeat(labels, len(columns[-1]) // max(len(labels), 1))
        self._samples += len(labels)
        step = max(_BLOCK_ELEMENTS // width, 1)
        for at in range(0, len(truth), step):
            self._add_rows(truth[at : at + step], [column[at : at + step] for column in columns])
        return self

    def _add_rows(self, truth: NDArray[np.integer[Any]], rows: list[NDArray[Any]]) -> None:
        probs = to_float32(rows[-1])
        total = probs.sum(axis=1)
        # Of a top-k row the rest is spread evenly over the classes that are not stored.
        others = self._num_classes - probs.shape[1]
        rest = np.maximum(1.0 - total, 0.0) if others else np.zeros(len(total), np.float32)
        total += rest
        probs /= total[:, None]
        rest /= total
        best = probs.argmax(axis=1) if len(rows) == 1 else rows[0][:, 0]
        top = probs.max(axis=1)
        for part, classes in ((probs, 1), (rest, others)):
            self._entropy -= float(_p_log_p(part, classes).sum(dtype=np.float64))
        self._top += float(top.sum(dtype=np.float64))
        self._wrong += int(((best != truth) & (truth >= 0)).sum())
        self._counts += class_counts(truth, self._num_classes)
        self._rows += len(truth)
        bins = np.minimum((top * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        self._histogram += np.bincount(bins, minlength=NUM_BINS)
        for number in range(len(self._classes)):
            of = truth == number
            # A stored probability of the class, or its share of the rest.
            is_own = np.arange(len(probs[0])) == number if len(rows) == 1 else rows[0][of] == number
            own = np.where(is_own, probs[of], 0.0).sum(axis=1, dtype=np.float64)
            if others:
                own += np.where(is_own.any(axis=1), 0.0, rest[of] / others)
            agreeing = (best[of] == number).sum()
            self._classes[number] += of.sum(), top[of].sum(dtype=float), own.sum(), agreeing

    def summary(self) -> LabelSummary:
        """What was taken, on average."""
        if not self._rows:
            raise ValueError("no soft labels to summarise")
        mean_top = self._top / self._rows
        # Views of one sample are no further evidence.
        counts = self._counts * self._samples // self._rows
        known = int(self._counts.sum())
        disagreement = self._wrong / known if known else None
        return LabelSummary(
            mean_entropy=self._entropy / self._rows,
            mean_top_probability=mean_top,
            disagreement=disagreement,
            warnings=_warnings(mean_top, disagreement, counts),
        )

    def statistics(self) -> LabelStatistics:
        """What was taken, in more detail."""
        classes = tuple(
            ClassStatistics(int(rows), top / rows, own / rows, agreeing / rows) if rows else None
            for rows, top, own, agreeing in self._classes.tolist()
        )
        return LabelStatistics(
            samples=self._samples,
            rows=self._rows,
            summary=self.summary(),
            histogram=tuple(self._histogram.tolist()),
            classes=classes if any(classes) else (),
        )


def entropy(probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entropy of each row of distributions of shape (n, K), in nats."""
    found: NDArray[np.float32] = -_p_log_p(probs).sum(axis=1)
    return found


def _p_log_p(probs: NDArray[np.float32], classes: int = 1) -> NDArray[np.float32]:
    # Of mass that is spread over so many classes. p log p tends to 0 with p; the maximum keeps
    # log(0) out of the product.
    found: NDArray[np.float32] = np.maximum(probs / classes if classes > 1 else probs, 1e-30)
    np.log(found, out=found)
    found *= probs
    return found


def uniform_below(num_classes: int) -> float:
    """The mean top probability below which labels are as good as uniform ones."""
    # Of few classes a half more than chance is a lot.
    return min(1.5, 1.0 + 0.1 * (num_classes - 1)) / num_classes


def refuse_uniform(
    where: object, labels_are: str, mean_top: float, num_classes: int, remedy: str
) -> None:
    """Refuse labels that are as good as uniform, by their mean top probability."""
    if mean_top < (limit := uniform_below(num_classes)):
        what = f"{labels_are} as good as uniform: mean top probability"
        expected, found = f"{limit:.3g} or more", f"{mean_top:.3g}"
        raise StoreError(where, what, expected=expected, found=found, remedy=remedy)


def _warnings(
    mean_top: float, disagreement: float | None, counts: NDArray[np.int64]
) -> tuple[str, ...]:
    found, cure = [], ": {} label.temperature, or set it to auto:0.95."
    num_classes, known = len(counts), int(counts.sum())
    agreeing = round((1 - (disagreement or 0.0)) * known)
    if told := chance_text(agreeing, counts):
        found.append(
            f"The soft labels have {told}: look at the teacher's normalisation and its order of "
            "classes, or train it for longer"
        )
        cure = ""  # no temperature helps
    # Either way the student learns nothing from the teacher that it could not have without.
    measured = f"(mean top probability {mean_top:.5f} of {num_classes} classes)"
    if mean_top > 0.999:
        found.append(f"The soft labels are as good as one-hot {measured}{cure.format('raise')}")
    elif mean_top < uniform_below(num_classes):
        found.append(f"The soft labels are as good as uniform {measured}{cure.format('lower')}")
    return tuple(found)


def measure(folder: Path, layouts: Sequence[ArrayLayout]) -> LabelStatistics:
    """Measure at most 65,536 evenly spaced rows, fewer when they are very wide.

    The chunk files in `folder` were just written: their checksums are not checked again.
    """
    arrays = {layout.name: layout for layout in layouts}
    names = ("labels", *(SPARSE if "topk_probs" in arrays else ("soft_labels",)))
    widest = arrays[names[-1]]
    index, softness = measured_rows(widest), Softness(widest.num_classes)
    step = max(_BLOCK_ELEMENTS // math.prod(widest.row_shape), 1)
    for at in range(0, len(index), step):
        rows = index[at : at + step]
        labels, *stored = (_read_rows(folder, arrays[name], rows) for name in names)
        softness.add(labels, *stored)
    return softness.statistics()


def measured_rows(layout: ArrayLayout) -> NDArray[np.int64]:
    """The rows that `measure` looks at, evenly spaced."""
    elements = math.prod(layout.row_shape)
    most = min(_MAX_ROWS // layout.num_views, _MAX_ELEMENTS // elements)
    return evenly_spaced(layout.num_samples, most)


def evenly_spaced(total: int, most: int) -> NDArray[np.int64]:
    """At most so many of the numbers below `total`, one at least."""
    count = max(min(total, most), 1)
    return np.arange(count, dtype=np.int64) * total // count


def _read_rows(folder: Path, layout: ArrayLayout, index: NDArray[np.int64]) -> NDArray[Any]:
    # Only the pages with these rows are read, whatever the size of the store.
    chunks, parts = index // layout.rows, []
    for chunk in np.unique(chunks).tolist():
        path = folder / layout.chunk_name(chunk)
        mapped = np.memmap(path, layout.dtype, mode="r", shape=layout.chunk_shape)
        parts.append(np.asarray(mapped[index[chunks == chunk] - chunk * layout.rows]))
    return np.concatenate(parts)
