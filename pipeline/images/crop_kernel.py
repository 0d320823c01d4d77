"""Resized crops on the CPU: compiled, and the same bits as torch's on any device."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

if TYPE_CHECKING:
    Bytes = NDArray[np.uint8]
    Integers = NDArray[np.int32]

# Fewer images than that are not worth a thread.
_PER_THREAD = 4


def resize_boxes(images: torch.Tensor, box: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a part of each image; see `ltd_pipe.images.augment.resized_crop`."""
    count, channels = images.shape[:2]
    result = np.empty((count, channels, *size), dtype=np.uint8)
    given, boxes = images.contiguous().numpy(), box.contiguous().numpy()
    threads = min(torch.get_num_threads(), count // _PER_THREAD)
    if threads < 2:
        _resize_all(given, boxes, result)
        return torch.from_numpy(result)
    bounds = [count * part // threads for part in range(threads + 1)]
    # The kernel holds no lock of the interpreter.
    with ThreadPoolExecutor(threads) as pool:
        done = [
            pool.submit(_resize_all, given[a:b], boxes[a:b], result[a:b])
            for a, b in itertools.pairwise(bounds)
        ]
        for one in done:
            one.result()
    return torch.from_numpy(result)


def _compiled(function: Any) -> Any:
    # Kept beside this file from one process to the next: compiling takes seconds.
    try:
        return njit(function, nogil=True, cache=True)
    except RuntimeError:  # there is no folder that may be written to
        return njit(function, nogil=True)


@_compiled
def _weigh(length: int, size: int, first: Integers, weights: Integers) -> int:
    """As `resized_crop._weights`, for lines inside the part only; how many there are at most."""
    reach, most = 2 * max(length, size), 0
    for o in range(size):
        place = (2 * o + 1) * length
        begin = max((place - reach - size) // (2 * size) + 1, 0)
        count, area = 0, 0
        while begin + count < length:
            height = reach - abs((2 * (begin + count) + 1) * size - place)
            if height <= 0:
                break
            weights[o, count] = height
            area += height
            count += 1
        rest = 1 << 15
        for tap in range(count):
            weights[o, tap] = ((weights[o, tap] << 15) + area // 2) // area
            rest -= weights[o, tap]
        weights[o, 0] += rest
        weights[o, count:] = 0
        first[o] = begin
        most = max(most, count)
    return most


@_compiled
def _resize_all(images: Bytes, boxes: NDArray[np.int64], result: Bytes) -> None:
    channels, height, width = images.shape[1:]
    tall, wide = result.shape[2:]
    first_row, first_column = np.empty(tall, np.int32), np.empty(wide, np.int32)
    by_row = np.empty((tall, 2 * (height // tall) + 4), np.int32)
    by_column = np.empty((wide, 2 * (width // wide) + 4), np.int32)
    lines, total = np.empty((height, wide), np.uint8), np.empty(wide, np.int32)
    for i in range(len(images)):
        top, left, rows, columns = boxes[i]
        row_taps = _weigh(rows, tall, first_row, by_row)
        column_taps = _weigh(columns, wide, first_column, by_column)
        for c in range(channels):
            # Columns first, of the rows that will be needed.
            for y in range(rows):
                source = images[i, c, top + y, left : left + columns]
                _mix_within(source, first_column, by_column, column_taps, lines[y])
            for o in range(tall):
                _mix_lines(lines, first_row[o], by_row[o], row_taps, rows, total, result[i, c, o])


@_compiled
def _mix_within(
    source: Bytes, first: Integers, weights: Integers, taps: int, target: Bytes
) -> None:
    last = len(source) - 1
    if taps <= 2:
        for o in range(len(target)):
            begin = first[o]
            near, far = np.int32(source[begin]), np.int32(source[min(begin + 1, last)])
            total = near * weights[o, 0] + far * weights[o, 1]
            target[o] = np.uint8((total + np.int32(1 << 14)) >> np.int32(15))
        return
    for o in range(len(target)):
        total = np.int32(1 << 14)
        for tap in range(min(taps, last + 1 - first[o])):
            total += np.int32(source[first[o] + tap]) * weights[o, tap]
        target[o] = np.uint8(total >> np.int32(15))


@_compiled
def _mix_lines(
    lines: Bytes,
    first: int,
    weights: Integers,
    taps: int,
    count: int,
    total: Integers,
    target: Bytes,
) -> None:
    if taps <= 2:
        # In one pass, which the compiler does for many pixels at a time.
        near, far = lines[first], lines[min(first + 1, count - 1)]
        one, two = weights[0], weights[1]
        for x in range(len(target)):
            mixed = np.int32(near[x]) * one + np.int32(far[x]) * two
            target[x] = np.uint8((mixed + np.int32(1 << 14)) >> np.int32(15))
        return
    total[:] = 1 << 14
    for tap in range(min(taps, count - first)):
        line, weight = lines[first + tap], weights[tap]
        for x in range(len(target)):
            total[x] += np.int32(line[x]) * weight
    for x in range(len(target)):
        target[x] = np.uint8(total[x] >> np.int32(15))
