"""A number of a soft-label store that an arm of the study is to share: smoothing or temperature.

python match.py smoothing STORE      alpha of label smoothing with the store's mean entropy
python match.py temperature STORE    the temperature that the teacher's logits were divided by
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import matching_smoothing

from ltd_pipe.labels.reader import SoftLabels


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
