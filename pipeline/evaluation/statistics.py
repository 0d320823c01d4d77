"""Confidence intervals, calibration, two models on the same images, the order of their classes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from ltd_pipe.errors import LtdPipeError, ModelError

# A fraction of images.
Share = Annotated[float, Field(ge=0, le=1)]
# Normal quantile of a two-sided 95 % interval.
Z95 = 1.959963984540054


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's score interval, 95 %, for `hits` in `n` (Wilson 1927), in [0, 1].

    By hand: scipy's `binomtest` takes a p value first, and loading scipy.stats half a second.
    """
    if n == 0:
        return 0.0, 1.0
    share, z = hits / n, Z95
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Exactly 0 and 1 at the ends, where rounding would leave 1e-18.
    low = 0.0 if hits == 0 else (centre - spread) / scale
    high = 1.0 if hits == n else (centre + spread) / scale
    return low, high


def class_counts(labels: NDArray[np.integer[Any]], num_classes: int) -> NDArray[np.int64]:
    """How many of the images whose class is known are of each class: shape (K,)."""
    return np.bincount(labels[labels >= 0], minlength=num_classes)


def beats_chance(hits: int, counts: NDArray[np.int64]) -> bool:
    """Whether so many right answers are clearly more than guesses, at 95 %.

    `counts` are the images of each class: the best guess is always the commonest one.
    """
    n = int(counts.sum())
    return n > 0 and wilson_interval(hits, n)[0] > counts.max() / n


def chance_text(hits: int, counts: NDArray[np.int64]) -> str | None:
    """What to tell of answers that are not clearly more than guesses; see `beats_chance`.

    Nothing of so few images, or of so few classes, that no answers could be.
    """
    n = int(counts.sum())
    if beats_chance(hits, counts) or not beats_chance(n, counts):
        return None
    return (
        f"{hits:,} of {n:,} images right, where always giving the commonest class has "
        f"{counts.max():,}: not clearly better than chance"
    )


def first_failure(n: int, limit: float) -> int:
    """The fewest of n images whose share is above a limit at 95 %; n + 1 where none are."""
    counts = range(n + 1)
    return bisect_right(counts, limit, key=lambda count: wilson_interval(count, n)[0])


# --- Calibration (Guo et al. 2017).


# Equal parts of (0, 1] behind a calibration error.
BINS = 15


class ConfidenceBin(BaseModel, frozen=True):
    """Answers of about one confidence; bin k has the confidences in (k/15, (k+1)/15]."""

    number: int = Field(ge=0, lt=BINS)
    count: int = Field(ge=1)
    confidence: Share
    accuracy: Share

    @property
    def interval(self) -> tuple[float, float]:
        """Of the accuracy, 95 %."""
        return wilson_interval(round(self.accuracy * self.count), self.count)


def mean_gap(bins: Sequence[ConfidenceBin]) -> float:
    """The calibration error of a reliability diagram (Guo et al. 2017, eq. 3), in [0, 1]."""
    gaps = (one.count * abs(one.confidence - one.accuracy) for one in bins)
    return float(sum(gaps) / sum(one.count for one in bins))


def reliability(
    confidence: NDArray[np.float32], correct: NDArray[np.bool_]
) -> tuple[ConfidenceBin, ...]:
    """A reliability diagram, eq. 1 and 2: accuracy by confidence, in bins that hold something.

    Parameters
    ----------
    confidence : ndarray of shape (N,), dtype float32
        Probability of the predicted class.
    correct : ndarray of shape (N,), dtype bool
    """
    which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return tuple(
        ConfidenceBin(
            number=int(b),
            count=int(np.count_nonzero(which == b)),
            confidence=float(confidence[which == b].mean(dtype=np.float64)),
            accuracy=float(correct[which == b].mean()),
        )
        for b in np.unique(which)
    )


# --- Two models on the same images.
#
# Images on which both are right, or both wrong, say nothing of which is better; the others are
# fair coins if neither is (McNemar 1947, in the exact form of a binomial test).


@dataclass(frozen=True)
class Paired:
    """How one model does against another on the same images.

    Attributes
    ----------
    n : int
        Images.
    gained, lost : int
        Right by this model and not by the other, and the reverse.
    low, high : float
        95 % interval of the difference.
    p : float
        Of McNemar's exact test, two-sided.
    """

    n: int
    gained: int
    lost: int
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        """Accuracy of this model less that of the other; a fraction."""
        return (self.gained - self.lost) / self.n


