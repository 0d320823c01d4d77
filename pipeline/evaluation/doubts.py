"""What makes the numbers of an evaluation worthless, as its warnings say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.finding import SLACK, Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["ATTACK_FAILS", "ON_TRAINING", "leaks", "on_training", "unbroken", "worthless"]

# The ends of these warnings: metrics.json holds warnings as people read them.
ATTACK_FAILS = "it is the attack that fails, and none of these numbers can be believed"
ON_TRAINING = "none of these numbers says how it does on images that it has not seen"


def worthless(warnings: Iterable[str]) -> str:
    """What makes the accuracies measure nothing, as one of the warnings says; or nothing."""
    ends = {ATTACK_FAILS: "the attack fails", ON_TRAINING: "it was measured on its training images"}
    found = (why for line in warnings for end, why in ends.items() if line.endswith(end))
    return next(found, "")


def on_training(n: int) -> str:
    """What to tell of an evaluation on the very images that the model was trained on."""
    return f"all {n:,} images are of the model's training data: {ON_TRAINING}"


def leaks(
    sample_hash: NDArray[np.uint64],
    labels: NDArray[np.int64],
    training: NDArray[np.uint64] | None,
) -> list[str]:
    """What to tell of test images that the model may know, or cannot be right on.

    Parameters
    ----------
    sample_hash : ndarray of shape (n,), dtype uint64
    labels : ndarray of shape (n,), dtype int64
    training : ndarray of shape (m,), dtype uint64, or None
        Hashes of the images that it was trained on, where they are at hand.
    """
    n, found = len(labels), []
    known = 0 if training is None else int(np.isin(sample_hash, training).sum())
    if known == n:
        found.append(on_training(n))
    elif known:
        found.append(f"{known:,} of {n:,} test images are of the model's training data, too")
    order = np.lexsort((labels, sample_hash))
    ordered, classes = sample_hash[order], labels[order]
    torn = ordered[1:][(ordered[1:] == ordered[:-1]) & (classes[1:] != classes[:-1])]
    if twice := int(np.isin(sample_hash, torn).sum()):
        found.append(f"{twice:,} of {n:,} test images are in two classes: one of them is wrong")
    return found


def unbroken(left: int, n: int) -> str | None:
    """What to tell of images that stand where every pixel may take any value.

    Parameters
    ----------
    left, n : int
        So many of so many images; one start of PGD may miss as many as the audit allows it.
    """
    if not left:
        return None
    seen = f"{left} of {n} images stand although every pixel may take any value"
    if Finding("", left, n, SLACK, "").passed:
        return f"{seen}: PGD from one start may miss {SLACK:.0%}, and finds no end of the curve"
    return f"{seen}: {ATTACK_FAILS}"
