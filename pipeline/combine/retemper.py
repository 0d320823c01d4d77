"""A store at another temperature, or with each row's largest probabilities only."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.combine.derive import NewRows, chunk_rows, derive_store, stepwise, with_rows
from pipeline.combine.sparse import Distances, sparse_rows
from pipeline.errors import ParamsError, StoreError
from pipeline.labels.format import DerivationFacts, TopKFacts
from pipeline.labels.half import to_float16, to_float32
from pipeline.labels.softmax import (
    bisect_temperature,
    mean_softened,
    require_temperature,
    top_probability,
)
from pipeline.labels.softness import uniform_below

# A few MiB of logits say how soft the labels are.
_SAMPLE_ELEMENTS = 2**22

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.source import ProvenStore

__all__ = ["require_informative", "require_top_k", "retemper_store", "temperature_for"]


def retemper_store(
    source: ProvenStore,
    target: Path,
    temperature: float | None = None,
    *,
    top_k: int | None = None,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Write the labels of a store anew, from its logits.

    Parameters
    ----------
    source : ProvenStore
        With logits, unless the temperature stays.
    target : Path
    temperature : float, optional
        By default the source's own.
    top_k : int, optional
        Keep so many probabilities per row, and no logits.
    replace : bool
        Replace a store that is there.
    progress : callable, optional
        Called with the number of samples just written, N in all.

    Returns
    -------
    str
        The new store's identity. But for `derived_from`, a dense store is the one that the
        teacher's logits would have given at that temperature.

    Raises
    ------
    StoreError
        When the store has no logits, or is sparse already.
    ParamsError
        When temperature or top-k are out of range.
    """
    store, known = source.store, source.store.attributes
    warmer = temperature is not None and temperature != known.temperature
    if temperature is not None:
        require_temperature(temperature)
    if warmer:
        store.require_logits()
    _require_dense(source, top_k)
    changes = _changes(source, temperature if warmer else None, top_k)
    attributes = with_rows(known, store.labels, store.sample_hash, **changes)
    distances = Distances()
    names: tuple[str, ...] = ("topk_indices", "topk_probs") if top_k else source.names
    block = (
        partial(_sparse, source, attributes.temperature, top_k, distances)
        if top_k
        else partial(_dense, source, attributes.temperature)
    )
    return derive_store(
        target,
        attributes,
        NewRows(store.labels, store.sample_hash, names, stepwise(block, attributes)),
        rows=chunk_rows([] if top_k else [source], attributes),
        replace=replace,
        progress=progress,
        finish=(lambda: distances.noted(attributes)) if top_k else None,
    )


def _changes(source: ProvenStore, temperature: float | None, top_k: int | None) -> dict[str, Any]:
    done = [name for name, given in (("retemper", temperature), ("top-k", top_k)) if given]
    if not done:
        raise ParamsError(
            source.store.path,
            "nothing would change",
            remedy="Name another temperature, or how many probabilities to keep.",
        )
    derived = DerivationFacts(operation=", ".join(done), sources=(source.store.identity,))
    changes: dict[str, Any] = {"derived_from": derived}
    if temperature is not None:
        changes["temperature"] = temperature
    if top_k is not None:
        changes["top_k"] = TopKFacts(k=top_k)
    return changes


def _require_dense(source: ProvenStore, top_k: int | None) -> None:
    store = source.store
    if store.top_k is not None:
        raise StoreError(
            store.path,
            f"has only the {store.top_k} largest probabilities of each row",
            expected="all of them, or logits",
            remedy="Label again, or take the dense store that it was made of.",
        )
    if top_k is not None:
        require_top_k(source, top_k)


def require_top_k(source: ProvenStore, top_k: int) -> None:
    """Refuse to keep more probabilities per row than there are classes, or none."""
    classes = source.store.num_classes
    if not 1 <= top_k <= classes:
        raise ParamsError(
            "top_k",
            "is out of range",
            expected=f"1 to {classes}, the number of classes",
            found=top_k,
        )


def _dense(
    source: ProvenStore, temperature: float, first: int, last: int
) -> dict[str, NDArray[Any]]:
    # As the writer softens them, from the logits as they are stored.
    logits = source.gather("logits", np.arange(first, last))
    return {"logits": logits, "soft_labels": to_float16(mean_softened([logits], temperature))}


def _sparse(
    source: ProvenStore,
    temperature: float,
    top_k: int,
    distances: Distances,
    first: int,
    last: int,
) -> dict[str, NDArray[Any]]:
    index = np.arange(first, last)
    if source.store.has_logits:
        soft = mean_softened([source.gather("logits", index)], temperature)
    else:
        soft = to_float32(source.soft(index))
        soft /= soft.sum(axis=-1, keepdims=True)
    return sparse_rows(soft, top_k, distances)


def require_informative(source: ProvenStore, temperature: float) -> None:
    """Refuse a temperature at which the labels would be as good as uniform, before the work.

    Raises
    ------
    StoreError
        Also when the store has no logits.
    """
    store = source.store
    store.require_logits()
    width = store.num_views * store.num_classes
    count = min(max(_SAMPLE_ELEMENTS // width, 1), store.num_samples)
    rows = np.arange(count) * store.num_samples // count
    top = top_probability([source.gather("logits", rows)], temperature) / (count * store.num_views)
    limit = uniform_below(store.num_classes)
    if top < limit:
        raise StoreError(
            store.path,
            f"its labels at temperature {temperature:g} are as good as uniform: mean top "
            "probability",
            expected=f"{limit:.3g} or more",
            found=f"{top:.3g}",
            remedy="Lower the temperature, or pass --allow-poor-labels.",
        )


def temperature_for(source: ProvenStore, target_top_probability: float) -> float:
    """The temperature at which the labels' mean top probability is so high.

    Parameters
    ----------
    source : ProvenStore
        With logits, of which some 26 passes are made.
    target_top_probability : float
        In (1/K, 1).

    Raises
    ------
    StoreError
        When the store has no logits.
    ParamsError
        When no temperature gives it.
    """
    store = source.store
    store.require_logits()
    count = store.num_samples * store.num_views
    step = max(2**20 // (store.num_views * store.num_classes), 1)

    def mean_top(temperature: float) -> float:
        blocks = (
            source.gather("logits", np.arange(at, min(at + step, store.num_samples)))
            for at in range(0, store.num_samples, step)
        )
        return sum(top_probability([block], temperature) for block in blocks) / count

    return bisect_temperature(mean_top, target_top_probability)