def mcnemar_p(gained: int, lost: int) -> float:
    """The two-sided p value of McNemar's exact test; 1 where two models differ on no image."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def pair(this: NDArray[np.bool_], other: NDArray[np.bool_]) -> Paired:
    """Compare two models by which images, bool of shape (n,) in the same order, each is right on.

    The 95 % interval is the adjusted Wald interval for matched pairs (Agresti and
    Min 2005, half an image added to each of the four cells).
    """
    n = len(this)
    gained, lost = int((this & ~other).sum()), int((~this & other).sum())
    adjusted = n + 2
    centre = (gained - lost) / adjusted
    variance = (gained + lost + 1) / adjusted - centre**2
    spread = Z95 * math.sqrt(variance / adjusted)
    low, high = max(centre - spread, -1.0), min(centre + spread, 1.0)
    return Paired(n, gained, lost, low, high, mcnemar_p(gained, lost))


# --- Whether answers are right but for the order of the classes.


# Share of the classes that are answered as others which are answered as one another.
_CLOSED = 0.6
# Pairs of classes in an error.
_SHOWN = 4


def permutation(
    truth: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]]
) -> dict[int, int]:
    """Which class's images are answered as which, where answers are right but for their order.

    Classes of shape (n,), negative where the truth is unknown; the dict is empty where the order is
    right. One half of each class's images matches classes with answers, the most frequent pairs
    first; the other half has to confirm that the match is clearly better than the order as it is,
    so that a teacher who knows nothing, or takes one class for another, is no permutation.
    """
    order = np.argsort(truth, kind="stable")
    order = order[truth[order] >= 0]
    _, first, counts = np.unique(truth[order], return_index=True, return_counts=True)
    half = (np.arange(len(order)) - np.repeat(first, counts)) % 2 == 0
    pairs, times = np.unique(
        np.stack([truth[order[half]], predicted[order[half]]], axis=1), axis=0, return_counts=True
    )
    # Of equally frequent pairs the class itself is taken.
    by_count = np.lexsort((pairs[:, 0] != pairs[:, 1], -times))
    match, taken = dict[int, int](), set[int]()
    for true, answer in pairs[by_count].tolist():
        if true not in match and answer not in taken:
            match[true] = answer
            taken.add(answer)
    moved = {true: answer for true, answer in match.items() if true != answer}
    if sum(answer in moved for answer in moved.values()) < _CLOSED * len(moved):
        return {}  # answered as classes that are answered as themselves
    rest = order[~half]
    rest = rest[np.isin(truth[rest], list(moved))]
    matched = np.array([moved[true] for true in truth[rest].tolist()], dtype=predicted.dtype)
    n, hits = len(rest), int((predicted[rest] == matched).sum())
    plain = int((predicted == truth)[rest].sum())
    if n == 0 or wilson_interval(hits, n)[0] <= wilson_interval(plain, n)[1] or hits < 2 * plain:
        return {}
    return dict(sorted(moved.items()))


def require_order(
    truth: NDArray[np.integer[Any]],
    predicted: NDArray[np.integer[Any]],
    class_names: Sequence[str],
    where: object,
    options: str = "--",
    error: type[LtdPipeError] = ModelError,
) -> None:
    """Refuse answers that are right but for the order of the classes; see `permutation`.

    `where` says whose answers they are, `options` what the user's options of that model begin with,
    empty where it has none; `error` is another kind than ModelError, of labels that are no model's
    here.
    """
    moved = permutation(truth, predicted)
    if not moved:
        return
    from ltd_pipe.models.foreign import natural_order

    natural = natural_order(class_names)
    remedy = f"Say its order by {options}class-order, or by {options}classes FILE."
    if all(natural.index(class_names[true]) == other for true, other in moved.items()):
        remedy = f"It is the natural order (1, 2, 10): pass {options}class-order natural."
    if not options:
        remedy = "Put the columns into the order of the data's classes."
    pairs = [f"'{class_names[true]}' as '{class_names[other]}'" for true, other in moved.items()]
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    raise error(
        where,
        "has the classes in another order than the data",
        expected="each class's images to be answered as that class",
        found=", ".join(pairs[:_SHOWN]) + more,
        remedy=remedy,
    )
