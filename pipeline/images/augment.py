"""Augmentation on the training device, a function of (seed, epoch, sample index)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pipeline import rng
from pipeline.images.operations import GREY
from pipeline.images.policies import apply_policy, steps_of
from pipeline.images.resized_crop import boxes, resized, resized_crop

if TYPE_CHECKING:
    from pipeline.images.augmentation import Augmentation

__all__ = ["augment"]


def augment(
    images: torch.Tensor,
    index: torch.Tensor,
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Change images at random: the same bits in any batch and on any device.

    That is what ties the label of a view to its image: the teacher sees view v, and training
    makes it again from (seed, v, sample index), with nothing stored.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W), dtype uint8
    index : Tensor of shape (B,), dtype int64
        Sample indices, on the same device.
    augmentation : Augmentation
    seed, epoch : int
        The same pair gives the same crops again; the view takes the epoch's place.
    size : tuple of int, optional
        Height and width of the result; by default those of the images. All but a resized crop
        is measured in pixels, and drawn before the image gets its size.

    Returns
    -------
    Tensor of shape (B, C, *size), dtype uint8
    """
    if augmentation.crop_padding:
        key = rng.stream_key(seed, "crop", epoch)
        images = _crop(images, index, key, augmentation.crop_padding)
    if augmentation.crop_scale is not None:
        key = rng.stream_key(seed, "resized-crop", epoch)
        height, width = images.shape[2:]
        box = boxes(index, key, height, width, augmentation.crop_scale)
        # Resized once, not twice, where nothing lies between.
        at_once = augmentation.policy is None and not augmentation.cutout
        images = resized_crop(images, box, size if at_once else None)
    if augmentation.flip:
        turn = rng.integers(rng.stream_key(seed, "flip", epoch), index, 2) == 1
        images = _flipped(images, turn)
    if augmentation.policy is not None:
        height, width = images.shape[2:]
        drawn = steps_of(
            augmentation.policy, index.cpu().numpy(), seed=seed, epoch=epoch, shape=(height, width)
        )
        images = apply_policy(images, drawn)
    if augmentation.cutout:
        key = rng.stream_key(seed, "cutout", epoch)
        images = _cut_out(images, index, key, augmentation.cutout)
    return images if size is None else resized(images, size)


def _flipped(images: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    if images.device.type != "cpu":
        # The host does not wait to know which.
        return torch.where(turn[:, None, None, None], images.flip(3), images)
    # Nine times as fast on a CPU.
    result = images.clone()
    for row in turn.nonzero().view(-1).tolist():
        result[row] = images[row].flip(2)
    return result


def _cut_out(images: torch.Tensor, index: torch.Tensor, key: int, side: int) -> torch.Tensor:
    """DeVries and Taylor 2017: a square of one colour, whose middle is any pixel of the image."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, size in enumerate(images.shape[2:]):
        begin = rng.integers(key, index, size, counter=axis)[:, None] - side // 2
        line = torch.arange(size, device=images.device)
        within = (line >= begin) & (line < begin + side)
        inside = inside & (within[:, None, :, None] if axis == 0 else within[:, None, None, :])
    return images.masked_fill(inside, GREY)


def _crop(images: torch.Tensor, index: torch.Tensor, key: int, padding: int) -> torch.Tensor:
    _, _, height, width = images.shape
    positions = 2 * padding + 1
    top = rng.integers(key, index, positions, counter=0)
    left = rng.integers(key, index, positions, counter=1)
    padded = functional.pad(images, (padding, padding, padding, padding))
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    # Indexing around the channel axis moves it to the end: (B, H, W, C).
    cropped = padded[sample, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()
