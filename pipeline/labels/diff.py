"""In which rows two stores differ, and by how much."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.foreign import Matches, match_rows
from ltd_pipe.labels.format import to_float32
from ltd_pipe.text import differences

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ltd_pipe.labels.foreign import ProvenStore

_STEP_ELEMENTS = 2**20
# Of what both stores have; the soft labels are compared dense, whichever way they are stored.
_SPARSE = ("topk_indices", "topk_probs")


@dataclass(frozen=True, order=True)
class RowDifference:
    """One row that differs.

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
    compared : int
        Samples that are in both.
    moved : int
        Of these, those whose row number differs.
    only_first, only_second : ndarray of int64
        Rows without a partner.
    different : int
        Samples of which a stored soft label differs at all.
    logits_different : int or None
        Samples whose logits differ; None where one store has none.
    labels_different : int
        Samples of which the ground truth differs.
    argmax_changes : int
        Rows (sample and view) whose most probable class differs.
    largest : float
        The largest difference of a probability.
    mean_total_variation, worst_total_variation : float
        Over rows of samples that are in both.
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
    first: ProvenStore,
    second: ProvenStore,
    *,
    rows: int = 20,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare two stores sample by sample, matched by hash, in the memory of few rows.

    Parameters
    ----------
    first, second : ProvenStore
    rows : int
        How many of the samples that differ to tell of.
    progress : callable, optional
        Called with the number of samples just compared.

    Raises
    ------
    StoreError
        When one is damaged, or their rows have no common shape.
    """
    ours, theirs = first.store, second.store
    _require_comparable(first, second)
    pairs = match_rows((ours.sample_hash, ours.labels), (theirs.sample_hash, theirs.labels))
    known = differences(ours.attributes.to_json(), theirs.attributes.to_json())
    found = Comparison(
        attributes={name: (wanted, other) for name, wanted, other in known},
        arrays=_arrays(first, second),
        compared=len(pairs.first),
        moved=int((pairs.first != pairs.second).sum()),
        only_first=pairs.only_first,
        only_second=pairs.only_second,
        logits_different=0 if ours.has_logits and theirs.has_logits else None,
        labels_different=int((ours.labels[pairs.first] != theirs.labels[pairs.second]).sum()),
    )
    _compare_rows(first, second, pairs, found, rows, progress)
    return found


def _require_comparable(first: ProvenStore, second: ProvenStore) -> None:
    ours, theirs = first.store, second.store
    for what, expected, found in (
        ("number of classes", ours.num_classes, theirs.num_classes),
        ("number of views", ours.num_views, theirs.num_views),
    ):
        if expected != found:
            raise StoreError(
                theirs.path,
                f"{what}: rows of these stores cannot be compared",
                expected=f"{expected} as {ours.path} has",
                found=found,
            )


def _arrays(first: ProvenStore, second: ProvenStore) -> dict[str, str]:
    ours, theirs = set(first.names), set(second.names)
    found = dict.fromkeys(sorted(ours - theirs), "only in the first")
    return found | dict.fromkeys(sorted(theirs - ours), "only in the second")


def _compare_rows(
    first: ProvenStore,
    second: ProvenStore,
    pairs: Matches,
    found: Comparison,
    rows: int,
    progress: Callable[[int], None] | None,
) -> None:
    width = first.store.num_classes * first.store.num_views
    step, total = max(_STEP_ELEMENTS // width, 1), 0.0
    worst: list[RowDifference] = []
    for at in range(0, len(pairs.first), step):
        index, other = pairs.first[at : at + step], pairs.second[at : at + step]
        block = _Block(first, second, index, other)
        found.different += int(block.changed.sum())
        found.largest = max(found.largest, float(block.largest.max()))
        found.argmax_changes += int(block.turned.sum())
        if found.logits_different is not None:
            found.logits_different += block.changed_logits()
        highest = float(block.variation.max())
        found.worst_total_variation = max(found.worst_total_variation, highest)
        total += float(block.variation.sum(dtype=np.float64))
        worst = heapq.nlargest(rows, [*worst, *block.worst(rows)])
        if progress is not None:
            progress(len(index))
    found.worst = worst
    found.mean_total_variation = total / max(len(pairs.first) * first.store.num_views, 1)


class _Block:
    # Some samples of both stores: differences of shape (n, V).
    def __init__(
        self,
        first: ProvenStore,
        second: ProvenStore,
        index: NDArray[np.int64],
        other: NDArray[np.int64],
    ) -> None:
        self._stores, self._rows = (first, second), (index, other)
        shape = (len(index), first.store.num_views, first.store.num_classes)
        ours, theirs = (
            to_float32(store.soft(rows)).reshape(shape)
            for store, rows in zip(self._stores, self._rows, strict=True)
        )
        self.largest = abs(ours - theirs).max(axis=-1)
        self.changed = (self.largest > 0).any(axis=1) | self._sparse_differ()
        self.turned = ours.argmax(axis=-1) != theirs.argmax(axis=-1)
        ours /= ours.sum(axis=-1, keepdims=True)
        theirs /= theirs.sum(axis=-1, keepdims=True)
        self.variation = 0.5 * abs(ours - theirs).sum(axis=-1)

    def _sparse_differ(self) -> NDArray[np.bool_]:
        # What was stored, not what it is spread to.
        differ = np.zeros(len(self._rows[0]), bool)
        for name in _SPARSE:
            if all(name in store.names for store in self._stores):
                ours, theirs = self._gathered(name)
                if ours.shape == theirs.shape:
                    differ |= (ours != theirs).any(axis=1)
        return differ

    def _gathered(self, name: str) -> list[NDArray[Any]]:
        return [
            store.gather(name, rows).reshape(len(rows), -1)
            for store, rows in zip(self._stores, self._rows, strict=True)
        ]

    def changed_logits(self) -> int:
        ours, theirs = self._gathered("logits")
        return int((ours != theirs).any(axis=1).sum())

    def worst(self, count: int) -> list[RowDifference]:
        variation = self.variation.max(axis=1)
        changed = np.flatnonzero(self.changed)
        order = changed[np.argsort(-variation[changed], kind="stable")][:count]
        ours, theirs = (store.store for store in self._stores)
        return [
            RowDifference(
                total_variation=float(variation[i]),
                largest=float(self.largest[i].max()),
                row=int(self._rows[0][i]),
                other_row=int(self._rows[1][i]),
                sample_hash=f"{ours.sample_hash[self._rows[0][i]]:016x}",
                views_changed=int(self.turned[i].sum()),
                labels=(
                    int(ours.labels[self._rows[0][i]]),
                    int(theirs.labels[self._rows[1][i]]),
                ),
            )
            for i in order.tolist()
        ]
