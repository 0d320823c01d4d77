"""The images that rows are put in order by: a beton, or a folder that is hashed, not decoded."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.images.beton import open_beton
from pipeline.images.fingerprint import fingerprint, sample_hash
from pipeline.images.sources import FolderSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.labels.join import ImagesLike

__all__ = ["HashedImages", "ImagesFacts", "open_images"]


@dataclass(frozen=True)
class ImagesFacts:
    """What a set of images is; see `pipeline.labels.join.ManifestLike`."""

    dataset: str
    split: str
    num_samples: int
    class_names: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class HashedImages:
    """A folder's images as labels are joined to them.

    Attributes
    ----------
    manifest : ImagesFacts
    labels : ndarray of shape (N,), dtype int32
    sample_hash : ndarray of shape (N,), dtype uint64
    files : tuple of str
        Each image's path within the folder, with `/`.
    """

    manifest: ImagesFacts
    labels: NDArray[np.int32]
    sample_hash: NDArray[np.uint64]
    files: tuple[str, ...]

    @classmethod
    def read(
        cls,
        folder: Path,
        class_names: Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> HashedImages:
        """Hash all images of a folder with one folder per class.

        Parameters
        ----------
        folder : Path
        class_names : sequence of str, optional
            The classes in their order; by default the folders' names, sorted.
        progress : callable, optional
            Called with the number of images just hashed.

        Raises
        ------
        MissingError, DataError
            See `pipeline.images.sources.FolderSource`.
        """
        source = FolderSource(folder, class_names)
        hashes = np.empty(len(source), np.uint64)
        with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda i: sample_hash(source.raw(i)), range(len(source)))
            for i, each in enumerate(found):
                hashes[i] = each
                if progress is not None:
                    progress(1)
        facts = ImagesFacts(
            dataset=source.name,
            split=source.split,
            num_samples=len(source),
            class_names=source.class_names,
            fingerprint=fingerprint(source.class_names, source.labels, hashes),
        )
        files = tuple(path.relative_to(folder).as_posix() for path in source.paths)
        return cls(facts, source.labels, hashes, files)


def open_images(
    path: Path,
    class_names: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> ImagesLike:
    """Open a beton, or hash a folder of images that has these classes.

    Raises
    ------
    MissingError, DataError
        When it is not there, or damaged, or has other classes.
    """
    if path.is_dir():
        return HashedImages.read(path, class_names, progress)
    return open_beton(path)
