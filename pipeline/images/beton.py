"""Betons: FFCV's files of images, written reproducibly and opened with suspicion.

A beton has the fields image, label, index and sample_hash; the hash's 64 bits are stored as
a signed integer, since FFCV has no unsigned one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.errors import DataError, MissingError, refuse_pointer
from pipeline.images.decode import resize
from pipeline.images.ffcv import ffcv_threads, require_ffcv
from pipeline.images.fingerprint import fingerprint
from pipeline.images.header import FIELDS, read_samples
from pipeline.images.manifest import Manifest, manifest_path
from pipeline.images.survey import common_size, require_unchanged, survey, without_bad
from pipeline.provenance import sha256_file
from pipeline.publish import require_free, require_shared_memory, staged, write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.images.sources import Source
    from pipeline.images.survey import Survey
    from pipeline.params import PrepareParams

__all__ = ["Beton", "open_beton", "write_beton"]


@dataclass(frozen=True)
class Beton:
    """A beton whose bytes are those that its manifest tells of.

    Attributes
    ----------
    path : Path
    manifest : Manifest
    labels : ndarray of shape (N,), dtype int32
    sample_hash : ndarray of shape (N,), dtype uint64
    """

    path: Path
    manifest: Manifest
    labels: NDArray[np.int32]
    sample_hash: NDArray[np.uint64]


def write_beton(
    source: Source,
    path: Path,
    params: PrepareParams,
    split: Literal["train", "test"],
    progress: Callable[[int], None] | None = None,
) -> tuple[Manifest, list[str]]:
    """Write a beton and its manifest.

    Parameters
    ----------
    source : Source
    path : Path
        Of the beton; both files appear by rename, the manifest last.
    params : PrepareParams
    split : str
    progress : callable, optional
        Called with the number of images just done, twice for each: read, then written.

    Returns
    -------
    tuple of Manifest and list of str
        The second names the bad images that were left out.

    Raises
    ------
    DataError
        When images are unreadable (without `skip_bad`), or differ in size without
        `image_size`.
    WriteError
        When the disk refuses; nothing is left behind.
    """
    require_ffcv()
    found = survey(source, progress)
    source, found, skipped = without_bad(source, found, skip=params.skip_bad)
    height, width = common_size(source, found, params.image_size)
    require_free(path.parent, _estimate(len(source), height, width, params))
    require_shared_memory(path, len(source) * _SHARED_BYTES)
    with staged(path) as beside:
        _encode(source, found, (height, width), beside, params, progress)
        manifest = Manifest(
            dataset=source.name,
            split=split,
            num_samples=len(source),
            class_names=source.class_names,
            shape=(params.channels, height, width),
            encoding=params.encoding,
            validation_fraction=params.validation_fraction,
            fingerprint=fingerprint(source.class_names, source.labels, found.sample_hash),
            sha256=sha256_file(beside),
            size=beside.stat().st_size,
        )
    write_json(manifest_path(path), manifest.to_json())
    return manifest, skipped


# Of each image, in the table of samples that FFCV's processes share.
_SHARED_BYTES = 40
# FFCV's bounds of a page, which holds whole images: 2 MiB, and below 4 GiB.
_MIN_PAGE, _MAX_PAGE = 2**21, 2**31


def _page_size(height: int, width: int) -> int:
    """The smallest page that wastes at most an eighth: larger ones pad small data sets."""
    return min(_MAX_PAGE, max(_MIN_PAGE, 1 << (8 * 3 * height * width - 1).bit_length()))


def _estimate(count: int, height: int, width: int, params: PrepareParams) -> int:
    """Bytes that the beton will take, or a little more."""
    image, page = 3 * height * width, _page_size(height, width)
    pages = -(-count // (page // image))
    # A JPEG of quality 90 takes about a sixth of the raw pixels: a quarter is on the safe side.
    data = pages * page if params.encoding == "raw" else count * image // 4 + page
    # Per image, 40 bytes in the table of samples and 24 in that of places.
    return data + 64 * count + page + 2**13


class _Samples:
    """What FFCV's writer asks for: a tuple of fields by number."""

    def __init__(
        self,
        source: Source,
        found: Survey,
        size: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._source, self._size, self._progress = source, size, progress
        self._labels, self._hashes = source.labels, found.sample_hash

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], int, int, int]:
        image = resize(self._source.decode(i), self._size)
        # After it was decoded: this hash is what ties the teacher's labels to these pixels.
        require_unchanged(self._source, i, int(self._hashes[i]))
        if self._progress:
            self._progress(1)
        signed = int(self._hashes.view(np.int64)[i])
        return np.ascontiguousarray(image), int(self._labels[i]), int(i), signed


