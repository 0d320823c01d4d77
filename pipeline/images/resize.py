"""Parts of images in another size, in arithmetic that is exact everywhere.

A label belongs to the very pixels that its teacher saw, so these must not depend on the batch, the
device or the order of a sum. Weights are multiples of 2^-15 and pixels have 8 bits: their products
and sums fit float32 without rounding, whoever adds them. On a CPU, compiled code does the same 4 to
50 times as fast as torch.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from ltd_pipe.device import constants

if TYPE_CHECKING:
    Bytes = NDArray[np.uint8]
    Integers = NDArray[np.int32]

_WEIGHT_BITS = 15
# Fewer images than that are not worth a thread.
_PER_THREAD = 4


def resized_crop(
    images: torch.Tensor, box: torch.Tensor, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Enlarge or shrink a part of each image, bilinearly and without aliasing.

    Each pixel is a mean of those around its place, weighted by a triangle as wide as two pixels
    of the part, or of the result where these are larger. That is torchvision's antialiased
    resizing, within one grey level; here it is equal to the bit for any batch and device.
    """
    size = (images.shape[2], images.shape[3]) if size is None else size
    return (_by_numba if images.device.type == "cpu" else _by_torch)(images, box, size)


def resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Whole images in another size: shape (B, C, *size); see `resized_crop`."""
    height, width = images.shape[2:]
    if (height, width) == size:
        return images
    whole = constants((0, 0, height, width), images.new_empty(0, dtype=torch.int64))
    return resized_crop(images, whole.expand(len(images), 4), size)


def _by_torch(images: torch.Tensor, box: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    count, channels, height, width = images.shape
    top, left, tall, wide = box.unbind(dim=1)
    # The axis that is resized stands second: whole lines are then copied and mixed.
    lines = images.permute(0, 3, 1, 2).reshape(count, width, channels * height)
    lines = _interpolated(lines, left, wide, size[1]).view(count, size[1], channels, height)
    lines = lines.permute(0, 3, 2, 1).reshape(count, height, channels * size[1])
    lines = _interpolated(lines, top, tall, size[0]).view(count, size[0], channels, size[1])
    return lines.permute(0, 2, 1, 3).contiguous()


def _interpolated(
    lines: torch.Tensor, start: torch.Tensor, length: torch.Tensor, size: int
) -> torch.Tensor:
    """Draw `length` lines from `start` out to `size`: from (B, S, R), dtype uint8."""
    count, whole, rest = lines.shape
    first, weights = _weights(length, whole, size)
    base = start + whole * torch.arange(count, device=lines.device)
    flat = lines.reshape(count * whole, rest)
    total = torch.full((), 0.5, device=lines.device)
    for tap, weight in enumerate(weights.unbind(dim=2)):
        place = (first + tap).clamp(min=0).minimum(length[:, None] - 1) + base[:, None]
        # index_select copies whole lines.
        taken = flat.index_select(0, place.view(-1)).float()
        total = total + taken * (weight.to(torch.float32) * 2.0**-_WEIGHT_BITS).view(-1, 1)
    return total.to(torch.uint8).view(count, size, rest)


def _weights(length: torch.Tensor, whole: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first line of each output line, (B, size), and the weights from there, (B, size, taps).

    A weight of a line that is not there is 0.

    Places are integers over 2 · size: line j lies at (2j + 1) · size, output line o at
    (2o + 1) · length, and the triangle ends at twice the larger of both on either side.
    """
    length = length[:, None]
    place = (2 * torch.arange(size, device=length.device) + 1) * length
    reach = 2 * length.clamp(min=size)
    first = torch.div(place - reach - size, 2 * size, rounding_mode="floor") + 1
    raw = []
    for tap in range(-(-2 * max(whole, size) // size)):
        line = first + tap
        height = (reach - ((2 * line + 1) * size - place).abs()).clamp(min=0)
        raw.append(height * ((line >= 0) & (line < length)))
    area = torch.stack(raw).sum(dim=0)
    weights = [((height << _WEIGHT_BITS) + area // 2) // area for height in raw]
    # What rounding leaves belongs to the first line inside.
    rest = (1 << _WEIGHT_BITS) - torch.stack(weights).sum(dim=0)
    open_ = torch.ones_like(first, dtype=torch.bool)
    for tap, weight in enumerate(weights):
        inside = open_ & (first + tap >= 0)
        weights[tap] = weight + torch.where(inside, rest, 0)
        open_ = open_ & ~inside
    return first, torch.stack(weights, dim=2)


# --- On the CPU.


def _by_numba(images: torch.Tensor, box: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    count, channels, height, width = images.shape
    by_row, by_column = _weights(box[:, 2], height, size[0]), _weights(box[:, 3], width, size[1])
    weights = [part.to(torch.int32).numpy() for part in (*by_row, *by_column)]
    result = np.empty((count, channels, *size), dtype=np.uint8)
    given = [images.contiguous().numpy(), box.contiguous().numpy(), *weights, result]
    threads = max(1, min(torch.get_num_threads(), count // _PER_THREAD))
    bounds = itertools.pairwise(count * part // threads for part in range(threads + 1))
    # The kernel holds no lock of the interpreter.
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: _resize_all(*(x[slice(*part)] for x in given)), bounds))
    return torch.from_numpy(result)


def _compiled(function: Any) -> Any:
    # Kept beside this file from one process to the next: compiling takes seconds.
    try:
        return njit(function, nogil=True, cache=True)
    except RuntimeError:  # there is no folder that may be written to
        return njit(function, nogil=True)


@_compiled
def _resize_all(
    images: Bytes,
    boxes: NDArray[np.int64],
    first_row: Integers,
    by_row: Integers,
    first_column: Integers,
    by_column: Integers,
    result: Bytes,
) -> None:
    channels, height = images.shape[1:3]
    tall, wide = result.shape[2:]
    lines, total = np.empty((height, wide), np.uint8), np.empty(wide, np.int32)
    for i in range(len(images)):
        top, left, rows, columns = boxes[i]
        for c in range(channels):
            # Columns first, of the rows that will be needed.
            for y in range(rows):
                source = images[i, c, top + y, left : left + columns]
                _mix_within(source, first_column[i], by_column[i], lines[y])
            for o in range(tall):
                _mix_lines(lines[:rows], first_row[i, o], by_row[i, o], total, result[i, c, o])


@_compiled
def _mix_within(source: Bytes, first: Integers, weights: Integers, target: Bytes) -> None:
    last = len(source) - 1
    for o in range(len(target)):
        total = np.int32(1 << 14)
        for tap in range(weights.shape[1]):
            total += np.int32(source[min(max(first[o] + tap, 0), last)]) * weights[o, tap]
        target[o] = np.uint8(total >> np.int32(15))


@_compiled
def _mix_lines(lines: Bytes, first: int, weights: Integers, total: Integers, target: Bytes) -> None:
    total[:] = 1 << 14
    for tap in range(len(weights)):
        line, weight = lines[min(max(first + tap, 0), len(lines) - 1)], weights[tap]
        for x in range(len(target)):
            total[x] += np.int32(line[x]) * weight
    for x in range(len(target)):
        target[x] = np.uint8(total[x] >> np.int32(15))
