"""Augmentation on the training device, a function of (seed, epoch, sample index)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ltd_pipe import rng
from ltd_pipe.device import constants
from ltd_pipe.images.policies import GREY, apply_policy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ltd_pipe.images.augmentation import Augmentation
    from ltd_pipe.params.fit import FitParams


def augment(
    images: torch.Tensor,
    index: torch.Tensor,
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int,
    size: tuple[int, int] | None = None,
    rows: NDArray[np.int64] | None = None,
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
    rows : ndarray of shape (B,), dtype int64, optional
        The indices on the host, if they are there: a policy waits for a GPU to have them.

    Returns
    -------
    Tensor of shape (B, C, *size), dtype uint8
    """
    padding = augmentation.crop_padding
    if padding:
        images = _crop(images, *_corners(index, seed, epoch, padding), padding)
    if augmentation.crop_scale is not None:
        # Here, since it imports numba.
        from ltd_pipe.images.resize import resized_crop

        key = rng.stream_key(seed, "resized-crop", epoch)
        height, width = images.shape[2:]
        box = boxes(index, key, height, width, augmentation.crop_scale)
        # Resized once, not twice, where nothing lies between.
        at_once = augmentation.policy is None and not augmentation.cutout
        images = resized_crop(images, box, size if at_once else None)
    if augmentation.flip:
        images = _flipped(images, _turns(index, seed, epoch))
    if augmentation.policy is not None:
        images = apply_policy(
            images,
            index.cpu().numpy() if rows is None else rows,
            augmentation.policy,
            seed=seed,
            epoch=epoch,
        )
    if augmentation.cutout:
        key = rng.stream_key(seed, "cutout", epoch)
        images = _cut_out(images, index, key, augmentation.cutout)
    if size is None:
        return images
    from ltd_pipe.images.resize import resized

    return resized(images, size)


def restored(
    views: torch.Tensor,
    index: torch.Tensor,
    augmentation: Augmentation,
    before: torch.Tensor,
    *,
    seed: int,
    epoch: int,
) -> torch.Tensor:
    """Move the pixels of views, int8 above -128, back to where they are in their images.

    The other arguments are those of `augment`, of an augmentation of flips and crops after padding
    alone. Where a view does not show the image, its value `before` stays.
    """
    padding = augmentation.crop_padding
    if augmentation.flip:
        views = _flipped(views, _turns(index, seed, epoch))
    if not padding:
        return views
    top, left = _corners(index, seed, epoch, padding)
    views = _crop(views, 2 * padding - top, 2 * padding - left, padding, fill=_UNSEEN)
    return torch.where(views == _UNSEEN, before, views)


_UNSEEN = -128


