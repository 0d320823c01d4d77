"""Batch normalisation over the images of all processes: the number of them changes nothing.

torch's own works on GPUs alone, where no test of ours can run. The attack's passes, ten of the
twelve in a step, are in evaluation mode and need no message.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["SyncedBatchNorm2d", "synchronise"]


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        del ctx
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        del ctx
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose batch is that of all processes together."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise by the mean and variance over all processes, in float32."""
        if not self.training:
            return super().forward(images)
        mean, variance, count = _statistics(images.float())
        self._follow(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        return (images * scale[:, None, None] + shift[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)


def _statistics(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    channels = values.shape[1]
    here = values.new_full((1,), values.numel() / channels)
    sums = _Sum.apply(torch.cat([values.sum(dim=(0, 2, 3)), here]))
    count = sums[channels].detach()
    mean = sums[:channels] / count
    # Around the common mean, in a second message: the mean of squares less the squared mean
    # would lose digits.
    squares = (values - mean[:, None, None]).square().sum(dim=(0, 2, 3))
    return mean, _Sum.apply(squares) / count, count


def synchronise(network: nn.Module) -> None:
    """Let all batch normalisations of a network share their statistics from now on.

    Weights and state keep their names, so that a checkpoint does not tell on how many processes
    it was trained.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _synced(child))


def _synced(norm: nn.BatchNorm2d) -> SyncedBatchNorm2d:
    synced = SyncedBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    # The very parameters, which an optimiser may hold already.
    synced._parameters, synced._buffers = norm._parameters, norm._buffers
    synced.training = norm.training
    return synced
