"""The fifteen distortions of the AutoAugment family, in integers: the same bits on any device.

They are those of Pillow and torchvision (Cubuk et al. 2019, "AutoAugment", table 6), for a batch
in which each image has an amount of its own. Pixels that come from outside are grey, as in the
authors' code. Amounts are multiples of 2^-15 or 2^-16, so no device can round them otherwise.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pipeline.images.decode import LUMA

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GREY", "OPERATIONS", "grey_levels"]

GREY = 128
# Of blending, and of coordinates.
_BLEND_BITS, _PLACE_BITS = 15, 16
_WHITE = 255


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    """Luminance of RGB images: shape (B, 1, H, W), dtype int32; grey ones are it already."""
    wide = images.to(torch.int32)
    if images.shape[1] != len(LUMA):
        return wide[:, :1]
    red, green, blue = (wide[:, i : i + 1] * weight for i, weight in enumerate(LUMA))
    return (red + green + blue + (1 << 15)) >> 16


def _blended(images: torch.Tensor, other: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    # other + (1 + amount) · (image - other), cut off like Pillow's and torchvision's.
    one = 1 << _BLEND_BITS
    weight = one + _rounded(amount * one, images.device)[:, None, None, None]
    mixed = images.to(torch.int32) * weight + other * (one - weight)
    return (mixed >> _BLEND_BITS).clamp_(0, _WHITE).to(torch.uint8)


def _rounded(amount: torch.Tensor, device: torch.device) -> torch.Tensor:
    return amount.round().to(torch.int32).to(device)


def _brightness(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _blended(images, torch.zeros((), dtype=torch.int32, device=images.device), amount)


def _color(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _blended(images, grey_levels(images), amount)


def _contrast(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    grey = grey_levels(images).flatten(1)
    # The mean, halves rounded up.
    count = grey.shape[1]
    mean = (2 * grey.sum(dim=1, dtype=torch.int64) + count) // (2 * count)
    return _blended(images, mean.to(torch.int32)[:, None, None, None], amount)


def _sharpness(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    wide = images.to(torch.int32)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    smooth = wide.clone()  # its edge stays
    smooth[:, :, 1:-1, 1:-1] = (sums + 6) // 13
    return _blended(images, smooth, amount)


def _posterize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Keep the upper `amount` bits."""
    mask = 256 - (1 << (8 - _rounded(amount, images.device)))
    return images & mask.to(torch.uint8)[:, None, None, None]


def _solarize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Invert what is at least as bright as `amount`."""
    least = _rounded(amount.ceil(), images.device)[:, None, None, None]
    return torch.where(images.to(torch.int32) >= least, _WHITE - images, images)


def _invert(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    del amount
    return _WHITE - images


def _autocontrast(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0 … 255; one of a single level stays."""
    del amount
    flat = images.flatten(2).to(torch.int32)
    least, most = (x[..., None, None] for x in (flat.amin(dim=2), flat.amax(dim=2)))
    stretched = (images.to(torch.int32) - least) * _WHITE // (most - least).clamp(min=1)
    return torch.where(most > least, stretched.to(torch.uint8), images)


def _equalize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Pillow's: each channel's levels, spread so that they are equally frequent."""
    del amount
    count, channels, height, width = images.shape
    flat = images.reshape(count * channels, height * width).to(torch.int64)
    base = 256 * torch.arange(len(flat), device=images.device)[:, None]
    histogram = torch.bincount((flat + base).view(-1), minlength=256 * len(flat)).view(-1, 256)
    # The brightest level that occurs is left out of the step.
    brightest = flat.amax(dim=1, keepdim=True)
    step = (height * width - histogram.gather(1, brightest)) // 255
    before = histogram.cumsum(dim=1) - histogram
    levels = ((before + step // 2) // step.clamp(min=1)).clamp_(max=_WHITE)
    result = torch.where(step > 0, levels.gather(1, flat), flat)
    return result.to(torch.uint8).view_as(images)


def _moved(images: torch.Tensor, matrix: torch.Tensor, *, centred: bool = False) -> torch.Tensor:
    """Take each pixel from where a matrix of shape (B, 2, 3), in 2^-16, says; outside is grey.

    Coordinates are doubled, so that the centres of pixels are integers.
    """
    count, channels, height, width = images.shape
    matrix = matrix.round().to(torch.int64).to(images.device)
    across, down = (2 * torch.arange(n, device=images.device) + 1 for n in (width, height))
    origin = (width, height) if centred else (0, 0)
    x, y = (across - origin[0])[None, None, :], (down - origin[1])[None, :, None]
    inside, places = torch.ones((), dtype=torch.bool, device=images.device), []
    for row, size, middle in ((0, width, origin[0]), (1, height, origin[1])):
        a, b, c = matrix[:, row, :, None, None].unbind(dim=1)
        place = (a * x + b * y + c + (middle << _PLACE_BITS)) >> (_PLACE_BITS + 1)
        inside = inside & (place >= 0) & (place < size)
        places.append(place.clamp_(0, size - 1))
    source = (places[1] * width + places[0]).view(count, 1, -1).expand(-1, channels, -1)
    taken = images.flatten(2).gather(2, source).view_as(images)
    return taken.masked_fill_(~inside[:, None], GREY)


def _matrix(amount: torch.Tensor, **places: torch.Tensor | float) -> torch.Tensor:
    """Rows of `ax ay ac / bx by bc`: what is not given is that of no movement."""
    whole = {"ax": 1.0, "ay": 0.0, "ac": 0.0, "bx": 0.0, "by": 1.0, "bc": 0.0} | places
    columns = [torch.as_tensor(value).expand(len(amount)) for value in whole.values()]
    return torch.stack(columns, dim=1).view(-1, 2, 3) * (1 << _PLACE_BITS)


def _shear_x(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _moved(images, _matrix(amount, ay=amount))


def _shear_y(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _moved(images, _matrix(amount, bx=amount))


def _translate_x(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _moved(images, _matrix(amount, ac=-2 * amount))


def _translate_y(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    return _moved(images, _matrix(amount, bc=-2 * amount))


def _rotate(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    angle = amount * (math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    return _moved(images, _matrix(amount, ax=cosine, ay=-sine, bx=sine, by=cosine), centred=True)


def _identity(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    del amount
    return images


# Each maps images of shape (B, C, H, W), uint8, and amounts of shape (B,), float64 and on the
# host, to images. Amounts: degrees for rotate, pixels for translate, the tangent for shear; what
# is added to a factor of one for brightness to sharpness; bits for posterize, the least level
# that is inverted for solarize; the others have none.
OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "identity": _identity,
    "shear-x": _shear_x,
    "shear-y": _shear_y,
    "translate-x": _translate_x,
    "translate-y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
}
