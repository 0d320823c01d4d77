"""Examples whose targets are a store's soft labels: of the sample, or of the very view."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import JoinError
from pipeline.images.resized_crop import resized
from pipeline.labels.replay import Replay
from pipeline.labels.resident import LabelsOnDevice
from pipeline.training import targets
from pipeline.training.examples import Drawn, fresh_examples, mixed_as_asked

if TYPE_CHECKING:
    import torch

    from pipeline.images.progressive import Sizes
    from pipeline.images.stream import Batch
    from pipeline.labels.read import SoftLabels
    from pipeline.params import TrainParams
    from pipeline.training.examples import Examples

__all__ = ["ReplayedExamples", "SoftTargets", "stored_examples"]


class SoftTargets:
    """Target distributions of a batch, after each of its images was found to be the store's.

    Parameters
    ----------
    params : TrainParams
        What else goes into the target; `label_temperature`.
    store : SoftLabels
    data : str
        How the user knows the images, for the error.
    device : torch.device
        Where batches are.
    """

    def __init__(
        self, params: TrainParams, store: SoftLabels, data: str, device: torch.device
    ) -> None:
        self._params, self._store, self._data = params, store, data
        self._labels = LabelsOnDevice(store, device, temperature=params.label_temperature)

    def fetch(self, batch: Batch, view: int = 0) -> Batch:
        """Check a batch, and start bringing the label rows of one view to the device.

        Raises
        ------
        JoinError
            At the first sample whose label belongs to another image.
        """
        self._store.join(batch.rows, batch.sample_hash, self._data)
        return replace(batch, ahead=(view, self._labels.fetch(batch.rows, view=view)))

    def of(self, batch: Batch, view: int = 0) -> torch.Tensor:
        """Targets for one view of the samples.

        Returns
        -------
        Tensor of shape (B, K), dtype float32

        Raises
        ------
        JoinError
            As `fetch`, for a batch that has not been through it with this view.
        """
        if batch.ahead is None or batch.ahead[0] != view:
            batch = self.fetch(batch, view)
        assert batch.ahead is not None  # noqa: S101  that is what fetch adds
        soft = self._labels.distributions(batch.ahead[1])
        weight, rectify = self._params.soft_weight, self._params.rectify
        return targets.mixed(soft, batch.labels, weight, rectify=rectify)


class ReplayedExamples:
    """The images that the teacher saw, with its answers to them: view epoch modulo V.

    Augmentation and seed are the store's, whatever the run's seed is, and one number chooses
    both the image and its label.

    Parameters
    ----------
    replay : Replay
        Of the store.
    soft : SoftTargets
        Of the same store.
    sizes : Sizes, optional
        Into which the views are shrunk, by epoch; None: they are as the teacher saw them.
    """

    def __init__(self, replay: Replay, soft: SoftTargets, sizes: Sizes | None = None) -> None:
        self._replay, self._soft, self._sizes = replay, soft, sizes

    def fetch(self, batch: Batch, epoch: int) -> Batch:
        """See `Examples`."""
        return self._soft.fetch(batch, epoch % self._replay.count)

    def draw(self, batch: Batch, epoch: int) -> Drawn:
        """See `Examples`."""
        view = epoch % self._replay.count
        images = self._replay.images(batch.images, batch.index, view)
        if self._sizes is not None:
            images = resized(images, self._sizes.at(epoch))
        target = self._soft.of(batch, view)
        return Drawn(images, target, targets.onehot(batch.labels, target.shape[1]))


def stored_examples(
    params: TrainParams, store: SoftLabels, data: str, device: torch.device, seed: int
) -> Examples:
    """Examples with a store's labels; arguments are those of `SoftTargets`.

    Labels of plain images are taken for any crop of them, as the run draws it. Labels of
    augmented views belong to those views alone, which are made again.

    Raises
    ------
    JoinError
        When the labels belong to other views than the parameters ask for.
    """
    soft = SoftTargets(params, store, data, device)
    views = store.attributes.views
    if views.augmentation is None:
        return fresh_examples(params, seed, soft.of, soft.fetch)
    replay = Replay.of(views, store.path)
    _require_same_augmentation(params, replay, store)
    return mixed_as_asked(ReplayedExamples(replay, soft, params.sizes), params, seed)


def _require_same_augmentation(params: TrainParams, replay: Replay, store: SoftLabels) -> None:
    # The store decides, and the parameters say the same: nobody shall believe that he trains
    # on other crops than he does.
    asked, made = params.augmentation, replay.augmentation
    if asked == made:
        return
    scale = "null" if made.crop_scale is None else "[{:g}, {:g}]".format(*made.crop_scale)
    raise JoinError(
        store.path,
        "augmentation of the labelled views",
        expected=f"'{made}'",
        found=f"'{asked}' by train.crop_padding, crop_scale, flip, policy and cutout",
        remedy=f"Train with crop_padding: {made.crop_padding}, crop_scale: {scale}, flip: "
        f"{str(made.flip).lower()}, policy: {made.policy or 'null'}, cutout: {made.cutout}, or "
        f"label again with --augmentation {asked}.",
    )
