"""A small convolutional network, quick enough for adversarial training on a processor.

This file needs torch alone, since `ltd_pipe.export` hands it on as it is.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["MultiExitSmallCNN", "SmallCNN"]

# The last convolution hands at most 8×8 positions to the linear layer.
_LARGEST_SIDE = 8


class SmallCNN(nn.Module):
    """Three 3×3 convolutions with batch normalisation, then one linear layer.

    The second convolution halves the image; for images above 16 pixels the third and, if need
    be, further ones halve it too. Positions are kept for the linear layer: on digits of 8×8
    pixels the place of a stroke matters.

    Parameters
    ----------
    num_classes : int
    shape : tuple of int
        (C, H, W) of the images.
    width : int, default 32
        Channels of the first convolution; the others have twice as many. About 66,000
        parameters for grey 8×8 images and 98,000 for RGB 32×32 ones.
    """

    def __init__(self, num_classes: int, shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        channels, height, side = shape[0], shape[1], shape[2]
        layers: list[nn.Module] = []
        for number, stride in enumerate(_strides(max(height, side))):
            wider = width if number == 0 else 2 * width
            layers += _convolution(channels, wider, stride)
            channels, height, side = wider, _halved(height, stride), _halved(side, stride)
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * height * side, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, num_classes) for images of shape (B, C, H, W)."""
        logits: torch.Tensor = self.linear(self.features(images).flatten(1))
        return logits


class MultiExitSmallCNN(SmallCNN):
    """The same network with an exit after each convolution, the last one its own.

    An early exit is a linear layer on the features at 8×8 positions at most.

    Parameters
    ----------
    num_classes, shape, width
        As in `SmallCNN`.
    judged : int, optional
        The exit whose logits `forward` gives, counted from 1; by default the last.
    """

    def __init__(
        self,
        num_classes: int,
        shape: tuple[int, int, int],
        width: int = 32,
        judged: int | None = None,
    ) -> None:
        super().__init__(num_classes, shape, width)
        height, side = shape[1], shape[2]
        heads = []
        for number, stride in enumerate(_strides(max(height, side))[:-1]):
            height, side = _halved(height, stride), _halved(side, stride)
            pool = -(-height // _LARGEST_SIDE), -(-side // _LARGEST_SIDE)
            positions = (height // pool[0]) * (side // pool[1])
            channels = width if number == 0 else 2 * width
            head = nn.Linear(channels * positions, num_classes)
            heads.append(nn.Sequential(nn.AvgPool2d(pool), nn.Flatten(), head))
        self.heads = nn.ModuleList(heads)
        self.num_exits = len(heads) + 1
        self.judged = self.num_exits if judged is None else judged

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the judged exit; what comes behind it is not computed."""
        return self.exit_logits(images, self.judged)[-1]

    def exit_logits(self, images: torch.Tensor, last: int | None = None) -> list[torch.Tensor]:
        """Logits of each exit, up to number `last`; each of shape (B, num_classes)."""
        found: list[torch.Tensor] = []
        out = images
        for number in range(self.num_exits if last is None else last):
            # A convolution, its normalisation and its activation.
            out = self.features[3 * number : 3 * number + 3](out)
            early = number < len(self.heads)
            found.append(self.heads[number](out) if early else self.linear(out.flatten(1)))
        return found


def _strides(side: int) -> list[int]:
    strides, side = [1, 2], _halved(side, 2)
    while True:
        strides.append(2 if side > _LARGEST_SIDE else 1)
        side = _halved(side, strides[-1])
        if side <= _LARGEST_SIDE:
            return strides


def _halved(side: int, stride: int) -> int:
    # A 3×3 convolution with padding 1 rounds up.
    return -(-side // stride)


def _convolution(channels: int, wider: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, wider, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(wider), nn.ReLU(inplace=True)]
