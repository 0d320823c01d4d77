"""Placing float32 targets on the device, gathered batch by batch or resident."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from hardware import cached_bytes_free
from timing import Call, Comparison, Rounds, interleave

from ltd_pipe.labels.on_device import LabelsOnDevice

if TYPE_CHECKING:
    from answers import Answers
    from numpy.typing import NDArray

    from ltd_pipe.labels import SoftLabels

__all__ = ["compare_placing"]

PLAIN = "np.memmap and torch"


def compare_placing(
    answers: Answers,
    store: SoftLabels,
    indices: list[NDArray[np.int64]],
    device: torch.device,
    rounds: Rounds,
) -> Comparison:
    """Distributions of a batch on the device, against the same from flat files by hand."""
    ways = {PLAIN: _plain(answers, device)}
    ways["LabelsOnDevice, gathered"] = LabelsOnDevice(store, device, resident=False).rows
    # All labels a second time, this time not as a cache.
    if 2 * answers.size.row_bytes * answers.size.num_samples < cached_bytes_free() // 2:
        ways["LabelsOnDevice, resident"] = LabelsOnDevice(store, device, resident=True).rows
    expected = ways[PLAIN](indices[0])
    for rows in ways.values():
        torch.testing.assert_close(rows(indices[0]), expected, rtol=1e-3, atol=1e-6)
    calls = {way: _waiting(rows, indices, device) for way, rows in ways.items()}
    what = f"place on {device.type}"
    return interleave(calls, rounds).comparison(what, PLAIN, len(indices[0]), "rows")


def _waiting(rows: Call, indices: list[NDArray[np.int64]], device: torch.device) -> Call:
    def call(number: int) -> None:
        rows(indices[number % len(indices)])
        if device.type == "cuda":
            torch.cuda.synchronize()

    return call


def _plain(answers: Answers, device: torch.device) -> Call:
    columns = [answers.column(name) for name in answers.rows]
    classes, k = answers.size.num_classes, answers.size.top_k

    def dense(index: NDArray[np.int64]) -> torch.Tensor:
        rows = torch.from_numpy(columns[0][index]).to(device).to(torch.float32)
        return rows / rows.sum(dim=1, keepdim=True)

    def sparse(index: NDArray[np.int64]) -> torch.Tensor:
        chosen, probs = (column[index] for column in columns)
        stored = torch.from_numpy(probs).to(device).to(torch.float32)
        rest = (1.0 - stored.sum(dim=1, keepdim=True)).clamp_(min=0.0)
        rows = (rest / (classes - (k or 0))).repeat(1, classes)
        place = torch.from_numpy(chosen.astype(np.int64)).to(device)
        return rows.scatter_(1, place, stored)

    return dense if k is None else sparse
