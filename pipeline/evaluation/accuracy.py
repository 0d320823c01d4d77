"""Accuracy, its confidence interval, and calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ltd_pipe.evaluation.statistics import BINS, ConfidenceBin, mean_gap, wilson_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ltd_pipe.images.stream import ImageStream
    from ltd_pipe.models.classifier import Classifier

# Share of the classes that are answered as others which are answered as one another.
_CLOSED = 0.6


def permutation(truth: NDArray[np.integer[Any]], said: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Which class's images are answered as which, where answers are right but for their order.

    One half of each class's images matches classes with answers, the most frequent pairs first;
    the other half has to confirm that the match is clearly better than the order as it is, so
    that a teacher who knows nothing, or takes one class for another, is no permutation.

    Parameters
    ----------
    truth : ndarray of shape (n,)
        Classes; negative where unknown.
    said : ndarray of shape (n,)
        The answers.

    Returns
    -------
    dict of int to int
        The classes that are answered as others; empty where the order is right.
    """
    order = np.argsort(truth, kind="stable")
    order = order[truth[order] >= 0]
    _, first, counts = np.unique(truth[order], return_index=True, return_counts=True)
    half = (np.arange(len(order)) - np.repeat(first, counts)) % 2 == 0
    pairs, times = np.unique(
        np.stack([truth[order[half]], said[order[half]]], axis=1), axis=0, return_counts=True
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
    matched = np.array([moved[true] for true in truth[rest].tolist()], dtype=said.dtype)
    n, hits, plain = len(rest), int((said[rest] == matched).sum()), int((said == truth)[rest].sum())
    if n == 0 or wilson_interval(hits, n)[0] <= wilson_interval(plain, n)[1] or hits < 2 * plain:
        return {}
    return dict(sorted(moved.items()))


def expected_calibration_error(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = BINS
) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence.

    Guo et al. 2017, eq. 3.

    Parameters
    ----------
    probabilities : ndarray of shape (N, K), dtype float32
        Rows are distributions.
    labels : ndarray of shape (N,), dtype int64
    bins : int
        Equal parts of (0, 1].

    Returns
    -------
    float
        In [0, 1]; lower is better.
    """
    return calibration_error(
        probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins
    )


def calibration_error(
    confidence: NDArray[np.float32], correct: NDArray[np.bool_], bins: int = BINS
) -> float:
    """`expected_calibration_error` of what is known of each answer.

    Parameters
    ----------
    confidence : ndarray of shape (N,), dtype float32
        Probability of the predicted class.
    correct : ndarray of shape (N,), dtype bool
    bins : int
        Equal parts of (0, 1].

    Returns
    -------
    float
        In [0, 1]; lower is better.
    """
    return mean_gap(reliability(confidence, correct, bins))


def reliability(
    confidence: NDArray[np.float32], correct: NDArray[np.bool_], bins: int = BINS
) -> list[ConfidenceBin]:
    """A reliability diagram: accuracy by confidence, in bins that hold something.

    Guo et al. 2017, eq. 1 and 2; `calibration_error` is the mean gap of these bins.

    Parameters
    ----------
    confidence : ndarray of shape (N,), dtype float32
        Probability of the predicted class.
    correct : ndarray of shape (N,), dtype bool
    bins : int
        Equal parts of (0, 1].
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        ConfidenceBin(
            number=int(b),
            count=int(np.count_nonzero(which == b)),
            confidence=float(confidence[which == b].mean(dtype=np.float64)),
            accuracy=float(correct[which == b].mean()),
        )
        for b in np.unique(which)
    ]


def predict(
    model: Classifier, stream: ImageStream, samples: NDArray[np.int64], batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities of all classes, and the true labels, of some samples.

    Returns
    -------
    tuple of ndarray
        Shape (N, K), float32, and (N,), int64, in the order of `samples`.
    """
    import torch

    from ltd_pipe.images.manifest import to_unit

    probabilities, labels = [], []
    for batch in stream.batches(samples, batch_size):
        with torch.no_grad():
            logits = model(to_unit(batch.images)).float()
        probabilities.append(logits.softmax(dim=1).cpu().numpy())
        labels.append(batch.labels.cpu().numpy())
    return np.concatenate(probabilities), np.concatenate(labels)
