"""Soft labels in anybody's training loop: a torch data set that gives them with its images."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset

from ltd_pipe.errors import DataError, JoinError, StoreError
from ltd_pipe.images.decode import CHANNELS, RESIZE, resize, to_channels
from ltd_pipe.labels.format import to_float32
from ltd_pipe.labels.join import remedy
from ltd_pipe.labels.on_device import Replay
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.labels.softmax import expand, require_temperature, soften
from ltd_pipe.labels.sources import HashOf, SampleRows, find_source
from ltd_pipe.publish import require_shared_memory

if TYPE_CHECKING:
    from ltd_pipe.labels.format import LabellingFacts

ViewSource = Literal["replay", "given"]


class SoftLabelDataset(Dataset[tuple[Any, Any, torch.Tensor]]):
    """Gives (image, label, soft label) where a data set gives (image, label).

    The soft label is a float32 tensor of shape (K,) that sums to one. It is found by the hash of
    the file or pixels that the image comes from, never by position; the first time that a
    sample is seen, its original is read and hashed, and later its row is looked up. A label
    that contradicts the store's ground truth is refused each time. Random augmentation of the
    images is the wrapped data set's affair, as usual with labels of plain images.

    It works with any sampler and any kind of DataLoader's workers. Of processor time it takes
    34 µs per sample once, for a JPEG file of 17 kB, and then 2.7 µs (one by one, not in a
    loader's batches, 20 µs), with 1,000 classes; ImageFolder takes 235 µs to decode that file.

    Parameters
    ----------
    dataset : map-style data set
        Known kinds are torchvision's ImageFolder and others of its folders, CIFAR and MNIST,
        timm's ImageDataset, and torch's Subset and ConcatDataset of these. timm's is kept from
        giving a neighbour's image where a file is unreadable: it raises.
    store : SoftLabels or Path
    order : {"any", "same"}
        "any": of the labelled images all or some, in any order, as often as you like. "same":
        the labelled data set itself, refused when it is longer, shorter or in another order.
    check : {"first", "always"}
        Hash each sample when it is first seen (by any of a DataLoader's forked workers), or
        each time. A file that changes in between is found by "always" only; another file in its
        place, and pixels in memory, are found by both. With `hash_of`, "first" believes that
        image i stays image i.
    hash_of : callable, optional
        For other data sets: what image i's hash is taken over. See `find_source`.
    class_names : sequence of str, optional
        Of the data set's classes in their order, where it does not know them itself.
    keys : tuple of str
        Of image and label, where samples are dictionaries.
    temperature : float, optional
        Take the softmax of the stored logits at this temperature instead of the stored soft
        labels; it is never applied on top of the store's own.
    views : {"replay", "given"}, optional
        Needed when the labels are of augmented views. "replay": make view epoch modulo V of
        each image, as for the teacher; the data set must give images as they are read, and
        `transform` comes after. They are resized as for the teacher where the store says how
        that was, and else have to be of the size in which they were labelled. The teacher saw
        transparency on white and the upper 8 of 16 bits, which torchvision's loaders read
        otherwise: `ltd_pipe.images.decode` reads them so. "given": the data set
        makes the views itself and gives (image, label, view), so that the label is always
        that view's.
    view : int, optional
        Replay only this one.
    transform : callable, optional
        Of the image, last of all.
    any_size : bool
        Take the labels of whole images for tensors of another height or width than the
        teacher saw, which are refused otherwise where the store says it.

    Raises
    ------
    JoinError
        When the images, their number, order, classes or labels are not the store's.
    DataError
        When nothing can be checked, or samples are not (image, label).
    StoreError
        When the store lacks what is asked for, or is damaged.

    Examples
    --------
    >>> data = SoftLabelDataset(ImageFolder("photos/train", transform), "labels.zarr")
    >>> for images, labels, soft in DataLoader(data, 128, shuffle=True, num_workers=8):
    ...     loss = cross_entropy(model(images), soft)
    """

    def __init__(
        self,
        dataset: Any,
        store: SoftLabels | Path | str,
        *,
        order: Literal["any", "same"] = "any",
        check: Literal["first", "always"] = "first",
        hash_of: HashOf | None = None,
        class_names: Sequence[str] | None = None,
        keys: tuple[str, str] = ("image", "label"),
        temperature: float | None = None,
        views: ViewSource | None = None,
        view: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        any_size: bool = False,
    ) -> None:
        if order not in ("any", "same") or check not in ("first", "always"):
            raise ValueError(f"no such order or check: {order!r}, {check!r}")
        self._name = type(dataset).__name__
        self._count = _length(dataset)
        self.dataset, self.transform = dataset, transform
        self.store = store if isinstance(store, SoftLabels) else SoftLabels.open(Path(store))
        self._order, self._check, self._keys = order, check, keys
        self._sources = find_source(dataset, hash_of)
        known = self._sources.class_names() if class_names is None else [tuple(class_names)]
        for names in known:
            self.store.require_classes(names, self._name)
        if order == "same" and self._count != self.store.num_samples:
            raise JoinError(
                self.store.path,
                "number of samples",
                expected=self.store.num_samples,
                found=f"{self._count} in {self._name}",
                remedy="Pass order='any' to take some of the images, or in another order.",
            )
        self._temperature = temperature
        if temperature is not None:
            require_temperature(temperature)
            self.store.require_logits()
        self._views, self._view, self._any_size = views, view, any_size
        self._replay = _replay(self.store, views, view)
        # Seen by workers that live on into the next epoch.
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))
        if views == "replay" and self._sources.transforms():
            raise DataError(
                self._name,
                "has a transform, so that the views cannot be made as they were for the teacher",
                remedy="Pass it as transform= to SoftLabelDataset: it then comes after.",
            )
        self._rows = SampleRows(self.store, self._count)
        self._identity = self.store.identity

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._epoch = _shared(self._epoch)
        if self.store.identity != self._identity:
            raise StoreError(
                self.store.path,
                "was replaced after the data set was made",
                expected=f"identity {self._identity[:12]}…",
                found=f"{self.store.identity[:12]}…",
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, sample: int) -> tuple[Any, Any, torch.Tensor]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[int]) -> list[tuple[Any, Any, torch.Tensor]]:
        """Several samples at once, as a DataLoader asks for them."""
        places = [self._place(sample) for sample in samples]
        many = getattr(self.dataset, "__getitems__", None)
        items: Sequence[Any] = many(places) if many else [self.dataset[i] for i in places]
        if len(items) != len(places):
            raise DataError(self._name, "samples", expected=len(places), found=len(items))
        view = int(self._epoch) % self.store.num_views if self._view is None else self._view
        parts = [self._parts(item, place, view) for place, item in zip(places, items, strict=True)]
        rows = [self._row(place, label) for place, (_, label, _) in zip(places, parts, strict=True)]
        soft = self._soft_labels(np.array(rows, np.int64), [view for _, _, view in parts])
        images = [
            self._finish(image, place, row, view)
            for place, row, (image, _, view) in zip(places, rows, parts, strict=True)
        ]
        labels = [label for _, label, _ in parts]
        return list(zip(images, labels, soft.unbind(), strict=True))

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, before the loader is iterated: it chooses the view."""
        self._epoch.fill_(epoch)

    def _place(self, sample: int) -> int:
        place = operator.index(sample)
        place += self._count if place < 0 else 0
        if not 0 <= place < self._count:
            raise IndexError(f"sample {sample} of {self._count}")
        return place

    def _parts(self, item: Any, place: int, view: int) -> tuple[Any, Any, int]:
        given = self._views == "given"
        if isinstance(item, Mapping) and all(key in item for key in self._keys) and not given:
            image, label = (item[key] for key in self._keys)
            return image, label, view
        if isinstance(item, tuple | list) and len(item) == (3 if given else 2):
            return item[0], item[1], operator.index(item[2]) if given else view
        what = sorted(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
        if isinstance(item, tuple | list):
            what = f"{len(item)} things"
        raise DataError(
            self._sources.where(place),
            "a sample of the data set",
            expected="(image, label, view)" if given else "(image, label)",
            found=what,
            remedy="" if given else "For dictionaries, pass keys=('image', 'label').",
        )

    def _row(self, place: int, label: Any) -> int:
        number = self._class_of(label, place)
        token = self._sources.token(place) if self._check == "first" else None
        row = -1 if token is None else self._rows.known(place, token)
        if row < 0:
            found, where = self._sources.hash(place), self._sources.where(place)
            if self._order == "same":
                row = self._rows.at_place(place, found, where)
            else:
                row = self._rows.by_hash(place, found, number, where)
            if token is not None:
                self._rows.remember(place, token, row)
        truth = int(self.store.labels[row])
        if number != truth and -1 not in (number, truth):
            raise JoinError(
                self.store.path,
                f"row {row}",
                expected=f"class {truth}",
                found=f"class {number} for the same image, {self._sources.where(place)}",
                remedy=remedy(self.store.path),
            )
        return row

    def _class_of(self, label: Any, place: int) -> int:
        try:
            number = -1 if label is None else operator.index(label)
        except TypeError:
            number = -2
        if not -1 <= number < self.store.num_classes:
            raise DataError(
                self._sources.where(place),
                "its label",
                expected=f"a class, 0 to {self.store.num_classes - 1}, or -1",
                found=repr(label)[:40],
                remedy="Undo what target_transform does: labels are compared with the store's.",
            )
        return number

    def _soft_labels(self, rows: NDArray[np.int64], views: list[int]) -> torch.Tensor:
        soft = np.empty((len(rows), self.store.num_classes), np.float32)
        for view in set(views):
            chosen = np.array([one == view for one in views])
            soft[chosen] = self._distributions(rows[chosen], view)
        return torch.from_numpy(soft)

    def _distributions(self, rows: NDArray[np.int64], view: int) -> NDArray[np.float32]:
        self.store.require_view(view)
        if self._temperature is not None:
            return soften(self.store.gather_logits(rows, view=view), self._temperature)
        if self.store.top_k is not None:
            return expand(*self.store.gather_topk(rows, view=view), self.store.num_classes)
        soft = to_float32(self.store.gather(rows, view=view))
        soft /= soft.sum(axis=1, keepdims=True)
        return soft

    def _finish(self, image: Any, place: int, row: int, view: int) -> Any:
        if self._replay is not None:
            where = self._sources.where(place)
            pixels = _as_seen(_pixels(image, where), self.store.attributes.labelling, where)
            image = self._replay.images(pixels[None], torch.tensor([row]), view)[0]
        if self.transform is not None:
            image = self.transform(image)
        if self._replay is None and isinstance(image, torch.Tensor) and image.ndim == 3:
            where = self._sources.where(place)
            self.store.require_shape(image.shape[1:], where, any_size=self._any_size)
        return image


def _length(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise DataError(
            type(dataset).__name__,
            "is no map-style data set",
            expected="__len__ and __getitem__",
            remedy="Without numbers, no sample can be checked.",
        )
    return len(dataset)


def _replay(store: SoftLabels, views: ViewSource | None, view: int | None) -> Replay | None:
    """What makes the views again, if that is asked for; what is asked for must be possible.

    A label of an augmented view is not one of the plain image, nor of another view: what is to be
    done must be said.
    """
    facts = store.attributes.views
    if views not in (None, "replay", "given"):
        raise ValueError(f"views: expected 'replay' or 'given', found {views!r}")
    if facts.augmentation is None and views is not None:
        raise StoreError(
            store.path, "its labels are of the images as they are", remedy="Omit views=."
        )
    if facts.augmentation is not None and views is None:
        raise StoreError(
            store.path,
            f"its labels are of augmented views ({facts.augmentation}, {facts.count} of each "
            "image), not of the images as they are",
            remedy="Pass views='replay' to have them made again from untransformed images, "
            "or views='given' when the data set gives (image, label, view).",
        )
    if view is not None:
        if views == "given":
            raise ValueError("view: with views='given', the data set says it")
        store.require_view(view)
    return Replay.of(facts, store.path) if views == "replay" else None


def _pixels(image: Any, where: str) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        pixels = image
    else:
        mode = getattr(image, "mode", "RGB")
        if mode not in ("L", "RGB"):
            # Of a palette, say: numbers that are no brightness.
            raise DataError(
                where,
                "is not as its teacher saw it: mode of the picture",
                expected="RGB or L",
                found=mode,
                remedy="Call its convert('RGB') first.",
            )
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
