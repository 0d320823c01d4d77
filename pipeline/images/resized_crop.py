"""Random resized crops: boxes by counter, enlarged in arithmetic that is exact everywhere.

A label belongs to the very pixels that its teacher saw, so these must not depend on the batch,
the device or the order of a sum. Weights are multiples of 2^-15 and pixels have 8 bits: their
products and sums fit float32 without rounding, whoever adds them.
"""

from __future__ import annotations

import math

import torch

from pipeline import rng

__all__ = ["boxes", "resized_crop"]

# As in Szegedy et al. 2015 ("Going deeper with convolutions", section 6) and torchvision.
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10
_WEIGHT_BITS = 15
# Images at a time on a CPU, so that they stay in its cache: 5 times as fast as 64 of 224 × 224.
_GROUP = 4


def boxes(
    index: torch.Tensor, key: int, height: int, width: int, scale: tuple[float, float]
) -> torch.Tensor:
    """Where each image is cropped.

    Of ten boxes with an area uniform in `scale` and an aspect ratio log-uniform in 3/4 to 4/3
    the first that fits into the image, at a uniform place; where none fits, the largest one in
    the middle that has an allowed aspect ratio.

    Parameters
    ----------
    index : Tensor of shape (B,), dtype int64
        Sample indices.
    key : int
        From `pipeline.rng.stream_key`.
    height, width : int
        Of the images.
    scale : tuple of float
        Least and largest share of the area.

    Returns
    -------
    Tensor of shape (B, 4), dtype int64
        Top, left, height and width; inside the image.
    """
    # In float64, so that the last bit of a device's exp moves no edge.
    draws = rng.uniform(key, index, (_TRIES + 1, 2)).to(torch.float64)
    least, most = scale
    area = height * width * (least + (most - least) * draws[:, :_TRIES, 0])
    low, high = map(math.log, _ASPECT)
    aspect = torch.exp(low + (high - low) * draws[:, :_TRIES, 1])
    # A guess is (height, width); the fallback stands behind the ten, so one is always found.
    guesses = torch.stack(((area / aspect).sqrt(), (area * aspect).sqrt()), dim=2).round()
    fallback = guesses.new_tensor(_largest(height, width)).expand(len(index), 1, 2)
    guesses = torch.cat((guesses, fallback), dim=1)
    limit = guesses.new_tensor((height, width))
    fits = ((guesses >= 1) & (guesses <= limit)).all(dim=2)
    first = fits.to(torch.int8).argmax(dim=1)
    size = guesses[torch.arange(len(index), device=index.device), first]
    place = (draws[:, _TRIES] * (limit - size + 1)).floor()
    middle = ((limit - size) / 2).floor()
    corner = torch.where((first == _TRIES)[:, None], middle, place)
    return torch.cat((corner, size), dim=1).to(torch.int64)


def _largest(height: int, width: int) -> tuple[int, int]:
    low, high = _ASPECT
    return max(1, min(height, round(width / low))), max(1, min(width, round(height * high)))


def resized_crop(images: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Enlarge a part of each image to its whole size, bilinearly.

    A part is never larger than the image, so there is nothing to filter against aliasing; the
    result is that of torchvision's antialiased resizing within one grey level.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W), dtype uint8
    box : Tensor of shape (B, 4), dtype int64
        Top, left, height and width, inside the image.

    Returns
    -------
    Tensor like images
        Equal to the bit for any batch and device.
    """
    group = _GROUP if images.device.type == "cpu" else max(len(images), 1)
    begins = range(0, len(images), group)
    parts = [_enlarged(images[at : at + group], box[at : at + group]) for at in begins]
    return torch.cat(parts) if parts else images


def _enlarged(images: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    count, channels, height, width = images.shape
    top, left, tall, wide = box.unbind(dim=1)
    # The axis that is interpolated stands second: whole lines are then copied and mixed.
    lines = images.permute(0, 3, 1, 2).reshape(count, width, channels * height)
    lines = _interpolated(lines, left, wide).view(count, width, channels, height)
    lines = lines.permute(0, 3, 2, 1).reshape(count, height, channels * width)
    lines = _interpolated(lines, top, tall).view(count, height, channels, width)
    return lines.permute(0, 2, 1, 3).contiguous()


def _interpolated(lines: torch.Tensor, start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Draw `length` lines from `start` out to all lines: (B, S, R), dtype uint8, to the same."""
    count, size, rest = lines.shape
    # Line o lies at (o + 1/2) · length / size - 1/2 of the part: kept as integers over 2 · size.
    centre = (2 * torch.arange(size, device=lines.device) + 1) * length[:, None] - size
    lower = torch.div(centre, 2 * size, rounding_mode="floor")
    weight = ((centre - lower * 2 * size << _WEIGHT_BITS) + size) // (2 * size)
    last, base = length[:, None] - 1, start + size * torch.arange(count, device=lines.device)
    flat = lines.reshape(count * size, rest)
    # index_select copies whole lines.
    below, above = (
        flat.index_select(0, (line.clamp(min=0).minimum(last) + base[:, None]).view(-1)).float()
        for line in (lower, lower + 1)
    )
    share = (weight.to(torch.float32) * 2.0**-_WEIGHT_BITS).view(-1, 1)
    return below.lerp_(above, share).add_(0.5).to(torch.uint8).view(count, size, rest)
