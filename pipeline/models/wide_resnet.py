"""Wide ResNets for small images, as TRADES and AWP train them.

Parameter names and arithmetic are those of `WideResNet` in RobustBench's model zoo, so that
weights go both ways; a test holds the names. This file needs torch alone, since
`ltd_pipe.export` hands it on as it is. Checkpoints from TRADES and AWP also hold
`sub_block1`, a block that their forward pass never runs: `load_foreign` leaves it out.
"""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["WideResNet"]

# The first convolution, and the widest layer for a widening factor of one.
_STEM, _LAST = 16, 64


class WideResNet(nn.Module):
    """WRN-depth-widen (Zagoruyko and Komodakis 2016, "Wide Residual Networks"), no dropout.

    Parameters
    ----------
    num_classes : int
    depth : int
        Number of convolutions: 6n + 4 for n blocks in each of the three stages.
    widen : int
        Multiple of the 16, 32 and 64 channels of the three stages.
    channels : int, default 3
        1 for grey images, 3 for RGB.
    """

    def __init__(self, num_classes: int, depth: int, widen: int, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, _STEM, 3, padding=1, bias=False)
        self.block1 = _Stage(blocks, _STEM, 16 * widen, stride=1)
        self.block2 = _Stage(blocks, 16 * widen, 32 * widen, stride=2)
        self.block3 = _Stage(blocks, 32 * widen, _LAST * widen, stride=2)
        self.bn1 = nn.BatchNorm2d(_LAST * widen)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(_LAST * widen, num_classes)
        self._initialise()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, num_classes) for images of shape (B, C, H, W)."""
        out = self.block3(self.block2(self.block1(self.conv1(images))))
        out = self.relu(self.bn1(out))
        logits: torch.Tensor = self.fc(out.mean((2, 3)))
        return logits

    def _initialise(self) -> None:
        # He et al. 2015 over the outputs: published results start from these weights, not
        # from torch's own.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                outputs = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / outputs))
        nn.init.zeros_(self.fc.bias)


class _Stage(nn.Module):
    """Blocks of one width; the attribute `layer` is part of the parameters' names."""

    def __init__(self, blocks: int, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        first = _Block(channels, wider, stride)
        self.layer = nn.Sequential(first, *(_Block(wider, wider, 1) for _ in range(blocks - 1)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(features)
        return out


class _Block(nn.Module):
    """Two convolutions, each preceded by batch normalisation, and a shortcut."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, wider, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wider)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if channels != wider:
            self.convShortcut = nn.Conv2d(channels, wider, 1, stride=stride, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        active = self.relu1(self.bn1(features))
        # The identity carries the raw features, a projection the activated ones.
        shortcut = features if self.convShortcut is None else self.convShortcut(active)
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        total: torch.Tensor = shortcut + out
        return total