def _corners(
    index: torch.Tensor, seed: int, epoch: int, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    key, places = rng.stream_key(seed, "crop", epoch), 2 * padding + 1
    return tuple(rng.integers(key, index, places, counter=axis) for axis in (0, 1))  # type: ignore[return-value]


def _turns(index: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    return rng.integers(rng.stream_key(seed, "flip", epoch), index, 2) == 1


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
    height, width = images.shape[2:]
    sides = torch.full((len(index),), side, device=images.device)
    inside = _windows(key, index, (height, sides), (width, sides), counter=0)
    return images.masked_fill(inside[:, None], GREY)


def _windows(
    key: int,
    index: torch.Tensor,
    *axes: tuple[int, torch.Tensor],
    counter: int,
) -> torch.Tensor:
    """Rectangles whose middle is any pixel of the image, cut at its edges: a mask, (B, H, W).

    Of each axis the image's size, and the rectangles' lengths, of shape (B,).
    """
    lines = []
    for axis, (size, length) in enumerate(axes):
        begin = rng.integers(key, index, size, counter=counter + axis) - length // 2
        line = torch.arange(size, device=index.device)
        lines.append((line >= begin[:, None]) & (line < (begin + length)[:, None]))
    rows, columns = lines
    return rows[:, :, None] & columns[:, None, :]


def _crop(
    images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, padding: int, fill: int = 0
) -> torch.Tensor:
    _, _, height, width = images.shape
    padded = functional.pad(images, (padding, padding, padding, padding), value=fill)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    # Indexing around the channel axis moves it to the end: (B, H, W, C).
    cropped = padded[sample, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()


# --- Where a random resized crop is.


# As in Szegedy et al. 2015 ("Going deeper with convolutions", section 6) and torchvision.
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10


def boxes(
    index: torch.Tensor, key: int, height: int, width: int, scale: tuple[float, float]
) -> torch.Tensor:
    """Where each image is cropped: top, left, height and width, shape (B, 4), dtype int64.

    Of ten boxes with an area uniform in `scale` and an aspect ratio log-uniform in 3/4 to 4/3
    the first that fits into the image, at a uniform place; where none fits, the largest one in
    the middle that has an allowed aspect ratio.
    """
    # In float64, so that the last bit of a device's exp moves no edge.
    draws = rng.uniform(key, index, (_TRIES + 1, 2)).to(torch.float64)
    least, most = scale
    area = height * width * (least + (most - least) * draws[:, :_TRIES, 0])
    low, high = map(math.log, _ASPECT)
    aspect = torch.exp(low + (high - low) * draws[:, :_TRIES, 1])
    # A guess is (height, width); the fallback stands behind the ten, so one is always found.
    guesses = torch.stack(((area / aspect).sqrt(), (area * aspect).sqrt()), dim=2).round()
    fallback = constants(_largest(height, width), guesses).expand(len(index), 1, 2)
    guesses = torch.cat((guesses, fallback), dim=1)
    limit = constants((height, width), guesses)
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


# --- CutMix and Mixup: each image with its neighbour in the epoch's order, and their labels alike.
#
# A partner must not depend on how a loader or several processes cut the epoch into batches. The
# order is a random permutation already, so its neighbours are random pairs: images 0 and 1 of a
# step are each other's partner, 2 and 3, and so on; the last of an odd number is left alone. What
# is done to a sample is a function of (seed, epoch, its index), as every augmentation is. Nothing
# else has to be fetched: whoever has an image has its partner, as long as steps are cut between
# pairs.
#
# Shares are multiples of 2^-15: whole numbers for the pixels, exact in float32 for the labels.


_WEIGHT_BITS = 15
_QUANTILES = 1 << 12


@dataclass(frozen=True)
class Mixture:
    """What images were mixed with, so that their labels can be.

    Attributes
    ----------
    partner : Tensor of shape (B,), dtype int64
        Place in the batch.
    own : Tensor of shape (B,), dtype float32
        Share of the image itself: exactly that of its pixels, or of its part in each pixel.
    """

    partner: torch.Tensor
    own: torch.Tensor

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Distributions of shape (B, K), float32, each mixed with its partner's."""
        own = self.own[:, None]
        return own * rows + (1.0 - own) * rows[self.partner]


def mix(
    images: torch.Tensor, index: torch.Tensor, params: FitParams, *, seed: int, epoch: int
) -> tuple[torch.Tensor, Mixture]:
    """Mix each image with its partner.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W), dtype uint8
        Augmented; whole pairs of the epoch's order, or an odd one at its end.
    index : Tensor of shape (B,), dtype int64
        Sample indices, on the same device.
    params : FitParams
        `cutmix_…` and `mixup_…`: the shares of the images that get a rectangle of the partner, or a
        weighted mean with it, and alpha of the symmetric Beta distribution that the image's own
        share is drawn from.
    seed, epoch : int

    Returns
    -------
    images : Tensor like images
        Means are rounded to a grey level.
    mixture : Mixture
    """
    place = torch.arange(len(index), device=images.device)
    partner = place ^ 1
    partner = torch.where(partner < len(index), partner, place)
    key = rng.stream_key(seed, "mix", epoch)
    chance = rng.uniform(key, index, (1,))[:, 0].to(torch.float64)
    cuts = chance < params.cutmix_probability
    means = ~cuts & (chance < params.cutmix_probability + params.mixup_probability)
    one = 1 << _WEIGHT_BITS
    own = torch.where(means, _shares(key, index, params.mixup_alpha), one)
    # Yun et al. 2019, "CutMix", equation 2.
    height, width = images.shape[2:]
    share = 1.0 - _shares(key, index, params.cutmix_alpha).to(torch.float64) / one
    tall, wide = ((size * share.sqrt()).floor().to(torch.int64) for size in (height, width))
    inside = _windows(key, index, (height, tall), (width, wide), counter=2) & cuts[:, None, None]
    # Of each pixel the share that stays: none in the rectangle, the same all over in a mean.
    stays = torch.where(inside, 0, own[:, None, None]).to(torch.int32)[:, None]
    mixed = images.to(torch.int32) * stays + images[partner].to(torch.int32) * (one - stays)
    mixed = ((mixed + one // 2) >> _WEIGHT_BITS).to(torch.uint8)
    outside = (~inside).flatten(1).sum(dim=1) / inside[0].numel()
    return mixed, Mixture(partner, torch.where(cuts, outside, own * (1 / one)).to(torch.float32))


def _shares(key: int, index: torch.Tensor, alpha: float) -> torch.Tensor:
    """The image's own share, of shape (B,), int64, in 2^-15."""
    table = _beta_quantiles(alpha, index.device)
    return table[rng.integers(key, index, _QUANTILES, counter=1)]


@cache
def _beta_quantiles(alpha: float, device: torch.device) -> torch.Tensor:
    """Equally probable values of Beta(alpha, alpha), in 2^-15."""
    # A table, since drawing from the distribution itself takes an unknown number of draws, and
    # logarithms that devices round differently. Imported here, since few runs need it.
    from scipy.special import betaincinv

    levels = [(2 * number + 1) / (2 * _QUANTILES) for number in range(_QUANTILES)]
    values = [round(float(x) * (1 << _WEIGHT_BITS)) for x in betaincinv(alpha, alpha, levels)]
    return torch.tensor(values, device=device)
