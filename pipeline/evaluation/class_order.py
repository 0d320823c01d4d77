"""Whether answers are right but for the order of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import LtdPipeError, ModelError
from ltd_pipe.evaluation.statistics import wilson_interval

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
