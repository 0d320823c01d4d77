"""Examples whose targets are a store's soft labels: of the sample, or of the very view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import JoinError
from pipeline.labels.replay import Replay
from pipeline.labels.resident import LabelsOnDevice
from pipeline.training import targets
from pipeline.training.examples import FreshExamples

if TYPE_CHECKING:
    import torch

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

    def of(self, batch: Batch, view: int = 0) -> torch.Tensor:
        """Targets for one view of the samples.

        Returns
        -------
        Tensor of shape (B, K), dtype float32

        Raises
        ------
        JoinError
            At the first sample whose label belongs to another image.
        """
        self._store.join(batch.rows, batch.sample_hash, self._data)
        soft = self._labels.rows(batch.rows, view=view)
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
    """

    def __init__(self, replay: Replay, soft: SoftTargets) -> None:
        self._replay, self._soft = replay, soft

    def draw(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Examples`."""
        view = epoch % self._replay.count
        images = self._replay.images(batch.images, batch.index, view)
        return images, self._soft.of(batch, view)


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
        return FreshExamples(params.augmentation, seed, soft.of)
    replay = Replay.of(views, store.path)
    _require_same_augmentation(params, replay, store)
    return ReplayedExamples(replay, soft)


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
