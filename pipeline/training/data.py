"""Batches on their way to a step: prefetched, augmented, and joined with their targets."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from ltd_pipe.errors import JoinError
from ltd_pipe.images.augment import augment, mix
from ltd_pipe.labels.on_device import LabelsOnDevice, Replay
from ltd_pipe.training.targets import mixed, onehot, smoothed

if TYPE_CHECKING:
    from ltd_pipe.images.augmentation import Augmentation
    from ltd_pipe.images.stream import Batch
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.params import FitParams, TrainParams


def prefetch(
    batches: Generator[Batch, None, None], prepare: Callable[[Batch], Batch], device: torch.device
) -> Generator[Batch, None, None]:
    """Give the same batches in the same order, the next one prepared while one is used.

    A thread reads and decodes them, checks that their labels are theirs, and gathers these; for
    a GPU it also starts the copies, on a stream of their own beside the step's kernels. What
    fails there is raised here when that batch's turn has come, after those before it.

    Parameters
    ----------
    batches : generator of Batch
        Advanced and closed here.
    prepare : callable
        What else is to be done to a batch, such as `BatchTransform.prefetch`.
    device : torch.device
        Where batches are.

    Notes
    -----
    Close it when a step fails or stops: that waits for the batch that the thread has begun.
    """
    prepared = map(prepare, batches)
    stream: torch.cuda.Stream | None = None
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # What is resident was written by the stream that is current now.
        stream.wait_stream(torch.cuda.current_stream(device))

    def prepare_next() -> tuple[Batch | None, torch.cuda.Event | None]:
        with torch.cuda.stream(stream):
            batch = next(prepared, None)
            return batch, stream.record_event() if stream else None

    def receive(batch: Batch, arrived: torch.cuda.Event) -> None:
        # The current stream begins with the batch once it has arrived; the host goes on.
        current = torch.cuda.current_stream(device)
        current.wait_event(arrived)
        rows = batch.prefetched[1] if batch.prefetched else ()
        for tensor in (batch.images, batch.labels, batch.index, *rows):
            # Its memory is the other stream's, which must not use it again before this one has.
            tensor.record_stream(current)

    with contextlib.closing(batches):
        # A thread begins with the first GPU, and would open a context there.
        bind = partial(torch.cuda.set_device, device) if stream else None
        pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch", initializer=bind)
        try:
            coming = pool.submit(prepare_next)
            while True:
                this, coming = coming, pool.submit(prepare_next)
                batch, arrived = this.result()
                if batch is None:
                    return
                if arrived is not None:
                    receive(batch, arrived)
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


class Examples(NamedTuple):
    """Augmented images, dtype uint8, with their targets and truth; see `TrainBatch`."""

    images: torch.Tensor
    target: torch.Tensor
    truth: torch.Tensor

    def part(self, which: slice) -> Examples:
        """Some of the samples."""
        return Examples(self.images[which], self.target[which], self.truth[which])


class Targets(abc.ABC):
    """Target distributions of a batch: shape (B, K), dtype float32."""

    def prefetch(self, batch: Batch, view: int) -> Batch:
        """What can be done beforehand, on another thread."""
        del view
        return batch

    @abc.abstractmethod
    def __call__(self, batch: Batch, view: int) -> torch.Tensor:
        """Targets for one view of the samples."""


class LabelTargets(Targets):
    """One-hot targets, or smoothed ones."""

    def __init__(self, num_classes: int, smoothing: float = 0.0) -> None:
        self._num_classes, self._smoothing = num_classes, smoothing

    def __call__(self, batch: Batch, view: int) -> torch.Tensor:
        """See `Targets`."""
        del view
        return smoothed(batch.labels, self._num_classes, self._smoothing)


class StoredTargets(Targets):
    """A store's labels, after each image of the batch was found to be the store's.

    `data` is how the user knows the images, for the error.
    """

    def __init__(
        self, params: TrainParams, store: SoftLabels, data: str, device: torch.device
    ) -> None:
        self._params, self._store, self._data = params, store, data
        self._labels = LabelsOnDevice(store, device, temperature=params.label_temperature)

    def prefetch(self, batch: Batch, view: int) -> Batch:
        """Check that labels are the images', and start bringing one view's to the device."""
        self._store.join(batch.rows, batch.sample_hash, self._data)
        return replace(batch, prefetched=(view, self._labels.fetch(batch.rows, view=view)))

    def __call__(self, batch: Batch, view: int) -> torch.Tensor:
        """See `Targets`; raises as `prefetch`, for a batch that was not prefetched."""
        if batch.prefetched is None or batch.prefetched[0] != view:
            batch = self.prefetch(batch, view)
        assert batch.prefetched is not None  # noqa: S101  that is what prefetch adds
        soft = self._labels.distributions(batch.prefetched[1])
        weight, rectify = self._params.soft_weight, self._params.rectify
        return mixed(soft, batch.labels, weight, rectify=rectify)


class BatchTransform:
    """Augments the images of a batch and joins them with the targets that belong to them.

    One call gives both, so that the loop cannot meet one view's image with another's label.

    Parameters
    ----------
    params : FitParams
        `augmentation`, `cutmix_…`, `mixup_…`, `sizes`.
    seed : int
        The run's.
    targets : Targets
    replay : Replay, optional
        Of a store: the images are those that the teacher saw, view epoch modulo V, whatever the
        run's seed is. Else they are augmented anew in each epoch, and the target is the
        sample's, wherever it is cropped.
    """

    def __init__(
        self, params: FitParams, seed: int, targets: Targets, replay: Replay | None = None
    ) -> None:
        self._params, self._seed, self._targets, self._replay = params, seed, targets, replay

    def prefetch(self, batch: Batch, epoch: int) -> Batch:
        """What can be done beforehand, on another thread: check a batch and gather its labels."""
        return self._targets.prefetch(batch, self._view(epoch))

    def apply(self, batch: Batch, epoch: int) -> Examples:
        """Augment a batch and look its targets up; with mixing it has whole pairs."""
        params, (augmentation, seed, drawn) = self._params, self.draws(epoch)
        size = None if params.sizes is None else params.sizes.at(epoch)
        images = augment(
            batch.images,
            batch.index,
            augmentation,
            seed=seed,
            epoch=drawn,
            # Of a labelled view the pixels are resized that the teacher saw.
            size=size if self._replay is None else None,
            rows=batch.rows,
        )
        if size is not None:
            from ltd_pipe.images.resize import resized

            images = resized(images, size)
        target = self._targets(batch, self._view(epoch))
        truth = onehot(batch.labels, target.shape[1])
        if not params.mixes:
            return Examples(images, target, truth)
        # By the run's seed, also where the images are views that a store's seed has drawn.
        images, mixture = mix(images, batch.index, params, seed=self._seed, epoch=epoch)
        return Examples(images, mixture.rows(target), mixture.rows(truth))

    def draws(self, epoch: int) -> tuple[Augmentation, int, int]:
        """Augmentation, seed and epoch that make an epoch's views."""
        if self._replay is None:
            return self._params.augmentation, self._seed, epoch
        return self._replay.augmentation, self._replay.seed, self._view(epoch)

    def _view(self, epoch: int) -> int:
        return 0 if self._replay is None else epoch % self._replay.count


