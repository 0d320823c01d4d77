"""Perturbations carried from epoch to epoch: where the next attack on an image begins.

ATTA (Zheng et al. 2020): the network changes little between two epochs, so what an attack found in
the last one is most of what ten steps from a random start would find in this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ltd_pipe.device import free_memory
from ltd_pipe.distributed import ALONE, World
from ltd_pipe.errors import MachineError
from ltd_pipe.images.augment import augment, restored

if TYPE_CHECKING:
    from ltd_pipe.images.augmentation import Augmentation

_MOST = 127
# The largest share of the device's free memory that they may take.
_SHARE = 0.5
# Of them what processes share at a time.
_SHARED_BYTES = 2**24


class Perturbations:
    """One perturbation for each image of a data set, as it was before its crop and flip.

    It is moved back the way it came, and the next epoch's view takes what it shows of it. Pixels
    beyond the image's edge begin at zero.

    Parameters
    ----------
    count : int
        Images of the data set.
    shape : tuple of int
        (C, H, W).
    device : torch.device
    world : World
        Each process finds those of its own images, until `share`.

    Raises
    ------
    MachineError
        When the device has not the memory: one byte per value.
    """

    def __init__(
        self, count: int, shape: tuple[int, ...], device: torch.device, world: World = ALONE
    ) -> None:
        size, free = count * torch.Size(shape).numel(), free_memory(device)
        if size > _SHARE * free:
            raise MachineError(
                f"train.attack_start: previous, on {device.type}",
                f"the perturbations of {count:,} images do not fit into its memory",
                expected=f"{size / 2**30:.1f} GiB, at most half of what is free",
                found=f"{free / 2**30:.1f} GiB free",
                remedy="Set attack_start: null.",
            )
        # In 127ths of eps, so that a growing eps finds them grown.
        self._values = torch.zeros((count, *shape), dtype=torch.int8, device=device)
        self._world, self._shared = world, True
        self._written = torch.zeros(count, dtype=torch.int8, device=device)

    def points(
        self,
        images: torch.Tensor,
        index: torch.Tensor,
        eps: float,
        draws: tuple[Augmentation, int, int],
    ) -> torch.Tensor:
        """Where attacks on views in [0, 1] begin; `draws` has augmentation, seed and epoch of them.

        `eps` is the ball's radius in this step, pixel units.
        """
        augmentation, seed, epoch = draws
        kept = self._values.index_select(0, index)
        moved = augment(kept, index, augmentation.moves, seed=seed, epoch=epoch)
        return images + moved.to(images.dtype) * (eps / _MOST)

    def keep(
        self,
        offset: torch.Tensor,
        index: torch.Tensor,
        eps: float,
        draws: tuple[Augmentation, int, int],
    ) -> None:
        """Take what attacks have found: `offset` is x′ - x, of shape (B, C, H, W)."""
        augmentation, seed, epoch = draws
        scale = _MOST / eps if eps else 0.0
        found = (offset * scale).round().clamp(-_MOST, _MOST).to(torch.int8)
        before = self._values.index_select(0, index)
        moved = restored(found, index, augmentation.moves, before, seed=seed, epoch=epoch)
        self._values.index_copy_(0, index, moved)
        if self._world.size > 1:
            self._written.index_fill_(0, index, 1)
            self._shared = False

    def share(self) -> None:
        """Give each process what the others have found since they last did this."""
        if self._shared:
            return
        rows = max(_SHARED_BYTES // self._values[0].numel(), 1)
        blocks = zip(*(torch.split(x, rows) for x in (self._values, self._written)), strict=True)
        for values, written in blocks:  # a copy of all might not fit
            mine = values * written.view(-1, 1, 1, 1)
            # An image belongs to one process of a step, and an epoch has it once.
            self._world.all_reduce_([mine, written])
            values.copy_(torch.where(written.view(-1, 1, 1, 1) > 0, mine, values))
        self._written.zero_()
        self._shared = True

    def state_dict(self) -> torch.Tensor:
        """What a snapshot holds; of several processes after `share`."""
        return self._values

    def load_state_dict(self, values: torch.Tensor) -> None:
        """Go on from what `state_dict` gave."""
        self._values.copy_(values)
