"""CutMix and Mixup: each image with its neighbour in the epoch's order, and their labels alike.

A partner must not depend on how a loader or several processes cut the epoch into batches. The
order is a random permutation already, so its neighbours are random pairs: images 0 and 1 of a
step are each other's partner, 2 and 3, and so on; the last of an odd number is left alone. What
is done to a sample is a function of (seed, epoch, its index), as every augmentation is. Nothing
else has to be fetched: whoever has an image has its partner, as long as steps are cut between
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from ltd_pipe import rng

if TYPE_CHECKING:
    from ltd_pipe.images.augmentation import Mixing

# Shares are multiples of 2^-15: whole numbers for the pixels, exact in float32 for the labels.
_SHARE_BITS = 15
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
    one = 1 << _SHARE_BITS
    own = torch.where(means, _shares(key, index, mixing.mixup_alpha), one)
    inside = _rectangles(key, index, mixing.cutmix_alpha, *images.shape[2:])
    inside &= cuts[:, None, None]
    # Of each pixel the share that stays: none in the rectangle, the same all over in a mean.
    stays = torch.where(inside, 0, own[:, None, None]).to(torch.int32)[:, None]
    mixed = images.to(torch.int32) * stays + images[partner].to(torch.int32) * (one - stays)
    mixed = ((mixed + one // 2) >> _SHARE_BITS).to(torch.uint8)
    outside = (~inside).flatten(1).sum(dim=1) / inside[0].numel()
    return mixed, Mixture(partner, torch.where(cuts, outside, own * (1 / one)).to(torch.float32))


def _rectangles(
    key: int, index: torch.Tensor, alpha: float, height: int, width: int
) -> torch.Tensor:
    """Yun et al. 2019, "CutMix", equation 2: of the image's shape, anywhere, cut at its edges.

    Shape (B, H, W), dtype bool.
    """
    taken = 1.0 - _shares(key, index, alpha).to(torch.float64) / (1 << _SHARE_BITS)
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
    return tuple(round(float(x) * (1 << _SHARE_BITS)) for x in betaincinv(alpha, alpha, levels))
