"""In which rows two stores differ, and by how much."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.derive import answer_arrays, row_blocks
from ltd_pipe.labels.format import to_float32
from ltd_pipe.labels.join import match_rows
from ltd_pipe.labels.layout import SPARSE
from ltd_pipe.text import differences, nfc, quoted

if TYPE_CHECKING:
    from ltd_pipe.labels.reader import SoftLabels


@dataclass(frozen=True, order=True)
class RowDifference:
    """One sample that differs.

    Attributes
    ----------
    total_variation : float
        Of the normalised soft labels; of several views, of the worst.
    largest : float
        The largest difference of a stored probability.
    row, other_row : int
        In the first and in the second store.
    sample_hash : str
        Sixteen hexadecimal digits.
    views_changed : int
        Views whose most probable class differs.
    labels : tuple of int
        The ground truth that each store has.
    """

    total_variation: float
    largest: float
    row: int
    other_row: int
    sample_hash: str
    views_changed: int
    labels: tuple[int, int]


@dataclass
class Comparison:
    """What two stores have in common and what not.

    Attributes
    ----------
    attributes : dict
        Of each attribute that differs, as `dataset.name`, both values.
    arrays : dict
        Of each array that only one has, which.
    compared, moved : int
        Samples that are in both, and those of them whose row number differs.
    only_first, only_second : ndarray of int64
        Rows without a partner.
    different, logits_different, labels_different : int
        Samples of which a stored soft label, the logits (None where one store has none), or the
        ground truth differ at all.
    argmax_changes : int
        Rows (sample and view) whose most probable class differs.
    largest, mean_total_variation, worst_total_variation : float
        Differences of probabilities, over rows of samples that are in both.
    worst : list of RowDifference
        The samples that differ most, the worst first.
    """

    attributes: dict[str, tuple[Any, Any]]
    arrays: dict[str, str]
    compared: int
    moved: int
    only_first: NDArray[np.int64]
    only_second: NDArray[np.int64]
    different: int = 0
    logits_different: int | None = None
    labels_different: int = 0
    argmax_changes: int = 0
    largest: float = 0.0
    mean_total_variation: float = 0.0
    worst_total_variation: float = 0.0
    worst: list[RowDifference] = field(default_factory=list)

    @property
    def same_rows(self) -> bool:
        """Whether both have the same samples with the same labels, in whatever order."""
        return not (
            len(self.only_first)
            or len(self.only_second)
            or self.different
            or self.logits_different
            or self.labels_different
        )

    @property
    def same(self) -> bool:
        """Whether nothing at all differs."""
        return self.same_rows and not (self.attributes or self.arrays or self.moved)


def compare_stores(
    first: SoftLabels,
    second: SoftLabels,
    *,
    rows: int = 20,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare two stores sample by sample, matched by hash, in the memory of few rows.

    Parameters
    ----------
    first, second : SoftLabels
    rows : int
        How many of the samples that differ to tell of.
    progress : callable, optional
        Called with the number of samples just compared.

    Raises
    ------
    StoreError
        When one is damaged, or their rows have no common shape or classes.
    """
    for what, expected, other in (
        ("number of classes", first.num_classes, second.num_classes),
        ("number of views", first.num_views, second.num_views),
    ):
        if expected != other:
            raise StoreError(
                second.path,
                f"{what}: rows of these stores cannot be compared",
                expected=f"{expected} as {first.path} has",
                found=other,
            )
    known = first.attributes.class_names, second.attributes.class_names
    for number, names in enumerate(zip(*known, strict=True)):
        if nfc(names[0]) != nfc(names[1]):
            raise StoreError(
                second.path,
                f"class {number}: columns of these stores cannot be compared",
                expected=f"{quoted(names[0])} as {first.path} has",
                found=quoted(names[1]),
            )
    pairs = match_rows((first.sample_hash, first.labels), (second.sample_hash, second.labels))
    changes = differences(first.attributes.to_json(), second.attributes.to_json())
    ours, theirs = set(answer_arrays(first)), set(answer_arrays(second))
    found = Comparison(
        attributes={name: (wanted, other) for name, wanted, other in changes},
        arrays=dict.fromkeys(sorted(ours - theirs), "only in the first")
        | dict.fromkeys(sorted(theirs - ours), "only in the second"),
        compared=len(pairs.first),
        moved=int((pairs.first != pairs.second).sum()),
        only_first=pairs.only_first,
        only_second=pairs.only_second,
        logits_different=0 if first.has_logits and second.has_logits else None,
        labels_different=int((first.labels[pairs.first] != second.labels[pairs.second]).sum()),
    )
    total = 0.0
    for at in row_blocks(0, len(pairs.first), first.num_classes * first.num_views):
        total += _add_block(found, (first, second), (pairs.first[at], pairs.second[at]), rows)
        if progress is not None:
            progress(len(at))
    found.mean_total_variation = total / max(len(pairs.first) * first.num_views, 1)
    return found


def _add_block(
    found: Comparison,
    stores: tuple[SoftLabels, SoftLabels],
    index: tuple[NDArray[np.int64], NDArray[np.int64]],
    count: int,
) -> float:
    """Count the differences of some samples in; the sum of their total variations."""
    shape = (len(index[0]), stores[0].num_views, stores[0].num_classes)
    sides = list(zip(stores, index, strict=True))

    def differ(name: str) -> NDArray[np.bool_]:
        # Of what was stored, not of what it is spread to.
        ours, theirs = (
            store.arrays[name].gather(rows).reshape(len(rows), -1) for store, rows in sides
        )
        if ours.shape != theirs.shape:
            return np.zeros(len(ours), bool)
        unequal: NDArray[np.bool_] = (ours != theirs).any(axis=1)
        return unequal

    ours, theirs = (to_float32(store.gather(rows)).reshape(shape) for store, rows in sides)
    largest = abs(ours - theirs).max(axis=-1)
    changed = (largest > 0).any(axis=1)
    if stores[0].top_k is not None and stores[1].top_k is not None:
        changed |= differ(SPARSE[0]) | differ(SPARSE[1])
    turned = ours.argmax(axis=-1) != theirs.argmax(axis=-1)
    ours /= ours.sum(axis=-1, keepdims=True)
    theirs /= theirs.sum(axis=-1, keepdims=True)
    variation = 0.5 * abs(ours - theirs).sum(axis=-1)

    found.different += int(changed.sum())
    found.largest = max(found.largest, float(largest.max()))
    found.argmax_changes += int(turned.sum())
    if found.logits_different is not None:
        found.logits_different += int(differ("logits").sum())
    found.worst_total_variation = max(found.worst_total_variation, float(variation.max()))
    of_sample = variation.max(axis=1)
    places = np.flatnonzero(changed)
    places = places[np.argsort(-of_sample[places], kind="stable")][:count]
    worst = [
        RowDifference(
            total_variation=float(of_sample[i]),
            largest=float(largest[i].max()),
            row=int(index[0][i]),
            other_row=int(index[1][i]),
            sample_hash=f"{stores[0].sample_hash[index[0][i]]:016x}",
            views_changed=int(turned[i].sum()),
            labels=(int(stores[0].labels[index[0][i]]), int(stores[1].labels[index[1][i]])),
        )
        for i in places.tolist()
    ]
    found.worst = heapq.nlargest(count, [*found.worst, *worst])
    return float(variation.sum(dtype=np.float64))
