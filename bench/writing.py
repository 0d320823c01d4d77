"""Writing: append and publish against the same bytes in one plain file, and other formats."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from rivals import WRITTEN, remove
from timing import Clock, Comparison, Rounds

from ltd_pipe.labels.derive import DerivedStore
from ltd_pipe.labels.format import StoreAttributes, TopKFacts
from ltd_pipe.labels.softmax import round_soft_labels, round_topk
from ltd_pipe.labels.writer import StoreWriter

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from answers import Answers
    from numpy.typing import NDArray

__all__ = ["compare_writing", "compare_writing_logits", "write_store"]

# What a teacher answers at a time.
_BATCH = 1024
OURS, PLAIN = "our store", "plain write + fsync"

Write = Callable[[], None]


def write_store(path: Path, answers: Answers) -> None:
    """Write the rows that a store publishes, as labels from elsewhere are written."""
    facts, k = answers.facts, answers.size.top_k
    attributes = StoreAttributes(
        **dict(facts), temperature=1.0, top_k=TopKFacts(k=k) if k else None
    )
    columns = [answers.column(name) for name in answers.rows]

    def block(index: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        rows = [column[index] for column in columns]
        if k is None:
            return {"soft_labels": round_soft_labels(rows[0], int(index[0]), path)}
        ranked = round_topk(rows[0], rows[1], facts.num_classes, int(index[0]), path)
        return dict(zip(answers.rows, ranked, strict=True))

    labels, hashes = answers.column("labels"), answers.column("sample_hash")
    rows = min(facts.rows_per_chunk(k), facts.num_samples)
    DerivedStore(attributes, labels, hashes, tuple(answers.rows), block, rows).write(path)


def _write_logits(path: Path, answers: Answers) -> None:
    writer = StoreWriter(path.with_name(f"{path.name}.draft"), answers.facts, keep_logits=True)
    labels, hashes = answers.column("labels"), answers.column("sample_hash")
    logits = answers.column("logits")
    for block in answers.blocks(_BATCH):
        writer.append(logits[block], labels[block], hashes[block])
    writer.publish(path, 1.0)


def _write_plain(path: Path, answers: Answers, names: list[str]) -> None:
    with path.open("wb", buffering=0) as file:
        for name in names:
            column = answers.column(name)
            for block in answers.blocks():
                file.write(column[block].data)
        os.fsync(file.fileno())


def compare_writing(answers: Answers, folder: Path, rounds: Rounds) -> Comparison:
    """Write the columns that a store publishes: labels, ground truth, hashes."""
    path = folder / "written"
    ways: dict[str, Write] = {
        PLAIN: lambda: _write_plain(path, answers, answers.names),
        OURS: lambda: write_store(path, answers),
    }
    ways |= {rival.name: partial(rival.write, path, answers) for rival in WRITTEN}
    amount = answers.size.sample_bytes * answers.size.num_samples
    return _compare("write", ways, path, amount, rounds)


def compare_writing_logits(answers: Answers, folder: Path, rounds: Rounds) -> Comparison:
    """Write a store with logits, whose soft labels are derived when it is published."""
    path, names = folder / "written", ["logits", *answers.names]
    ways: dict[str, Write] = {
        PLAIN: lambda: _write_plain(path, answers, names),
        OURS: lambda: _write_logits(path, answers),
    }
    amount = (answers.size.sample_bytes + answers.size.row_bytes) * answers.size.num_samples
    return _compare("write, with logits", ways, path, amount, rounds)


def _compare(
    what: str, ways: dict[str, Write], path: Path, amount: int, rounds: Rounds
) -> Comparison:
    clock = Clock()
    for _ in range(rounds.most):
        for way, write in ways.items():
            # Nobody waits for what another has written.
            os.sync()
            clock.time(way, write)
            remove(path)
    return clock.comparison(what, PLAIN, amount, "bytes")
