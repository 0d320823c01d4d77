"""FKD's labels of crops (arXiv 2112.01528), averaged over each image's crops.

github.com/szq0214/FKD, FKD_SLG/generate_soft_label.py: of each image a file `.tar` of torch.save
with the crops' boxes, whether they are flipped, and their labels, one of
- (crops,): the most probable class ("hard");
- (crops, 2): that class and its probability ("smoothing");
- (crops, 2, k): the k most probable classes and their probabilities ("marginal").
The rest of the probability is spread evenly over the other classes, as FKD's training does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.combine.image_files import ImageFiles
from pipeline.errors import ParamsError, StoreError
from pipeline.labels.topk import expand

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.images import HashedImages

__all__ = ["FkdLabels"]


class FkdLabels:
    """FKD's labels as one row per image; see `pipeline.combine.foreign.ImageLabels`.

    Parameters
    ----------
    root : Path
        With the same class folders as the images.
    images : HashedImages
    average_crops : bool
        Must be true. Each label is of one crop, which FKD cuts by boxes in the file; a store
        has none, so a crop's label alone would be joined to an image that it is not of.

    Raises
    ------
    ParamsError
        When the crops are not to be averaged.
    """

    has_logits, own_top_k = False, None

    def __init__(self, root: Path, images: HashedImages, *, average_crops: bool) -> None:
        if not average_crops:
            raise ParamsError(
                root,
                "FKD's labels are of random crops, which a store cannot cut again",
                remedy="Pass --average-crops to average each image's into one label.",
            )
        self._files = ImageFiles(root, images, ".tar")
        self._num_classes = len(images.manifest.class_names)
        self._crops: set[int] = set()

    def answers(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows of shape (n, K)."""
        rows = np.empty((last - first, self._num_classes), np.float32)
        for i, (path, content) in enumerate(self._files.read(first, last)):
            indices, probs = _labels(content, self._num_classes, path)
            self._crops.add(len(indices))
            rows[i] = expand(indices, probs, self._num_classes).mean(axis=0)
        return rows

    def sparse(self, first: int, last: int) -> None:
        """There are no rows to be stored as they are."""
        del first, last

    def source(self) -> str:
        """What was averaged, and the files' hash."""
        crops = sorted(self._crops)
        span = f"{crops[0]}" if len(crops) == 1 else f"{crops[0]} to {crops[-1]}"
        return f"FKD, mean over {span} crops of each image, {self._files.source()}"


def _labels(
    content: Any, num_classes: int, where: Path
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    # Classes and probabilities of shape (crops, k).
    labels = content[2] if isinstance(content, list | tuple) and len(content) == 3 else None
    if isinstance(labels, torch.Tensor):
        labels = labels.numpy()
    if not isinstance(labels, np.ndarray) or not _plausible(labels):
        raise StoreError(
            where,
            "holds no labels as FKD writes them",
            expected="boxes, flips, and labels of shape (crops,), (crops, 2) or (crops, 2, k)",
            found=f"{labels.dtype} {labels.shape}"
            if isinstance(labels, np.ndarray)
            else type(content).__name__,
        )
    if labels.ndim == 1:
        classes, probs = labels[:, None], np.ones((len(labels), 1), np.float32)
    else:
        pairs = labels.reshape(len(labels), 2, -1)
        classes, probs = pairs[:, 0], pairs[:, 1].astype(np.float32)
    whole = classes.astype(np.int64)
    again = np.diff(np.sort(whole, axis=1), axis=1) == 0
    total = probs.sum(axis=1)
    # Written so that NaN fails.
    right = (probs >= 0).all() and (total <= 1.001).all() and not again.any()
    if not right or (whole != classes).any() or whole.min() < 0 or whole.max() >= num_classes:
        raise StoreError(
            where,
            "holds labels that are none",
            expected=f"different classes below {num_classes}, probabilities of sum at most 1",
            found=f"classes {whole.min()} to {whole.max()}, sums up to {total.max():.4f}",
        )
    return whole, probs


def _plausible(labels: NDArray[Any]) -> bool:
    pairs = labels.ndim == 1 or (labels.ndim in (2, 3) and labels.shape[1] == 2)
    return labels.dtype.kind in "fiu" and pairs and labels.size > 0
