"""Augmentation on the training device, a function of (seed, epoch, sample index)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ltd_pipe import rng
from ltd_pipe.images.policies import GREY, apply_policy

if TYPE_CHECKING:
    from ltd_pipe.images.augmentation import Augmentation, Mixing


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
        images = apply_policy(images, index, augmentation.policy, seed=seed, epoch=epoch)
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


# --- Random resized crops: boxes by counter, resized in arithmetic that is exact everywhere.
#
# A label belongs to the very pixels that its teacher saw, so these must not depend on the batch,
# the device or the order of a sum. Weights are multiples of 2^-15 and pixels have 8 bits: their
# products and sums fit float32 without rounding, whoever adds them.


# As in Szegedy et al. 2015 ("Going deeper with convolutions", section 6) and torchvision.
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10
_WEIGHT_BITS = 15


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


def resized_crop(
    images: torch.Tensor, box: torch.Tensor, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Enlarge or shrink a part of each image, bilinearly and without aliasing.

    Each pixel is a mean of those around its place, weighted by a triangle as wide as two pixels
    of the part, or of the result where these are larger. That is torchvision's antialiased
    resizing, within one grey level; here it is equal to the bit for any batch and device.
    """
    height, width = images.shape[2:]
    size = (height, width) if size is None else size
    if images.device.type == "cpu":
        # Here, since it imports numba.
        from ltd_pipe.images.crop_kernel import resize_boxes

        return resize_boxes(images, box, size)
    return _by_torch(images, box, size)


def resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Whole images in another size: shape (B, C, *size); see `resized_crop`."""
    height, width = images.shape[2:]
    if (height, width) == size:
        return images
    whole = torch.tensor([0, 0, height, width], device=images.device)
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
    for tap, weight in enumerate(weights):
        place = (first + tap).clamp(min=0).minimum(length[:, None] - 1) + base[:, None]
        # index_select copies whole lines.
        taken = flat.index_select(0, place.view(-1)).float()
        total = total + taken * (weight.to(torch.float32) * 2.0**-_WEIGHT_BITS).view(-1, 1)
    return total.to(torch.uint8).view(count, size, rest)


def _weights(
    length: torch.Tensor, whole: int, size: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The first line of each output line, of shape (B, size), and the weights of all from there.

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
    return first, weights


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
    images: torch.Tensor, index: torch.Tensor, mixing: Mixing, *, seed: int, epoch: int
) -> tuple[torch.Tensor, Mixture]:
    """Mix each image with its partner.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W), dtype uint8
        Augmented; whole pairs of the epoch's order, or an odd one at its end.
    index : Tensor of shape (B,), dtype int64
        Sample indices, on the same device.
    mixing : Mixing
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
    cuts = chance < mixing.cutmix_probability
    means = ~cuts & (chance < mixing.cutmix_probability + mixing.mixup_probability)
    one = 1 << _WEIGHT_BITS
    own = torch.where(means, _shares(key, index, mixing.mixup_alpha), one)
    inside = _rectangles(key, index, mixing.cutmix_alpha, *images.shape[2:])
    inside &= cuts[:, None, None]
    # Of each pixel the share that stays: none in the rectangle, the same all over in a mean.
    stays = torch.where(inside, 0, own[:, None, None]).to(torch.int32)[:, None]
    mixed = images.to(torch.int32) * stays + images[partner].to(torch.int32) * (one - stays)
    mixed = ((mixed + one // 2) >> _WEIGHT_BITS).to(torch.uint8)
    outside = (~inside).flatten(1).sum(dim=1) / inside[0].numel()
    return mixed, Mixture(partner, torch.where(cuts, outside, own * (1 / one)).to(torch.float32))


def _rectangles(
    key: int, index: torch.Tensor, alpha: float, height: int, width: int
) -> torch.Tensor:
    """Yun et al. 2019, "CutMix", equation 2: of the image's shape, anywhere, cut at its edges.

    Shape (B, H, W), dtype bool.
    """
    taken = 1.0 - _shares(key, index, alpha).to(torch.float64) / (1 << _WEIGHT_BITS)
    inside = torch.ones((), dtype=torch.bool, device=index.device)
    for axis, size in enumerate((height, width)):
        length = (size * taken.sqrt()).floor().to(torch.int64)
        begin = rng.integers(key, index, size, counter=2 + axis) - length // 2
        line = torch.arange(size, device=index.device)
        within = (line >= begin[:, None]) & (line < (begin + length)[:, None])
        inside = inside & (within[:, :, None] if axis == 0 else within[:, None, :])
    return inside


def _shares(key: int, index: torch.Tensor, alpha: float) -> torch.Tensor:
    """The image's own share, of shape (B,), int64, in 2^-15."""
    table = torch.tensor(_beta_quantiles(alpha), device=index.device)
    return table[rng.integers(key, index, _QUANTILES, counter=1)]


@cache
def _beta_quantiles(alpha: float) -> tuple[int, ...]:
    """Equally probable values of Beta(alpha, alpha), in 2^-15.

    A table, since drawing from the distribution itself takes an unknown number of draws, and
    logarithms that devices round differently.
    """
    # Here: it takes a tenth of a second, and few runs need it.
    from scipy.special import betaincinv

    levels = [(2 * number + 1) / (2 * _QUANTILES) for number in range(_QUANTILES)]
    return tuple(round(float(x) * (1 << _WEIGHT_BITS)) for x in betaincinv(alpha, alpha, levels))