def student_transform(
    params: TrainParams,
    num_classes: int,
    store: SoftLabels | None,
    data: str,
    device: torch.device,
    seed: int,
) -> BatchTransform:
    """What the student learns from: images with the targets of a store or of their own labels.

    Labels of plain images are taken for any crop of them, as the run draws it. Labels of
    augmented views belong to those views alone, which are made again. A teacher in the run, for
    the label kinds `live` and `adr`, replaces the targets later by its own.

    Raises
    ------
    JoinError
        When the labels belong to other views than the parameters ask for.
    """
    if not params.reads_store:
        smoothing = params.smoothing if params.label_kind == "smooth" else 0.0
        return BatchTransform(params, seed, LabelTargets(num_classes, smoothing))
    if store is None:
        raise ValueError("label_kind 'ltd' needs a store")
    targets = StoredTargets(params, store, data, device)
    views = store.attributes.views
    if views.augmentation is None:
        return BatchTransform(params, seed, targets)
    replay = Replay.of(views, store.path)
    # The store decides, and the parameters say the same: nobody shall believe that he trains
    # on other crops than he does.
    if params.augmentation != replay.augmentation:
        made = replay.augmentation
        scale = "null" if made.crop_scale is None else "[{:g}, {:g}]".format(*made.crop_scale)
        raise JoinError(
            store.path,
            "augmentation of the labelled views",
            expected=f"'{made}'",
            found=f"'{params.augmentation}' by train.crop_padding, crop_scale, flip, policy "
            "and cutout",
            remedy=f"Train with crop_padding: {made.crop_padding}, crop_scale: {scale}, flip: "
            f"{str(made.flip).lower()}, policy: {made.policy or 'null'}, cutout: {made.cutout}, "
            f"or label again with --augmentation {params.augmentation}.",
        )
    return BatchTransform(params, seed, targets, replay)
