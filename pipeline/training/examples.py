"""What a step of training learns from: augmented images and their targets, drawn together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.images.augment import augment

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pipeline.images.augmentation import Augmentation
    from pipeline.images.stream import Batch

__all__ = ["Examples", "FreshExamples"]


class Examples(Protocol):
    """Gives the images of a batch with the targets that belong to them.

    One call gives both, so that the loop cannot meet one view's image with another's label.
    """

    def draw(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment a batch and look its targets up.

        Parameters
        ----------
        batch : Batch
            Of B samples.
        epoch : int

        Returns
        -------
        images : Tensor of shape (B, C, H, W), dtype uint8
        target : Tensor of shape (B, K), dtype float32
            Rows are distributions.
        """


@dataclass(frozen=True)
class FreshExamples:
    """Augments anew in each epoch; the target is the sample's, wherever it is cropped.

    Attributes
    ----------
    augmentation : Augmentation
    seed : int
        The run's.
    target_of : callable
        From Batch to its targets, Tensor of shape (B, K), float32.
    """

    augmentation: Augmentation
    seed: int
    target_of: Callable[[Batch], torch.Tensor]

    def draw(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Examples`."""
        images = augment(batch.images, batch.index, self.augmentation, seed=self.seed, epoch=epoch)
        return images, self.target_of(batch)
