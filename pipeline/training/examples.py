"""What a step of training learns from: augmented images and their labels, drawn together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pipeline.images.augment import augment
from pipeline.images.mix import mix
from pipeline.training.targets import onehot

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pipeline.images.augmentation import Augmentation
    from pipeline.images.mixing import Mixing
    from pipeline.images.progressive import Sizes
    from pipeline.images.stream import Batch
    from pipeline.params import FitParams

__all__ = [
    "Drawn",
    "Examples",
    "FreshExamples",
    "MixedExamples",
    "fresh_examples",
    "mixed_as_asked",
]


class Drawn(NamedTuple):
    """Images with the labels that belong to them.

    Attributes
    ----------
    images : Tensor of shape (B, C, H, W), dtype uint8
    target, truth : Tensor of shape (B, K), dtype float32
        The distributions to train towards, and the ground truth: one-hot, or a mixture.
    """

    images: torch.Tensor
    target: torch.Tensor
    truth: torch.Tensor

    def part(self, which: slice) -> Drawn:
        """Some of the samples."""
        return Drawn(self.images[which], self.target[which], self.truth[which])


class Examples(Protocol):
    """Gives the images of a batch with the labels that belong to them.

    One call gives both, so that the loop cannot meet one view's image with another's label.
    """

    def fetch(self, batch: Batch, epoch: int) -> Batch:
        """What can be done ahead, on another thread: check a batch, and gather its label rows.

        `draw` does it itself for a batch that has not been through it.
        """

    def draw(self, batch: Batch, epoch: int) -> Drawn:
        """Augment a batch and look its labels up.

        Parameters
        ----------
        batch : Batch
            Of B samples.
        epoch : int
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
    sizes : Sizes, optional
        Of the images, by epoch; None: as they are.
    fetch_of : callable, optional
        From Batch to one whose label rows are on their way.
    """

    augmentation: Augmentation
    seed: int
    target_of: Callable[[Batch], torch.Tensor]
    sizes: Sizes | None = None
    fetch_of: Callable[[Batch], Batch] | None = None

    def fetch(self, batch: Batch, epoch: int) -> Batch:
        """See `Examples`."""
        del epoch
        return batch if self.fetch_of is None else self.fetch_of(batch)

    def draw(self, batch: Batch, epoch: int) -> Drawn:
        """See `Examples`."""
        size = None if self.sizes is None else self.sizes.at(epoch)
        images = augment(
            batch.images, batch.index, self.augmentation, seed=self.seed, epoch=epoch, size=size
        )
        target = self.target_of(batch)
        return Drawn(images, target, onehot(batch.labels, target.shape[1]))


@dataclass(frozen=True)
class MixedExamples:
    """Other examples, each mixed with its neighbour: pixels, target and truth alike.

    Attributes
    ----------
    examples : Examples
    mixing : Mixing
    seed : int
        The run's, also where the images are views that a store's seed has drawn.
    """

    examples: Examples
    mixing: Mixing
    seed: int

    def fetch(self, batch: Batch, epoch: int) -> Batch:
        """See `Examples`."""
        return self.examples.fetch(batch, epoch)

    def draw(self, batch: Batch, epoch: int) -> Drawn:
        """See `Examples`; the batch has whole pairs, see `pipeline.images.mix`."""
        images, target, truth = self.examples.draw(batch, epoch)
        images, mixture = mix(images, batch.index, self.mixing, seed=self.seed, epoch=epoch)
        return Drawn(images, mixture.rows(target), mixture.rows(truth))


def fresh_examples(
    params: FitParams,
    seed: int,
    target_of: Callable[[Batch], torch.Tensor],
    fetch_of: Callable[[Batch], Batch] | None = None,
) -> Examples:
    """Examples of plain images as parameters ask for them; see `FreshExamples`."""
    fresh = FreshExamples(params.augmentation, seed, target_of, params.sizes, fetch_of)
    return mixed_as_asked(fresh, params, seed)


def mixed_as_asked(examples: Examples, params: FitParams, seed: int) -> Examples:
    """Examples as they are, or mixed where the parameters ask for it."""
    return examples if params.mixing.is_none else MixedExamples(examples, params.mixing, seed)
