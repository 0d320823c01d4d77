"""ReLabel's label maps (arXiv 2101.05022), pooled over the whole image.

github.com/naver-ai/relabel_imagenet, utils/relabel_functions.py: of each image a file `.pt` of
torch.save with a tensor (2, k, H, W), the k largest logits at each place and their classes; the
others are zero there. Its training averages the map over a crop (RoIAlign) and takes the softmax.
A store has the label of the whole image: the average over all places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.combine.image_files import ImageFiles
from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.images import HashedImages

__all__ = ["RelabelLabels"]


class RelabelLabels:
    """ReLabel's maps as logits of each image; see `pipeline.combine.foreign.ImageLabels`.

    Parameters
    ----------
    root : Path
        With the same class folders as the images.
    images : HashedImages
    """

    has_logits, own_top_k = True, None

    def __init__(self, root: Path, images: HashedImages) -> None:
        self._files = ImageFiles(root, images, ".pt")
        self._num_classes = len(images.manifest.class_names)

    def answers(self, first: int, last: int) -> NDArray[np.float32]:
        """Logits of shape (n, K)."""
        rows = np.empty((last - first, self._num_classes), np.float32)
        for i, (path, content) in enumerate(self._files.read(first, last)):
            rows[i] = _pooled(content, self._num_classes, path)
        return rows

    def sparse(self, first: int, last: int) -> None:
        """There are no rows to be stored as they are."""
        del first, last

    def source(self) -> str:
        """What was pooled, and the files' hash."""
        return f"ReLabel, mean over the label map of each image, {self._files.source()}"


def _pooled(content: Any, num_classes: int, where: Path) -> NDArray[np.float32]:
    if not isinstance(content, torch.Tensor) or content.ndim != 4 or content.shape[0] != 2:
        raise StoreError(
            where,
            "holds no label map as ReLabel writes them",
            expected="a tensor of shape (2, k, H, W)",
            found=f"shape {tuple(content.shape)}"
            if isinstance(content, torch.Tensor)
            else type(content).__name__,
        )
    logits, classes = content.float().flatten(2)
    places = logits.shape[-1]
    # Written so that NaN fails.
    right = bool(((classes >= 0) & (classes < num_classes) & (classes == classes.floor())).all())
    if not right or not logits.numel() or not bool(torch.isfinite(logits).all()):
        raise StoreError(
            where,
            "holds a label map that is none",
            expected=f"finite logits, and classes below {num_classes}",
            found=f"classes {classes.min():g} to {classes.max():g}" if classes.numel() else "none",
        )
    dense = torch.zeros(num_classes, places).scatter_(0, classes.long(), logits)
    pooled: NDArray[np.float32] = dense.mean(dim=1).numpy()
    return pooled
