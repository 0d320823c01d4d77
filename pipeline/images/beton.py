"""Betons: FFCV's files of images, written reproducibly and opened with suspicion.

A beton has the fields image, label, index and sample_hash; the hash's 64 bits are stored as
a signed integer, since FFCV has no unsigned one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import DataError, MissingError, refuse_pointer
from pipeline.images.decode import resize
from pipeline.images.ffcv import ffcv_threads, require_ffcv
from pipeline.images.fingerprint import fingerprint
from pipeline.images.header import FIELDS, read_samples
from pipeline.images.manifest import Duplicates, Manifest, manifest_path
from pipeline.images.survey import common_size, require_unchanged, survey, without_bad
from pipeline.provenance import digest, sha256_file
from pipeline.publish import json_text, require_free, require_shared_memory, staged, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.images.sources import Source, Split
    from pipeline.images.survey import Survey
    from pipeline.params import PrepareParams

__all__ = ["Beton", "open_beton", "require_one_preparation", "write_beton", "write_betons"]


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
    split: Split,
    progress: Callable[[int], None] | None = None,
) -> tuple[Manifest, list[str]]:
    """Write one beton and its manifest; see `write_betons`."""
    return write_betons({split: source}, {split: path}, params, progress)[split]


def write_betons(
    sources: Mapping[Split, Source],
    paths: Mapping[Split, Path],
    params: PrepareParams,
    progress: Callable[[int], None] | None = None,
) -> dict[Split, tuple[Manifest, list[str]]]:
    """Write the betons of a data set's splits, and their manifests: all of them or none.

    Parameters
    ----------
    sources : mapping of str to Source
        By split, `train` first.
    paths : mapping of str to Path
        Of each split's beton. All files appear by rename when the last is written; should the
        process die between two renames, a beton and its manifest disagree, or the splits do on
        their `preparation`.
    params : PrepareParams
    progress : callable, optional
        Called with the number of images just done, twice for each: read, then written.

    Returns
    -------
    dict of str to tuple of Manifest and list of str
        The second names the bad images that were left out.

    Raises
    ------
    DataError
        When images are unreadable (without `skip_bad`), or differ in size without
        `image_size`.
    WriteError
        When the disk refuses; what stood there is untouched.
    """
    require_ffcv()
    looked = {split: survey(source, progress) for split, source in sources.items()}
    usable = {
        split: without_bad(source, looked[split], skip=params.skip_bad)
        for split, source in sources.items()
    }
    sizes = {
        split: common_size(source, found, params.image_size)
        for split, (source, found, _) in usable.items()
    }
    for split, (height, width) in sizes.items():
        if (height, width) != sizes.get("train", (height, width)):
            raise DataError(
                usable[split][0].where(0),
                "images differ in size",
                expected="{1}×{0} like the training images".format(*sizes["train"]),
                found=f"{width}×{height}",
                remedy="Pass --image-size to resize them all.",
            )
    estimates = [_estimate(len(usable[split][0]), *size, params) for split, size in sizes.items()]
    require_free(next(iter(paths.values())).parent, sum(estimates))
    largest = max(len(each) for each, _, _ in usable.values())
    require_shared_memory(next(iter(paths.values())), largest * _SHARED_BYTES)
    with contextlib.ExitStack() as renamed:
        # The last to be entered are the first to be renamed: the betons.
        texts = {s: renamed.enter_context(staged(manifest_path(paths[s]))) for s in sources}
        betons = {split: renamed.enter_context(staged(paths[split])) for split in sources}
        manifests: dict[Split, Manifest] = {}
        for split, (source, found, _) in usable.items():
            with writing(paths[split]):
                _encode(source, found, sizes[split], betons[split], params, progress)
            train = usable["train"][:2] if split == "test" and "train" in usable else None
            manifests[split] = Manifest(
                dataset=source.name,
                split=split,
                num_samples=len(source),
                class_names=source.class_names,
                shape=(params.channels, *sizes[split]),
                encoding=params.encoding,
                validation_fraction=params.validation_fraction,
                fingerprint=fingerprint(source.class_names, source.labels, found.sample_hash),
                sha256=sha256_file(betons[split]),
                size=betons[split].stat().st_size,
                one_colour=int(found.one_colour.sum()),
                turned=int(found.turned.sum()),
                duplicates=Duplicates.count(
                    (source.labels, found.sample_hash),
                    (train[0].labels, train[1].sample_hash) if train else None,
                ),
            )
        if len(manifests) > 1:
            common = digest({split: manifest.sha256 for split, manifest in manifests.items()})
            manifests = {
                split: manifest.model_copy(update={"preparation": common})
                for split, manifest in manifests.items()
            }
        for split, manifest in manifests.items():
            texts[split].write_text(json_text(manifest.to_json()), encoding="utf-8")
    return {split: (manifests[split], usable[split][2]) for split in sources}


def require_one_preparation(train: Beton, test: Beton) -> None:
    """Refuse a test beton that was not written together with the training one.

    Raises
    ------
    DataError
        When one is of another run of `prepare`, which was killed or of which one file was copied.
    """
    ours, theirs = train.manifest.preparation, test.manifest.preparation
    if ours != theirs:
        raise DataError(
            test.path,
            "is of another preparation than the training images",
            expected=f"{ours[:12]} as {train.path}" if ours else f"none, as {train.path}",
            found=theirs[:12] if theirs else "none",
            remedy="Run 'ltd-pipe prepare --force' again.",
        )


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
