"""All raw images of a beton, copied from the file.

FFCV would first compile its reader, for 2 s of processor time in every process. That pays where
images are decoded or come in any order; here they are only copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError
from pipeline.images.header import read_samples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.images.manifest import Manifest

__all__ = ["read_raw"]


def read_raw(path: Path, manifest: Manifest, batch_size: int) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield the fields of all samples in their order, `batch_size` at a time.

    Parameters
    ----------
    path : Path
        A beton that `open_beton` has checked; its table is checked again.
    manifest : Manifest
        Its manifest, of encoding `raw`.
    batch_size : int

    Yields
    ------
    tuple of ndarray
        As `pipeline.images.reader.BetonReader.read` does: images of shape (B, H, W, 3), dtype
        uint8; label, index and sample_hash of shape (B, 1), dtype int64.

    Raises
    ------
    DataError
        When the file is no longer the one that was opened.
    """
    samples = read_samples(path, manifest)
    _, height, width = manifest.shape
    with path.open("rb", buffering=0) as file:
        for begin in range(0, len(samples), batch_size):
            batch = samples[begin : begin + batch_size]
            images = np.empty((len(batch), height, width, 3), np.uint8)
            _fill(images, batch["f0"]["data_ptr"], file)
            numbers = (batch[name].astype(np.int64)[:, None] for name in ("f1", "f2", "f3"))
            yield images, *numbers


def _fill(images: NDArray[np.uint8], starts: NDArray[np.uint64], file: FileIO) -> None:
    # Within a page images lie one after the other: what does is read at once.
    ends = starts[:-1] + np.uint64(images[0].nbytes)
    breaks = np.flatnonzero(ends != starts[1:]) + 1
    for first, last in zip([0, *breaks], [*breaks, len(images)], strict=True):
        file.seek(int(starts[first]))
        wanted = images[first:last]
        if file.readinto(wanted.data.cast("B")) != wanted.nbytes:
            raise DataError(
                file.name,
                "became shorter while it was read",
                remedy="Do not replace a data set while it is read; run it again.",
            )
