"""How soft labels are, and how often they contradict the ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.labels.half import to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LabelSummary", "Softness", "summarise", "uniform_below"]

# Rows at a time: float32 copies of a few MiB stay in the cache and never fill the memory.
_BLOCK_ELEMENTS = 2**20


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
        Whether the labels are as good as one-hot or as uniform ones.
    """

    mean_entropy: float
    mean_top_probability: float
    disagreement: float | None
    warnings: tuple[str, ...]


class Softness:
    """Sums over soft labels that come in blocks.

    Parameters
    ----------
    num_classes : int
        K.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._entropy = self._top = 0.0
        self._rows = self._known = self._wrong = 0

    def add(self, labels: NDArray[np.integer[Any]], *stored: NDArray[Any]) -> None:
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
        step = max(_BLOCK_ELEMENTS // width, 1)
        for at in range(0, len(truth), step):
            rows = [column[at : at + step] for column in columns]
            self._add_rows(truth[at : at + step], rows)

    def _add_rows(self, truth: NDArray[np.integer[Any]], rows: list[NDArray[Any]]) -> None:
        probs, rest, others = to_float32(rows[-1]), np.zeros(len(truth), np.float32), 0
        if len(rows) == 1:
            probs /= probs.sum(axis=1, keepdims=True)
            best = probs.argmax(axis=1)
        else:
            # The rest is spread evenly over the classes that are not stored.
            others = self._num_classes - probs.shape[1]
            rest = np.maximum(1.0 - probs.sum(axis=1), 0.0) if others else rest
            total = probs.sum(axis=1) + rest
            probs /= total[:, None]
            rest /= total
            best = rows[0][:, 0]
        self._entropy -= _p_log_p(probs) + _p_log_p(rest, max(others, 1))
        self._top += float(probs.max(axis=1).sum(dtype=np.float64))
        self._wrong += int(((best != truth) & (truth >= 0)).sum())
        self._known += int((truth >= 0).sum())
        self._rows += len(truth)

    def summary(self) -> LabelSummary:
        """What was taken, on average."""
        if not self._rows:
            raise ValueError("no soft labels to summarise")
        mean_top = self._top / self._rows
        return LabelSummary(
            mean_entropy=self._entropy / self._rows,
            mean_top_probability=mean_top,
            disagreement=self._wrong / self._known if self._known else None,
            warnings=_warnings(mean_top, self._num_classes),
        )


def _p_log_p(probs: NDArray[np.float32], classes: int = 1) -> float:
    # Of mass that is spread over so many classes. p log p tends to 0 with p; the clip keeps
    # log(0) out of the product.
    return float((probs * np.log(np.maximum(probs / classes, 1e-30))).sum(dtype=np.float64))


def summarise(soft: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> LabelSummary:
    """Summarise soft labels.

    Parameters
    ----------
    soft : ndarray of shape (N, K)
        Rows are distributions.
    labels : ndarray of shape (N,)
        Classes; -1 where unknown.
    """
    counts = Softness(soft.shape[1])
    counts.add(labels, soft)
    return counts.summary()


def uniform_below(num_classes: int) -> float:
    """The mean top probability below which labels are as good as uniform ones."""
    # Of few classes a half more than chance is a lot.
    return min(1.5, 1.0 + 0.1 * (num_classes - 1)) / num_classes


def _warnings(mean_top: float, num_classes: int) -> tuple[str, ...]:
    # Either way the student learns nothing from the teacher that it could not have without.
    cure = "label.temperature, or set it to auto:0.95."
    found = f"mean top probability {mean_top:.5f} of {num_classes} classes"
    if mean_top > 0.999:
        return (f"The soft labels are as good as one-hot ({found}): raise {cure}",)
    if mean_top < uniform_below(num_classes):
        return (f"The soft labels are as good as uniform ({found}): lower {cure}",)
    return ()
