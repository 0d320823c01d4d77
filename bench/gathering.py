"""Gathering random rows: our reader against flat np.memmap, and other formats beside both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from memory import cached_share, read_through
from rivals import READ, Gather, files_of, gather_flat, gather_zarr, remove
from timing import Call, Comparison, Rounds, interleave

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from answers import Answers
    from numpy.typing import NDArray

    from ltd_pipe.labels import SoftLabels

__all__ = [
    "FLAT",
    "OURS",
    "cached",
    "compare_buffers",
    "compare_gathering",
    "compare_rivals",
    "draws",
    "gather_ours",
]

OURS, FLAT = "our store", "flat np.memmap"


def draws(answers: Answers, batch: int, seed: int, count: int = 200) -> list[NDArray[np.int64]]:
    """Batches of different rows, the same for everybody."""
    rng = np.random.default_rng(seed)
    samples = answers.size.num_samples
    return [rng.choice(samples, batch, replace=False) for _ in range(count)]


def gather_ours(store: SoftLabels) -> Gather:
    """Through our reader."""
    if store.top_k is None:
        return lambda index: [store.gather(index)]
    return lambda index: [*store.gather_topk(index)]


def compare_gathering(
    answers: Answers, store: SoftLabels, indices: list[NDArray[np.int64]], rounds: Rounds
) -> Comparison:
    """Our reader against flat files, into new arrays."""
    ways = {FLAT: gather_flat(answers), OURS: gather_ours(store)}
    return _compare("gather", ways, indices, rounds)


def compare_buffers(
    answers: Answers, store: SoftLabels, indices: list[NDArray[np.int64]], rounds: Rounds
) -> Comparison:
    """Our reader against flat files, into a buffer that is there already."""
    column = answers.column(answers.rows[0])
    out = np.empty((len(indices[0]), *column.shape[1:]), column.dtype)
    ways: dict[str, Gather] = {
        # With another mode NumPy gathers into a buffer of its own first.
        FLAT: lambda index: [np.take(column, index, axis=0, out=out, mode="clip")],
        OURS: lambda index: [store.arrays[answers.rows[0]].gather(index, out)],
    }
    return _compare("gather into a buffer", ways, indices, rounds)


def compare_rivals(
    answers: Answers,
    store: SoftLabels,
    folder: Path,
    indices: list[NDArray[np.int64]],
    rounds: Rounds,
) -> Iterator[Comparison]:
    """Our reader against each other way; one at a time, so that the page cache holds both."""
    ours = gather_ours(store)
    through = "zarr's oindex, our store"
    ways = {through: gather_zarr(store.path, answers), OURS: ours}
    yield _compare("gather", ways, indices, rounds)
    for rival in READ:
        path = folder / "rival"
        rival.write(path, answers)
        read_through(files_of(path))
        ways = {rival.name: rival.gather(path, answers), OURS: ours}
        yield _compare("gather", ways, indices, rounds)
        del ways
        remove(path)


def cached(answers: Answers, store: SoftLabels) -> float:
    """The smaller share in the page cache, of the flat files and of the store."""
    flat = [answers.path(name) for name in answers.rows]
    chunks = [path for name in answers.rows for path in files_of(store.path / name)]
    return min(cached_share(flat), cached_share(chunks))


def _compare(
    what: str, ways: dict[str, Gather], indices: list[NDArray[np.int64]], rounds: Rounds
) -> Comparison:
    _require_equal(ways, indices[0])
    calls = {way: _of_round(gather, indices) for way, gather in ways.items()}
    baseline = next(iter(ways))
    return interleave(calls, rounds).comparison(what, baseline, len(indices[0]), "rows")


def _of_round(gather: Gather, indices: list[NDArray[np.int64]]) -> Call:
    return lambda number: gather(indices[number % len(indices)])


def _require_equal(ways: dict[str, Gather], index: NDArray[np.int64]) -> None:
    # A fast wrong answer is no result.
    baseline, ours = ways
    expected = [part.copy() for part in ways[baseline](index)]
    for part, found in zip(expected, ways[ours](index), strict=True):
        if not np.array_equal(part, found):
            raise ValueError(f"{ours} gathers other rows than {baseline}")
