"""Labels that other projects made of a folder of images, made into stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pipeline.combine.derive import NewRows, chunk_rows, derive_store, stepwise
from pipeline.combine.origin import Origin, foreign_attributes
from pipeline.combine.sparse import Distances, sparse_rows
from pipeline.labels.format import DerivationFacts, StoreAttributes
from pipeline.labels.half import to_float16
from pipeline.labels.incoming import round_logits, round_soft_labels, round_topk
from pipeline.labels.softmax import soften

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.combine.images import HashedImages

__all__ = ["ImageLabels", "store_of_images"]


class ImageLabels(Protocol):
    """Labels of images, in their order."""

    @property
    def has_logits(self) -> bool:
        """Whether `answers` gives logits; otherwise it gives soft labels."""

    @property
    def own_top_k(self) -> int | None:
        """Of labels that are sparse themselves."""

    def answers(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows of shape (n, K)."""

    def sparse(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.float16]] | None:
        """Classes and probabilities of shape (n, own_top_k), where nothing has to be computed."""

    def source(self) -> str:
        """What was read, once all of it was."""


def store_of_images(
    labels: ImageLabels,
    images: HashedImages,
    target: Path,
    origin: Origin,
    *,
    top_k: int | None = None,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Make a store of other labels, in the memory of one chunk.

    Parameters
    ----------
    labels : ImageLabels
    images : HashedImages
        Whose labels they are.
    target : Path
    origin : Origin
        What is known of them.
    top_k : int, optional
        Probabilities to keep; by default as many as the labels have, dense ones all.
    replace : bool
        Replace a store that is there.
    progress : callable, optional
        Called with the number of samples just written, N in all.

    Returns
    -------
    str
        The store's identity.

    Raises
    ------
    StoreError
        When a file is damaged, or holds no labels of that kind.
    """
    keep = top_k or labels.own_top_k
    attributes = foreign_attributes(
        origin, images.manifest, images.labels, images.sample_hash, ("",), keep
    )
    rows = _Rows(labels, attributes, target)
    names: tuple[str, ...] = ("topk_indices", "topk_probs")
    if keep is None:
        names = ("soft_labels", "logits") if labels.has_logits else ("soft_labels",)
    return derive_store(
        target,
        attributes,
        NewRows(images.labels, images.sample_hash, names, stepwise(rows.block, attributes)),
        rows=chunk_rows([], attributes),
        replace=replace,
        progress=progress,
        finish=rows.finish,
        verify=True,
    )


class _Rows:
    def __init__(self, labels: ImageLabels, attributes: StoreAttributes, where: Path) -> None:
        self._labels, self._attributes, self._where = labels, attributes, where
        self._top_k = attributes.top_k.k if attributes.top_k else None
        self._distances = Distances()

    def block(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        kept = self._labels.sparse(first, last) if self._top_k == self._labels.own_top_k else None
        if kept is not None:
            num_classes = self._attributes.num_classes
            indices, probs = round_topk(*kept, num_classes, first, self._where)
            return {"topk_indices": indices, "topk_probs": probs}
        rows, temperature = self._labels.answers(first, last), self._attributes.temperature
        taken: dict[str, NDArray[Any]] = {}
        if self._labels.has_logits:
            taken["logits"] = round_logits(rows, first, self._where)
            rows = soften(taken["logits"], temperature)
        if self._top_k:
            return sparse_rows(rows, self._top_k, self._distances)
        if self._labels.has_logits:
            return taken | {"soft_labels": to_float16(rows)}
        return {"soft_labels": round_soft_labels(rows, first, self._where)}

    def finish(self) -> StoreAttributes:
        # What was lost is known only where all of it was there.
        known = self._attributes
        if self._top_k and self._labels.has_logits:
            known = self._distances.noted(known)
        derived = DerivationFacts(operation="convert", sources=(self._labels.source(),))
        return known.model_copy(update={"derived_from": derived})
