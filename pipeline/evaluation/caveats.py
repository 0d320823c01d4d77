"""What makes the numbers of an evaluation doubtful, as warnings for people."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.evaluation.results import ATTACK_FAILS, SLACK, on_training
from ltd_pipe.evaluation.statistics import beats_chance, first_failure, wilson_interval

# What a checkpoint says may be of other images (validation), so that a little is no sign.
_ALLOWED_GAP = 0.05


def image_warnings(
    sample_hash: NDArray[np.uint64],
    labels: NDArray[np.int64],
    training: NDArray[np.uint64] | None,
) -> list[str]:
    """Warn of test images that the model may know, or cannot be right on.

    `training` are hashes of the images that it was trained on, where they are at hand.
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


def contradicted_accuracy(hits: int, n: int, stated: float, of_what: str) -> str | None:
    """Warn of a model that is not as accurate on clean images as its checkpoint says.

    A difference within five points, or within the interval at 95 %, is none.
    """
    low, high = wilson_interval(hits, n)
    if low <= stated <= high or abs(hits / n - stated) <= _ALLOWED_GAP:
        return None
    return (
        f"clean accuracy is {hits / n:.1%} of {n:,} images, but the checkpoint says {stated:.1%} "
        f"({of_what}): other images, or pixels on another scale"
    )


def weak_source(name: str, hits: int, n: int, num_classes: int) -> str | None:
    """Warn of a transfer from a model that knows nothing of these images."""
    if beats_chance(hits, n, num_classes):
        return None
    return (
        f"transfer from {name} was not tried in earnest: that model is right on {hits} of {n:,} "
        "clean images, no better than chance; look at its normalisation and its order of classes"
    )


def unbroken(left: int, n: int) -> str | None:
    """Warn of images that stand where every pixel may take any value.

    One start of PGD may miss as many of the n images as the audit allows it.
    """
    if not left:
        return None
    seen = f"{left} of {n} images stand although every pixel may take any value"
    if left < first_failure(n, SLACK):
        return f"{seen}: PGD from one start may miss {SLACK:.0%}, and finds no end of the curve"
    return f"{seen}: {ATTACK_FAILS}"
