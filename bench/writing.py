"""Writing: append and publish against the same bytes in one plain file, and other formats."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from rivals import WRITTEN, remove
from timing import Clock, Comparison, Rounds

from ltd_pipe.labels.writer import StoreWriter

if TYPE_CHECKING:
    from pathlib import Path

    from answers import Answers

__all__ = ["compare_writing", "compare_writing_logits", "write_store"]

# What a teacher answers at a time.
_BATCH = 1024
OURS, PLAIN = "our store", "plain write + fsync"

Write = Callable[[], None]


def write_store(
    path: Path, answers: Answers, source: Literal["logits", "soft_labels"] = "soft_labels"
) -> None:
    """Append all rows in batches, and publish."""
    size, sparse = answers.size, answers.size.top_k is not None
    writer = StoreWriter(
        path.with_name(f"{path.name}.draft"),
        answers.facts,
        keep_logits=source == "logits",
        source=source,
        top_k=size.top_k,
        temperature=1.0 if sparse else None,
    )
    labels, hashes = answers.column("labels"), answers.column("sample_hash")
    rows = [answers.column(name) for name in (answers.rows if sparse else [source])]
    append = writer.append_topk if sparse else writer.append
    for block in answers.blocks(_BATCH):
        append(*(part[block] for part in rows), labels[block], hashes[block])
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
        OURS: lambda: write_store(path, answers, "logits"),
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
