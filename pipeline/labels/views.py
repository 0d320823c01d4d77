"""Which augmented view of an image a soft label belongs to, and making that view again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ltd_pipe.errors import DataError, StoreError
from ltd_pipe.images.augment import augment
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.images.decode import CHANNELS, RESIZE, resize, to_channels
from ltd_pipe.publish import require_shared_memory

if TYPE_CHECKING:
    from ltd_pipe.labels.format import LabellingFacts, ViewFacts
    from ltd_pipe.labels.reader import SoftLabels

ViewSource = Literal["replay", "given"]


@dataclass(frozen=True)
class Replay:
    """Makes the views of images again, for labelling and for training.

    Nothing is stored per sample: a view is a function of (seed, view, sample index), and its
    pixels are the same in any batch and on any device. Without augmentation the seed means nothing.
    """

    augmentation: Augmentation
    seed: int
    count: int

    @classmethod
    def of(cls, views: ViewFacts, where: object) -> Replay:
        """The views of the store `where`, unless they are of an augmentation that is not ours."""
        if views.augmentation is None:
            return cls(Augmentation(), 0, 1)
        assert views.seed is not None  # noqa: S101  ViewFacts holds them together
        remedy = "This ltd-pipe cannot make these views again. Update it."
        try:
            augmentation = Augmentation.parse(views.augmentation)
        except ValueError as error:
            raise StoreError(where, f"views: {error}", remedy=remedy) from error
        if augmentation.is_none:
            what = f"views: '{views.augmentation}' is written null"
            raise StoreError(where, what, remedy=remedy)
        return cls(augmentation, views.seed, views.count)

    def images(self, images: torch.Tensor, index: torch.Tensor, view: int) -> torch.Tensor:
        """One view of some samples.

        Parameters
        ----------
        images : Tensor of shape (B, C, H, W), dtype uint8
        index : Tensor of shape (B,), dtype int64
            Their numbers in the labelled data set, which are the store's rows.
        view : int
            0 to V - 1.
        """
        if not 0 <= view < self.count:
            raise IndexError(f"view {view} of {self.count}")
        return augment(images, index, self.augmentation, seed=self.seed, epoch=view)


class Views:
    """The views of a store's labels, as one data set uses them.

    A label of an augmented view is not one of the plain image, nor of another view. So what is
    to be done must be said: the views are made here, as when the labels were made
    ("replay"), or whoever gives the image says which view it is ("given").

    Parameters
    ----------
    store : SoftLabels
    source : {"replay", "given"}, optional
        Needed when the labels are of augmented views, and refused when they are not.
    fixed : int, optional
        Replay this view only, not epoch modulo V.
    """

    def __init__(
        self, store: SoftLabels, source: ViewSource | None = None, fixed: int | None = None
    ) -> None:
        facts = store.attributes.views
        if source not in (None, "replay", "given"):
            raise ValueError(f"views: expected 'replay' or 'given', found {source!r}")
        if facts.augmentation is None and source is not None:
            raise StoreError(
                store.path, "its labels are of the images as they are", remedy="Omit views=."
            )
        if facts.augmentation is not None and source is None:
            raise StoreError(
                store.path,
                f"its labels are of augmented views ({facts.augmentation}, {facts.count} of each "
                "image), not of the images as they are",
                remedy="Pass views='replay' to have them made again from untransformed images, "
                "or views='given' when the data set gives (image, label, view).",
            )
        if fixed is not None:
            if source == "given":
                raise ValueError("view: with views='given', the data set says it")
            store.require_view(fixed)
        self.source, self.count, self._fixed = source, facts.count, fixed
        self._replay = Replay.of(facts, store.path) if source == "replay" else None
        self._seen = store.attributes.labelling
        # Seen by workers that live on into the next epoch.
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._epoch = _shared(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch begins."""
        self._epoch.fill_(epoch)

    @property
    def current(self) -> int:
        """The view of this epoch."""
        return int(self._epoch) % self.count if self._fixed is None else self._fixed

    def replay(self, image: Any, row: int, view: int, where: str) -> torch.Tensor:
        """Make a view again, to the same bits.

        Parameters
        ----------
        image : PIL image, or Tensor of shape (C, H, W), dtype uint8
            As it was read. Where the store says in which size it was labelled, and by a rule
            that is ours, it is brought to it; else it has to be of that size.
        row : int
            The sample's row in the store: its number when it was labelled.
        view : int
        where : str
            For errors.
        """
        assert self._replay is not None  # noqa: S101
        images = _as_seen(_pixels(image, where), self._seen, where)[None]
        return self._replay.images(images, torch.tensor([row]), view)[0]


def _pixels(image: Any, where: str) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        pixels = image
    else:
        array = np.array(image)
        array = array[:, :, None] if array.ndim == 2 else array
        pixels = torch.from_numpy(array).movedim(-1, 0) if array.ndim == 3 else torch.empty(0)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3:
        raise DataError(
            where,
            "cannot be augmented as it was for the teacher",
            expected="a PIL image, or a uint8 tensor (C, H, W)",
            found=f"{type(image).__name__} {getattr(image, 'dtype', '')}".strip(),
            remedy="Transform it later: pass transform= to SoftLabelDataset.",
        )
    return pixels


def _as_seen(pixels: torch.Tensor, seen: LabellingFacts | None, where: str) -> torch.Tensor:
    """The image in the size and channels that the teacher saw, as far as the store says it."""
    shape = seen.image_shape if seen else None
    if seen is None or shape is None or pixels.shape == shape:
        return pixels
    channels, height, width = shape
    if (seen.resize, seen.channels) == (RESIZE, CHANNELS.get(channels)) and len(pixels) in (1, 3):
        rgb = pixels.expand(3, -1, -1).movedim(0, -1).numpy()
        # Images that were not square were all of one size, and stayed as they were.
        sized = to_channels(resize(rgb, height if height == width else None), channels)
        pixels = torch.from_numpy(np.ascontiguousarray(sized.transpose(2, 0, 1)))
    if pixels.shape != shape:
        raise DataError(
            where,
            "shape of the image",
            expected=f"{'×'.join(map(str, shape))}, as the teacher saw it",
            found="×".join(map(str, pixels.shape)),
            remedy="Give it as it was labelled: a view is one of images of one size.",
        )
    return pixels


def _shared(number: torch.Tensor) -> torch.Tensor:
    require_shared_memory("SoftLabelDataset", number.nbytes)
    shared: torch.Tensor = number.share_memory_()  # type: ignore[no-untyped-call]
    return shared
