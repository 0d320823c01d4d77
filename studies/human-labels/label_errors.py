"""Whether labels that a teacher contradicts are wrong: by reviewers, and by what people said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from people import Answers

__all__ = ["FIRST", "found", "suspicions"]

FIRST = (10, 50, 200)


def suspicions(probs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """How suspect each label is, three ways, each of shape (N,).

    The margin is what the report ranks by; self-confidence is Northcutt et al.'s (2021).
    """
    rows = np.arange(len(labels))
    own, others = probs[rows, labels], probs.copy()
    others[rows, labels] = -1
    other = others.max(axis=1)
    return {"margin": other - own, "contradicting class": other, "self-confidence": 1 - own}


def found(probs: np.ndarray, answers: Answers) -> dict[str, list[dict[str, int]]]:
    """Of the most suspect labels, by each ranking: how many were reviewed, and are wrong.

    `wrong` are those of the reviewed, `people` those whose image most people give another class,
    reviewed or not.
    """
    by_people = answers.majority != answers.labels
    counted = {"reviewed": answers.reviewed, "wrong": answers.wrong, "people": by_people}
    table = {}
    for name, values in suspicions(probs, answers.labels).items():
        # As the report does: of equal values the first image comes first.
        order = np.argsort(-values, kind="stable")
        table[name] = [
            {
                "first": first,
                **{key: int(is_so[order[:first]].sum()) for key, is_so in counted.items()},
            }
            for first in FIRST
        ]
    return table
