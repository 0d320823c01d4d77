"""Views of images and targets of their labels, on the device of a training or labelling run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe.device import free_memory, on_device
from ltd_pipe.errors import StoreError
from ltd_pipe.images.augment import augment
from ltd_pipe.images.augmentation import Augmentation
from ltd_pipe.labels.join import require_rows
from ltd_pipe.labels.softmax import spread

if TYPE_CHECKING:
    from ltd_pipe.labels.format import ViewFacts
    from ltd_pipe.labels.reader import SoftLabels

# Labels are kept on the device when they take at most this share of its free memory.
_RESIDENT_SHARE = 0.25


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

    def images(
        self,
        images: torch.Tensor,
        index: torch.Tensor,
        view: int,
        rows: NDArray[np.int64] | None = None,
    ) -> torch.Tensor:
        """One view of some samples.

        Parameters
        ----------
        images : Tensor of shape (B, C, H, W), dtype uint8
        index : Tensor of shape (B,), dtype int64
            Their numbers in the labelled data set, which are the store's rows.
        view : int
            0 to V - 1.
        rows : ndarray of shape (B,), dtype int64, optional
            The same numbers on the host, where they are known.
        """
        if not 0 <= view < self.count:
            raise IndexError(f"view {view} of {self.count}")
        return augment(images, index, self.augmentation, seed=self.seed, epoch=view, rows=rows)


class LabelsOnDevice:
    """Gives the target distributions of a batch.

    A store that fits is placed on a GPU whole, so that a batch costs one indexing there. Of a
    larger one the rows are gathered into pinned memory and copied while the device computes.
    Softmax, spreading and renormalisation are the device's work, in float32.

    Parameters
    ----------
    store : SoftLabels
    device : torch.device
    temperature : float, optional
        Take the softmax of the stored logits at this temperature instead of the stored soft
        labels, which already are at the store's own: it is never applied on top of that.
    resident : bool, optional
        Keep all on the device; by default on a GPU when it fits in a quarter of its free
        memory. Memory-mapped rows are as fast on a CPU.

    Raises
    ------
    StoreError
        When a temperature is asked for and there are no logits, or a chunk is damaged.
    """

    def __init__(
        self,
        store: SoftLabels,
        device: torch.device,
        *,
        temperature: float | None = None,
        resident: bool | None = None,
    ) -> None:
        self._store, self._device, self._temperature = store, device, temperature
        names = ["soft_labels"] if store.top_k is None else ["topk_indices", "topk_probs"]
        if temperature is not None:
            store.require_logits()
            names = ["logits"]
        self._arrays = [store.arrays[name] for name in names]
        if resident is None:
            layouts = [array.layout for array in self._arrays]
            size = sum(layout.num_chunks * layout.payload_bytes for layout in layouts)
            fits = size < _RESIDENT_SHARE * free_memory(device)
            resident = device.type == "cuda" and fits
        self._whole = [self._load(array) for array in self._arrays] if resident else None

    def rows(self, index: NDArray[np.int64], *, view: int = 0) -> torch.Tensor:
        """Target distributions, a float32 Tensor of shape (B, K) on the device.

        Parameters
        ----------
        index : ndarray of shape (B,), dtype int64
            Rows of the store, which `SoftLabels.join` has found to be those of the images.
        view : int
            Which view of them.
        """
        return self.distributions(self.fetch(index, view=view))

    def fetch(self, index: NDArray[np.int64], *, view: int = 0) -> tuple[torch.Tensor, ...]:
        """Start bringing rows, as they are stored, to the device; for `distributions`."""
        index = require_rows(self._store.path, index, self._store.num_samples)
        # A damaged view number would count from the end.
        self._store.require_view(view)
        if self._whole is None:
            return self._gather(index, view)
        place = on_device(index, self._device)
        parts = [whole.index_select(0, place) for whole in self._whole]
        return tuple(part[:, view] if self._store.num_views > 1 else part for part in parts)

    def distributions(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """What `fetch` has brought, as `rows` gives it."""
        if len(parts) == 2:
            return spread(parts[0], parts[1], self._store.num_classes)
        rows = parts[0].to(torch.float32)
        if self._temperature is not None:
            # As `ltd_pipe.labels.softmax.soften`: the maximum first, then the division.
            rows = rows - rows.amax(dim=1, keepdim=True)
            return torch.softmax(rows / self._temperature, dim=1)
        return rows / rows.sum(dim=1, keepdim=True)

    def _load(self, array: Any) -> torch.Tensor:
        # Chunk by chunk: the host never holds more than one.
        layout = array.layout
        first = _tensor(array.chunk(0))
        whole = torch.empty(layout.shape, dtype=first.dtype, device=self._device)
        for chunk in range(layout.num_chunks):
            start = chunk * layout.rows
            whole[start : start + layout.rows_in(chunk)] = _tensor(array.chunk(chunk))
        return whole

    def _gather(self, index: NDArray[np.int64], view: int) -> tuple[torch.Tensor, ...]:
        if len(self._arrays) == 2:
            rows = (array.gather(index, None, view) for array in self._arrays)
            return tuple(on_device(_signed(part), self._device) for part in rows)
        # Straight into pinned memory, if it goes to a GPU.
        out = torch.empty(
            (len(index), self._store.num_classes),
            dtype=torch.float16,
            pin_memory=self._device.type == "cuda",
        )
        self._arrays[0].gather(index, out.numpy(), view)
        return (out.to(self._device, non_blocking=True),)


def _signed(rows: NDArray[Any]) -> NDArray[Any]:
    # Classes as int32: torch can hardly do anything with uint16.
    return rows.astype(np.int32) if rows.dtype.kind == "u" else rows


def _tensor(rows: NDArray[Any]) -> torch.Tensor:
    # Copied, since torch warns of memory that must not be written to.
    return torch.from_numpy(np.array(_signed(rows)))
