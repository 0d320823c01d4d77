"""The networks of this package: a small CNN, ResNets and wide ResNets for small images.

Parameter names and arithmetic of the ResNets are those of RobustBench's model zoo (`ResNet18`;
`PreActResNet` with `PreActBlockV2` and `bn_before_fc=True`; `WideResNet`), so that weights go both
ways; a test holds the names. The file needs torch alone, since exports hand its classes on.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


def _conv3x3(channels: int, wider: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, wider, 3, stride=stride, padding=1, bias=False)


def _conv1x1(channels: int, wider: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, wider, 1, stride=stride, bias=False)


class SmallCNN(nn.Module):
    """Three 3×3 convolutions with batch normalisation, then one linear layer.

    The second convolution halves the image; for images above 16 pixels the third and, if need
    be, further ones halve it too, until 8×8 positions are left. Positions are kept for the linear
    layer: on digits of 8×8 pixels the place of a stroke matters.

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
        channels, *size = shape
        layers: list[nn.Module] = []
        # (channels, height, width) of the features behind each convolution.
        self.feature_shapes: list[tuple[int, int, int]] = []
        while len(self.feature_shapes) < 3 or max(size) > 8:
            number = len(self.feature_shapes)
            wider = width if number == 0 else 2 * width
            stride = 2 if number == 1 or (number > 1 and max(size) > 8) else 1
            layers += [_conv3x3(channels, wider, stride), nn.BatchNorm2d(wider)]
            layers += [nn.ReLU(inplace=True)]
            # With padding 1 the convolution rounds up.
            channels, size = wider, [-(-side // stride) for side in size]
            self.feature_shapes.append((channels, size[0], size[1]))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * size[0] * size[1], num_classes)

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
    exit_number : int, optional
        The exit whose logits `forward` gives, counted from 1; by default the last.
    """

    def __init__(
        self,
        num_classes: int,
        shape: tuple[int, int, int],
        width: int = 32,
        exit_number: int | None = None,
    ) -> None:
        super().__init__(num_classes, shape, width)
        self.heads = nn.ModuleList()
        for channels, height, side in self.feature_shapes[:-1]:
            pool = -(-height // 8), -(-side // 8)
            positions = (height // pool[0]) * (side // pool[1])
            head = nn.Linear(channels * positions, num_classes)
            self.heads.append(nn.Sequential(nn.AvgPool2d(pool), nn.Flatten(), head))
        self.num_exits = len(self.feature_shapes)
        self.exit_number = exit_number or self.num_exits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the chosen exit; what comes behind it is not computed."""
        return self.exit_logits(images, self.exit_number)[-1]

    def exit_logits(self, images: torch.Tensor, last: int | None = None) -> list[torch.Tensor]:
        """Logits of each exit, up to number `last`; each of shape (B, num_classes)."""
        logits: list[torch.Tensor] = []
        out = images
        for number in range(last or self.num_exits):
            # A convolution, its normalisation and its activation.
            out = self.features[3 * number : 3 * number + 3](out)
            early = number < len(self.heads)
            logits.append(self.heads[number](out) if early else self.linear(out.flatten(1)))
        return logits


class _BasicBlock(nn.Module):
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
        return self._sum(features, self.shortcut)

    def _sum(self, features: torch.Tensor, projection: nn.Module | None) -> torch.Tensor:
        active = functional.relu(self.bn1(features), inplace=True)
        # The identity carries the raw features, a projection the activated ones.
        shortcut = features if projection is None else projection(active)
        out = self.conv2(functional.relu(self.bn2(self.conv1(active)), inplace=True))
        total: torch.Tensor = out + shortcut
        return total


def _stages(block: type[nn.Module], width: int) -> list[nn.Sequential]:
    """Four stages of two blocks; each but the first doubles the channels and halves the image."""
    stages, channels = [], width
    for number in range(4):
        wider, stride = width * 2**number, 1 if number == 0 else 2
        stages.append(nn.Sequential(block(channels, wider, stride), block(wider, wider, 1)))
        channels = wider
    return stages


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2015, "Deep Residual Learning for Image Recognition").

    The first convolution is 3×3 with stride 1 and no pooling follows it, as in the CIFAR
    literature on robustness.

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
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(_BasicBlock, width)
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
    exit_number : int, optional
        The exit whose logits `forward` gives, counted from 1; by default the last of four.
    """

    num_exits = 4

    def __init__(
        self, num_classes: int, channels: int = 3, width: int = 64, exit_number: int | None = None
    ) -> None:
        super().__init__(num_classes, channels, width)
        self.heads = nn.ModuleList(nn.Linear(width * 2**i, num_classes) for i in range(3))
        self.exit_number = exit_number or self.num_exits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the chosen exit; what comes behind it is not computed."""
        return self.exit_logits(images, self.exit_number)[-1]

    def exit_logits(self, images: torch.Tensor, last: int | None = None) -> list[torch.Tensor]:
        """Logits of each exit, up to number `last`; each of shape (B, num_classes)."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        logits: list[torch.Tensor] = []
        out = functional.relu(self.bn1(self.conv1(images)))
        for stage, head in zip(stages[:last], (*self.heads, self.linear), strict=False):
            out = stage(out)
            logits.append(head(out.mean((2, 3))))
        return logits


class PreActResNet18(nn.Module):
    """PreActResNet-18 (He et al. 2016, "Identity Mappings in Deep Residual Networks").

    Projections take the activated input and a batch normalisation precedes the linear layer,
    as in the networks of Rice et al. 2020.

    Parameters
    ----------
    num_classes, channels, width
        As in `ResNet18`.
    """

    def __init__(self, num_classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(_PreActBlock, width)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, num_classes) for images of shape (B, C, H, W)."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        out = functional.relu(self.bn(out))
        logits: torch.Tensor = self.linear(out.mean((2, 3)))
        return logits


class WideResNet(nn.Module):
    """WRN-depth-widen (Zagoruyko and Komodakis 2016, "Wide Residual Networks"), no dropout.

    Checkpoints from TRADES and AWP also hold `sub_block1`, a block that their forward pass never
    runs: `load_foreign` leaves it out.

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
        self.conv1 = _conv3x3(channels, 16)
        self.block1 = _wide_stage(blocks, 16, 16 * widen, stride=1)
        self.block2 = _wide_stage(blocks, 16 * widen, 32 * widen, stride=2)
        self.block3 = _wide_stage(blocks, 32 * widen, 64 * widen, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(64 * widen, num_classes)
        # He et al. 2015 over the outputs: published results start from these weights, not
        # from torch's own.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                outputs = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / outputs))
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, num_classes) for images of shape (B, C, H, W)."""
        out = self.block3(self.block2(self.block1(self.conv1(images))))
        out = self.relu(self.bn1(out))
        logits: torch.Tensor = self.fc(out.mean((2, 3)))
        return logits


class _WideBlock(_PreActBlock):
    """The same, with the name that its projection has in the weights of wide ResNets."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__(channels, wider, stride)
        self.convShortcut = None if self.shortcut is None else self.shortcut[0]
        del self.shortcut

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self._sum(features, self.convShortcut)


def _wide_stage(blocks: int, channels: int, wider: int, stride: int) -> nn.Sequential:
    """Blocks of one width; `layer` is part of their weights' names."""
    first = _WideBlock(channels, wider, stride)
    layer = nn.Sequential(first, *(_WideBlock(wider, wider, 1) for _ in range(blocks - 1)))
    stage = nn.Sequential()
    stage.add_module("layer", layer)
    return stage
