"""ResNet-18 and PreActResNet-18 for small images.

The first convolution is 3×3 with stride 1 and no pooling follows it, as in the CIFAR
literature on robustness. Parameter names and arithmetic are those of RobustBench's model zoo
(`ResNet18`; `PreActResNet` with `PreActBlockV2` and `bn_before_fc=True`), so that weights go
both ways; a test holds the names. This file needs torch alone, since `ltd_pipe.export` hands it
on as it is.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["MultiExitResNet18", "PreActResNet18", "ResNet18"]

# (width in multiples of the base, stride of the first block) of the four stages.
_STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))
_BLOCKS_PER_STAGE = 2


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2015, "Deep Residual Learning for Image Recognition").

    Parameters
    ----------
    num_classes : int
    channels : int, default 3
        1 for grey images, 3 for RGB.
    width : int, default 64
        Channels of the first stage; 64 gives 11.2 million parameters.
    """

    def __init__(self, num_classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(_Block, width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, num_classes) for images of shape (B, C, H, W)."""
        out = functional.relu(self.bn1(self.conv1(images)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: torch.Tensor = self.linear(out.mean((2, 3)))
        return logits


class MultiExitResNet18(ResNet18):
    """ResNet-18 with an exit after each stage: global average pooling and a linear layer.

    Parameters
    ----------
    num_classes, channels, width
        As in `ResNet18`.
    judged : int, optional
        The exit whose logits `forward` gives, counted from 1; by default the last of four.
    """

    num_exits = len(_STAGES)

    def __init__(
        self, num_classes: int, channels: int = 3, width: int = 64, judged: int | None = None
    ) -> None:
        super().__init__(num_classes, channels, width)
        early = [multiple * width for multiple, _ in _STAGES[:-1]]
        self.heads = nn.ModuleList(nn.Linear(features, num_classes) for features in early)
        self.judged = self.num_exits if judged is None else judged

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the judged exit; what comes behind it is not computed."""
        return self.exit_logits(images, self.judged)[-1]

    def exit_logits(self, images: torch.Tensor, last: int | None = None) -> list[torch.Tensor]:
        """Logits of each exit, up to number `last`; each of shape (B, num_classes)."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        found: list[torch.Tensor] = []
        out = functional.relu(self.bn1(self.conv1(images)))
        for stage, head in list(zip(stages, (*self.heads, self.linear), strict=True))[:last]:
            out = stage(out)
            found.append(head(out.mean((2, 3))))
        return found


class PreActResNet18(nn.Module):
    """PreActResNet-18 (He et al. 2016, "Identity Mappings in Deep Residual Networks").

    Projections take the activated input and a batch normalisation precedes the linear layer,
    as in the networks of Rice et al. 2020.

    Parameters
    ----------
    num_classes : int
    channels : int, default 3
        1 for grey images, 3 for RGB.
    width : int, default 64
        Channels of the first stage; 64 gives 11.2 million parameters.
    """

    def __init__(self, num_classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(_PreActBlock, width)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, num_classes) for images of shape (B, C, H, W)."""
        out = self.conv1(images)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = functional.relu(self.bn(out))
        logits: torch.Tensor = self.linear(out.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Two convolutions, each followed by batch normalisation, and a shortcut."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, wider, stride)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = _conv3x3(wider, wider)
        self.bn2 = nn.BatchNorm2d(wider)
        # An empty Sequential is the identity.
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != wider:
            self.shortcut = nn.Sequential(_conv1x1(channels, wider, stride), nn.BatchNorm2d(wider))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(features)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(features))


class _PreActBlock(nn.Module):
    """Two convolutions, each preceded by batch normalisation, and a shortcut."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = _conv3x3(channels, wider, stride)
        self.bn2 = nn.BatchNorm2d(wider)
        self.conv2 = _conv3x3(wider, wider)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or channels != wider:
            self.shortcut = nn.Sequential(_conv1x1(channels, wider, stride))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        active = functional.relu(self.bn1(features))
        # The identity carries the raw features, a projection the activated ones.
        shortcut = features if self.shortcut is None else self.shortcut(active)
        out = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        total: torch.Tensor = out + shortcut
        return total


def _stages(block: type[_Block | _PreActBlock], width: int) -> list[nn.Sequential]:
    stages, channels = [], width
    for multiple, stride in _STAGES:
        blocks = []
        for number in range(_BLOCKS_PER_STAGE):
            blocks.append(block(channels, multiple * width, stride if number == 0 else 1))
            channels = multiple * width
        stages.append(nn.Sequential(*blocks))
    return stages


def _conv3x3(channels: int, wider: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, wider, 3, stride=stride, padding=1, bias=False)


def _conv1x1(channels: int, wider: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, wider, 1, stride=stride, bias=False)
