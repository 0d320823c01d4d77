"""Which image a view's label belongs to: the one definition that labelling and training share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.images.augment import augment
from pipeline.images.augmentation import Augmentation

if TYPE_CHECKING:
    import torch

    from pipeline.labels.format import ViewFacts

__all__ = ["Replay"]


@dataclass(frozen=True)
class Replay:
    """Makes the views of images again; one with `Replay.of`.

    Nothing is stored per sample: a view is a function of (seed, view, sample index), and its
    pixels are the same in any batch and on any device.

    Attributes
    ----------
    augmentation : Augmentation
    seed : int
        Of the views; without augmentation it means nothing.
    count : int
        V.
    """

    augmentation: Augmentation
    seed: int
    count: int

    @classmethod
    def of(cls, views: ViewFacts, where: object) -> Replay:
        """The views that a store has.

        Parameters
        ----------
        views : ViewFacts
        where : object
            The store, for the error.

        Raises
        ------
        StoreError
            When they are of an augmentation that is not ours.
        """
        if views.augmentation is None:
            return cls(Augmentation(), 0, 1)
        assert views.seed is not None  # noqa: S101  ViewFacts holds them together
        try:
            augmentation = _parsed(views.augmentation)
        except ValueError as error:
            raise StoreError(
                where,
                f"views: {error}",
                remedy="This ltd-pipe cannot make these views again. Update it.",
            ) from error
        return cls(augmentation, views.seed, views.count)

    def images(self, images: torch.Tensor, index: torch.Tensor, view: int) -> torch.Tensor:
        """One view of some samples.

        Parameters
        ----------
        images : Tensor of shape (B, C, H, W), dtype uint8
            As the data set has them.
        index : Tensor of shape (B,), dtype int64
            Their numbers in the labelled data set, which are the store's rows.
        view : int
            0 to V - 1.

        Returns
        -------
        Tensor like images
        """
        if not 0 <= view < self.count:
            raise IndexError(f"view {view} of {self.count}")
        return augment(images, index, self.augmentation, seed=self.seed, epoch=view)


def _parsed(text: str) -> Augmentation:
    augmentation = Augmentation.parse(text)
    if augmentation.is_none:
        raise ValueError(f"'{text}' is written null")
    return augmentation
