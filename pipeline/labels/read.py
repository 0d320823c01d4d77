"""Reading a soft-label store: checked when opened, gathered at the speed of memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pipeline.errors import StoreError
from pipeline.labels.folder import StoreFolder
from pipeline.labels.half import to_float16
from pipeline.labels.join import (
    ImagesLike,
    ManifestLike,
    find_rows,
    require_classes,
    require_same_data,
    require_same_images,
    require_shape,
)
from pipeline.labels.manifest import FileHashes
from pipeline.labels.metadata import parse_metadata
from pipeline.labels.softness import LabelSummary, Softness
from pipeline.labels.stored import StoredArray
from pipeline.labels.topk import expand

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.labels.arrays import ArrayLayout

__all__ = ["SoftLabels"]

_SPARSE = ("topk_indices", "topk_probs")


class SoftLabels:
    """An opened soft-label store; make one with `SoftLabels.open`.

    Attributes
    ----------
    path : Path
        As it was given.
    identity : str
        SHA-256 of the store's manifest.
    attributes : StoreAttributes
        What the store says about itself.
    labels : ndarray of shape (N,), dtype int32
        Ground truth, -1 where unknown.
    sample_hash : ndarray of shape (N,), dtype uint64
        Which image each row belongs to.
    arrays : dict of str to StoredArray
        By name: `soft_labels`, and `logits` when the store has them, or `topk_indices` and
        `topk_probs`; `labels` and `sample_hash`.
    hashes : FileHashes
        The manifest.
    """

    def __init__(self, folder: StoreFolder) -> None:
        self.path = folder.path
        self.hashes = FileHashes(folder)
        self.identity = self.hashes.identity
        self.attributes, layouts = parse_metadata(folder.path, self.hashes.read)
        self.arrays = {
            name: StoredArray(folder, layout, self.hashes) for name, layout in layouts.items()
        }
        for layout in layouts.values():
            self.hashes.require_listed(map(layout.chunk_name, range(layout.num_chunks)))
        self._require_memory(layouts["labels"], layouts["sample_hash"])
        self.labels: NDArray[np.int32] = self.arrays["labels"].read()
        self.sample_hash: NDArray[np.uint64] = self.arrays["sample_hash"].read()

    def _require_memory(self, *layouts: ArrayLayout) -> None:
        # Holes in files cost their maker nothing, and N is only bounded by what it costs us.
        needed = sum(layout.num_chunks * layout.payload_bytes for layout in layouts)
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > there // 2:
            raise StoreError(
                self.path,
                f"labels and hashes of {self.num_samples:,} samples do not fit in memory",
                expected=f"at most {there // 2**21:,} MiB",
                found=f"{needed // 2**20:,} MiB",
            )

    @classmethod
    def open(cls, path: Path) -> SoftLabels:
        """Open a store.

        Its metadata must be that of the format and have the hashes that its manifest lists,
        and all chunk files must be there in their size; the hashes and checksums of the chunks
        are checked when they are first touched. `pipeline.labels.verify.verify_store` checks
        everything.

        Raises
        ------
        MissingError
            When there is nothing of that name.
        StoreError
            When it is no store, damaged, or of a version that we do not read.
        """
        return cls(StoreFolder(path))

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory maps do not travel: another process opens the store itself.
        return SoftLabels.open, (self.path.absolute(),)

    @property
    def num_samples(self) -> int:
        """N."""
        return self.attributes.num_samples

    @property
    def num_classes(self) -> int:
        """K."""
        return self.attributes.num_classes

    @property
    def num_views(self) -> int:
        """V: how many views of each image were labelled."""
        return self.attributes.views.count

    @property
    def top_k(self) -> int | None:
        """K of a store that has only each row's k largest probabilities; None: all of them."""
        return self.attributes.top_k.k if self.attributes.top_k else None

    @property
    def has_logits(self) -> bool:
        """Whether the teacher's logits are stored too."""
        return "logits" in self.arrays

    def gather(
        self,
        index: NDArray[np.integer[Any]],
        out: NDArray[np.float16] | None = None,
        *,
        view: int | None = None,
    ) -> NDArray[np.float16]:
        """Soft labels of some samples, as they are stored.

        Parameters
        ----------
        index : ndarray of shape (B,), any integers
            Rows of the store, in any order, repeats allowed. That they belong to the images at
            hand is what `join` checks.
        out : ndarray of shape (B, K) or (B, V, K), dtype float16, optional
            Written to and returned; may be the memory of a pinned tensor.
        view : int, optional
            Of which view; needed to get (B, K) of a store of several.

        Returns
        -------
        ndarray of shape (B, K), dtype float16
            (B, V, K) from a store of several views when none is named. Rows sum to one within
            float16 rounding: renormalise in float32. Of a top-k store, the rows with the rest
            spread; `gather_topk` is exact and smaller.

        Raises
        ------
        StoreError
            When a row or view does not exist, or is in a chunk that is damaged.
        """
        if self.top_k is None:
            return self.arrays["soft_labels"].gather(index, out, view)
        rows = to_float16(expand(*self.gather_topk(index, view=view), self.num_classes))
        if out is None:
            return rows
        if out.shape != rows.shape or out.dtype != rows.dtype:
            raise ValueError(f"out: expected {rows.shape} float16, found {out.shape} {out.dtype}")
        out[...] = rows
        return out

    def gather_topk(
        self, index: NDArray[np.integer[Any]], *, view: int | None = None
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.float16]]:
        """The largest probabilities of some samples and their classes; otherwise as `gather`.

        Returns
        -------
        tuple of ndarray of shape (B, k), dtype uint16 or uint32, and of float16
            (B, V, k) of several views. See `pipeline.labels.topk.spread`.

        Raises
        ------
        StoreError
            Also when the store has all probabilities.
        """
        if self.top_k is None:
            raise StoreError(self.path, "is no top-k store", remedy="Use gather.")
        indices, probs = (self.arrays[name].gather(index, None, view) for name in _SPARSE)
        return indices, probs

    def gather_logits(
        self,
        index: NDArray[np.integer[Any]],
        out: NDArray[np.float16] | None = None,
        *,
        view: int | None = None,
    ) -> NDArray[np.float16]:
        """The teacher's logits of some samples, as `gather`; for another temperature.

        Raises
        ------
        StoreError
            Also when the store has no logits.
        """
        self.require_logits()
        return self.arrays["logits"].gather(index, out, view)

    def require_logits(self) -> None:
        """Refuse a store that does not have them."""
        if not self.has_logits:
            raise StoreError(
                self.path,
                "has no logits",
                remedy="Label with label.logits true, one teacher and no top-k.",
            )

    def require_view(self, view: int) -> None:
        """Refuse a view that the store does not have."""
        self.arrays["labels"].require_view(view)

    def summary(self) -> LabelSummary:
        """Entropy, confidence and disagreement of all soft labels, chunk by chunk."""
        counts = Softness(self.num_classes)
        layout = self.arrays["labels"].layout
        for chunk in range(layout.num_chunks):
            counts.add(self.arrays["labels"].chunk(chunk), *self._stored(chunk))
        return counts.summary()

    def _stored(self, chunk: int) -> list[NDArray[Any]]:
        # The soft labels of one chunk: dense, or classes and probabilities.
        names = ("soft_labels",) if self.top_k is None else _SPARSE
        return [self.arrays[name].chunk(chunk) for name in names]

    def join(self, rows: NDArray[np.int64], sample_hash: NDArray[np.uint64], data: str) -> None:
        """Refuse to go on unless each row belongs to the image at hand.

        Parameters
        ----------
        rows : ndarray of shape (B,), dtype int64
            Rows that were or will be gathered.
        sample_hash : ndarray of shape (B,), dtype uint64
            Of the images, read from the data themselves.
        data : str
            How the user knows the data, such as the beton's path.

        Raises
        ------
        JoinError
            Naming the first sample that is another image.
        """
        rows = self.arrays["sample_hash"].require_rows(rows)
        if rows.shape != sample_hash.shape:
            raise ValueError(f"{len(rows)} rows and {len(sample_hash)} sample hashes")
        expected = self.sample_hash[rows]
        require_same_images(self.path, rows, expected, sample_hash, data)

    def require_data(
        self, manifest: ManifestLike, data: str, images: ImagesLike | None = None
    ) -> None:
        """Refuse a data set other than the labelled one in the same order, before the work.

        Parameters
        ----------
        manifest : Manifest
            Of the images.
        data : str
            How the user knows the data.
        images : Beton or FolderStream, optional
            With them the first sample that differs is named.

        Raises
        ------
        JoinError
            When classes, number of samples, or fingerprint differ.
        """
        rows = (self.sample_hash, self.labels)
        require_same_data(self.path, self.attributes, manifest, data, rows, images)

    def require_shape(self, shape: Sequence[int], data: str, *, any_size: bool = False) -> None:
        """Refuse images of another shape than the teacher saw; see `join.require_shape`."""
        require_shape(self.path, self.attributes, shape, data, any_size=any_size)

    def require_classes(self, class_names: Sequence[str], data: str) -> None:
        """Refuse data whose classes are not the columns; needed beside `rows_of`."""
        require_classes(self.path, self.attributes, class_names, data)

    def rows_of(
        self,
        sample_hash: NDArray[np.uint64],
        labels: NDArray[np.int32] | None = None,
        data: str = "the data",
    ) -> NDArray[np.int64]:
        """Find the rows of images that come in another order, or are only some of them.

        Parameters
        ----------
        sample_hash : ndarray of shape (n,), dtype uint64
            Of the images.
        labels : ndarray of shape (n,), dtype int32, optional
            Their classes, which must then be the store's.
        data : str
            How the user knows the data.

        Returns
        -------
        ndarray of shape (n,), dtype int64
            Of equal images any one's row.

        Raises
        ------
        JoinError
            Naming the first sample that has no row, or one of another class.
        """
        stored = (self.sample_hash, self.labels)
        return find_rows(self.path, stored, (sample_hash, labels), data)
