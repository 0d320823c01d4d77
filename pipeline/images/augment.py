"""Crops and flips on the training device, each a function of (seed, epoch, sample index)."""

from __future__ import annotations

import torch
from torch.nn import functional

from pipeline import rng

__all__ = ["augment"]


def augment(
    images: torch.Tensor,
    index: torch.Tensor,
    *,
    seed: int,
    epoch: int,
    crop_padding: int,
    flip: bool,
) -> torch.Tensor:
    """Crop at random after padding with zeros, and flip half of the images left to right.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W), dtype uint8
    index : Tensor of shape (B,), dtype int64
        Sample indices, on the same device.
    seed, epoch : int
        The same pair gives the same crops again.
    crop_padding : int
        Pixels added on each side; 0: no crop.
    flip : bool

    Returns
    -------
    Tensor like images
    """
    if crop_padding:
        images = _crop(images, index, rng.stream_key(seed, "crop", epoch), crop_padding)
    if flip:
        turn = rng.integers(rng.stream_key(seed, "flip", epoch), index, 2) == 1
        images = torch.where(turn[:, None, None, None], images.flip(3), images)
    return images


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
