"""A number of a soft-label store that an arm of the study is to share: smoothing or temperature.

python match.py smoothing STORE      alpha of label smoothing with the store's mean entropy
python match.py temperature STORE    the temperature that the teacher's logits were divided by
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

from ltd_pipe.labels.reader import SoftLabels


def smoothed_entropy(alpha: float, num_classes: int) -> float:
    """Entropy in nats of a label of which `alpha` is spread evenly over all classes."""
    probs = np.full(num_classes, alpha / num_classes)
    probs[0] += 1 - alpha
    return float(-(probs[probs > 0] * np.log(probs[probs > 0])).sum())


def matching_smoothing(entropy: float, num_classes: int) -> float:
    """The alpha in [0, 1] at which smoothed labels have this entropy, in nats."""
    return float(brentq(lambda alpha: smoothed_entropy(alpha, num_classes) - entropy, 0, 1))


def main(what: str, store: str) -> None:
    """Print the number."""
    labels = SoftLabels.open(Path(store))
    if what == "temperature":
        print(labels.attributes.temperature)
    else:
        entropy = labels.summary().mean_entropy
        print(round(matching_smoothing(entropy, labels.num_classes), 6))


if __name__ == "__main__":
    main(*sys.argv[1:])