def _encode(
    source: Source,
    found: Survey,
    size: tuple[int, int],
    path: Path,
    params: PrepareParams,
    progress: Callable[[int], None] | None,
) -> None:
    with ffcv_threads():
        from ffcv.fields import IntField, RGBImageField

        from pipeline.images.writer import BetonWriter

        mode = {"raw": "raw", "jpeg": "jpg"}[params.encoding]
        image = RGBImageField(write_mode=mode, jpeg_quality=params.jpeg_quality)
        fields = {"image": image} | {name: IntField() for name in FIELDS[1:]}
        # A count that is kept in another process would not be seen in this one.
        alone = params.workers == 1
        samples = _Samples(source, found, params.image_size, progress if alone else None)
        writer = BetonWriter(
            str(path),
            fields,
            num_workers=params.workers,
            page_size=_page_size(*size),
            progress=progress,
        )
        writer.from_indexed_dataset(samples)


def open_beton(path: Path) -> Beton:
    """Open a beton after checking all of it against its manifest.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Beton

    Raises
    ------
    MissingError, DataError
        When it is not there, is no beton, is truncated or altered, has other fields, or its
        manifest is another one's.
    """
    if not path.exists():
        raise MissingError(path, "no such file", remedy="Run 'ltd-pipe prepare' first.")
    if not path.is_file():
        raise DataError(path, "is not a beton", expected="a file")
    refuse_pointer(path, path, DataError)
    manifest = Manifest.beside(path)
    _require_whole(path, manifest)
    samples = read_samples(path, manifest)
    labels = samples["f1"].astype(np.int32)
    hashes = samples["f3"].astype(np.int64).view(np.uint64)
    if not np.array_equal(samples["f2"], np.arange(len(labels))):
        raise DataError(path, "its indices are not 0, 1, 2, …", remedy=_REMEDY)
    if samples["f1"].min() < -1 or samples["f1"].max() >= manifest.num_classes:
        raise DataError(
            path,
            "a label names no class",
            expected=f"-1…{manifest.num_classes - 1}",
            found=f"{samples['f1'].min()}…{samples['f1'].max()}",
            remedy=_REMEDY,
        )
    expected = fingerprint(manifest.class_names, labels, hashes)
    if expected != manifest.fingerprint:
        raise DataError(
            path,
            "its manifest is another beton's: fingerprint",
            expected=manifest.fingerprint[:16],
            found=expected[:16],
            remedy=_REMEDY,
        )
    return Beton(path, manifest, labels, hashes)


def hashes_of(path: Path, trained: str) -> NDArray[np.uint64] | None:
    """The hashes of a beton's images, if it is there and holds those of this fingerprint.

    Its pixels are not read: of a large one that would take minutes.
    """
    try:
        manifest = Manifest.beside(path)
        if not path.is_file() or manifest.fingerprint != trained:
            return None
        samples = read_samples(path, manifest)
    except DataError:
        return None
    hashes: NDArray[np.uint64] = samples["f3"].astype(np.int64).view(np.uint64)
    labels = samples["f1"].astype(np.int32)
    same = fingerprint(manifest.class_names, labels, hashes) == trained
    return hashes if same else None


_REMEDY = "Run 'ltd-pipe prepare' again, or copy beton and manifest together."


def _require_whole(path: Path, manifest: Manifest) -> None:
    size = path.stat().st_size
    if size != manifest.size:
        raise DataError(
            path,
            "is truncated" if size < manifest.size else "has another size",
            expected=f"{manifest.size:,} bytes",
            found=f"{size:,}",
            remedy=_REMEDY,
        )
    found = sha256_file(path)
    if found != manifest.sha256:
        raise DataError(
            path,
            "its bytes are not those that were written: SHA-256",
            expected=manifest.sha256[:16],
            found=found[:16],
            remedy=_REMEDY,
        )
