"""Betons: FFCV's files of images, written reproducibly and opened with suspicion.

A beton has the fields image, label, index and sample_hash; the hash's 64 bits are stored as
a signed integer, since FFCV has no unsigned one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import DataError, MachineError, reason_of, refuse_pointer, require_file
from ltd_pipe.images.manifest import (
    Duplicates,
    Manifest,
    fingerprint,
    images_digest,
    manifest_path,
)
from ltd_pipe.images.sources import Source, Split, Survey, survey
from ltd_pipe.provenance import digest, sha256_file
from ltd_pipe.publish import json_text, require_free, require_shared_memory, staged, writing

if TYPE_CHECKING:
    from ltd_pipe.params import PrepareParams

_T = TypeVar("_T")

# FFCV 1.0.2's own types, which take numba, OpenCV and torch to import: ffcv.types.
VERSION = 2
PAGE_SIZES = (2**21, 2**32)
TYPE_IDS = {1: "IntField", 2: "RGBImageField"}
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
PLACE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("f0", _IMAGE), ("f1", "<i8"), ("f2", "<i8"), ("f3", "<i8")], align=True)

FIELDS = ("image", "label", "index", "sample_hash")
# FFCV's IMAGE_MODES, which is a compiled dictionary that takes a second to ask.
_MODES = {"jpeg": 0, "raw": 1}
_REMEDY = "Run 'ltd-pipe prepare' again, or copy beton and manifest together."


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


def open_beton(path: Path) -> Beton:
    """Open a beton after checking all of it against its manifest.

    Raises
    ------
    MissingError, DataError
        When it is not there, is no beton, is truncated or altered, has other fields, or its
        manifest is another one's.
    """
    require_file(path, remedy="Run 'ltd-pipe prepare' first.")
    if not path.is_file():
        remedy = "'ltd-pipe prepare' makes betons of a folder of images."
        raise DataError(path, "is not a beton", expected="a file", remedy=remedy)
    refuse_pointer(path, path, DataError)
    manifest = Manifest.beside(path)

    if (size := path.stat().st_size) != manifest.size:
        what = "is truncated" if size < manifest.size else "has another size"
        raise _refusal(path, what, f"{manifest.size:,} bytes", f"{size:,}")
    if (sha256 := sha256_file(path)) != manifest.sha256:
        what = "its bytes are not those that were written: SHA-256"
        raise _refusal(path, what, manifest.sha256[:16], sha256[:16])
    return Beton(path, manifest, *_read_labelled(path, manifest))


def _refusal(path: Path, what: str, expected: object = None, found: object = None) -> DataError:
    return DataError(path, what, expected=expected, found=found, remedy=_REMEDY)


def _read_labelled(path: Path, manifest: Manifest) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Labels and hashes of the images, which have to be those of the manifest."""
    samples = read_samples(path, manifest)
    labels, hashes = samples["f1"].astype(np.int32), samples["f3"].astype(np.int64).view(np.uint64)
    if not np.array_equal(samples["f2"], np.arange(len(labels))):
        raise _refusal(path, "its indices are not 0, 1, 2, …")
    least, most, last = int(samples["f1"].min()), int(samples["f1"].max()), manifest.num_classes - 1
    if least < -1 or most > last:
        raise _refusal(path, "a label names no class", f"-1…{last}", f"{least}…{most}")
    found = fingerprint(manifest.class_names, labels, hashes)
    if found != manifest.fingerprint:
        what = "its manifest is another beton's: fingerprint"
        raise _refusal(path, what, manifest.fingerprint[:16], found[:16])
    return labels, hashes


def hashes_of(path: Path, trained: str) -> NDArray[np.uint64] | None:
    """The hashes of a beton's images, if it is there and they are those of this `images_digest`.

    Its pixels are not read: of a large one that would take minutes.
    """
    with contextlib.suppress(DataError):
        manifest = Manifest.beside(path)
        if path.is_file():
            hashes = _read_labelled(path, manifest)[1]
            return hashes if images_digest(hashes) == trained else None
    return None


def require_one_preparation(train: Beton, test: Beton) -> None:
    """Refuse a test beton of another run of `prepare`, which was killed or partly copied."""
    ours, theirs = train.manifest.preparation, test.manifest.preparation
    if ours != theirs:
        raise DataError(
            test.path,
            "is of another preparation than the training images",
            expected=f"{ours[:12]} as {train.path}" if ours else f"none, as {train.path}",
            found=theirs[:12] if theirs else "none",
            remedy="Run 'ltd-pipe prepare --force' again.",
        )


def read_samples(path: Path, manifest: Manifest) -> Any:
    """Read the table of samples, and hold a beton's own numbers against its size and manifest.

    FFCV believes what a file says: a count decides how much memory is taken, and an image's place
    and length how many bytes compiled code copies into a buffer. Whoever makes a beton can make a
    manifest that goes with it, so that the manifest's hash is no protection here.

    Returns
    -------
    ndarray of shape (N,), structured
        Fields f0 (image: mode, width, height, data_ptr), f1 (label), f2 (index) and f3
        (sample_hash), the last three of dtype int64.

    Raises
    ------
    DataError
        When anything in it points outside the file, or is not as `write_beton` writes it.
    """
    start = HEADER.itemsize + len(FIELDS) * FIELD.itemsize
    with path.open("rb") as handle:
        head = handle.read(start)
    _require(path, len(head) == start, "is shorter than FFCV's header")
    header = np.frombuffer(head, HEADER, 1)[0]
    described = [int(header[name]) for name in ("version", "num_fields", "num_samples")]
    expected = [VERSION, len(FIELDS), manifest.num_samples]
    what = f"version, fields and samples: expected {expected}, found {described}"
    _require(path, described == expected, what)
    page = int(header["page_size"])
    sound = PAGE_SIZES[0] <= page < PAGE_SIZES[1] and page.bit_count() == 1
    _require(path, sound, f"page size {page}")
    fields = [
        (bytes(row["name"]).rstrip(b"\0"), TYPE_IDS.get(int(row["type_id"])))
        for row in np.frombuffer(head, FIELD, len(FIELDS), HEADER.itemsize)
    ]
    types = ["RGBImageField", *["IntField"] * 3]
    expected_fields = [*zip(map(str.encode, FIELDS), types, strict=True)]
    _require(path, fields == expected_fields, f"it has other fields: found {fields}")

    # Python's integers do not overflow.
    count, table = manifest.num_samples, int(header["alloc_table_ptr"])
    begin = start + count * SAMPLE.itemsize
    whole = begin <= table and table + count * PLACE.itemsize == manifest.size
    _require(path, whole, "its tables do not fit into the file")
    samples = np.fromfile(path, SAMPLE, count, offset=start)
    places = np.fromfile(path, PLACE, count, offset=table)
    _require_places(path, samples["f0"]["data_ptr"], places, np.uint64(begin), np.uint64(table))
    image, (_, height, width) = samples["f0"], manifest.shape
    mode = (image["mode"] == _MODES[manifest.encoding]).all()
    _require(path, mode, f"an image is not encoded as {manifest.encoding}")
    same = (image["height"] == height).all() and (image["width"] == width).all()
    if manifest.encoding == "raw":
        # FFCV copies as many bytes as the file says into a buffer of this size.
        same = same and (places["size"] == 3 * height * width).all()
    _require(path, same, f"an image is not of {width}×{height} pixels")
    return samples


def _require(path: Path, fulfilled: bool | np.bool_, what: str) -> None:
    if not fulfilled:
        raise _refusal(path, f"is not a beton of ours: {what}")


def _require_places(
    path: Path, pointers: NDArray[np.uint64], places: Any, begin: np.uint64, end: np.uint64
) -> None:
    """Each image has one place, between the two tables."""
    order = np.argsort(places["ptr"], kind="stable")
    starts, sizes = places["ptr"][order], places["size"][order]
    # The first two first: both are below the file's size then, and their sum does not overflow.
    inside = (sizes <= end).all() and (starts <= end).all()
    inside = inside and (starts >= begin).all() and (starts + sizes <= end).all()
    _require(path, inside, "an image is not in the file")
    # FFCV looks an image's length up by its place: one that is not listed reads past the table.
    _require(path, (starts[1:] > starts[:-1]).all(), "two images have one place")
    _require(path, np.array_equal(np.sort(pointers), starts), "an image has no place")


# --- FFCV, kept from changing this process's threads, and its absence explained.


_SYSTEM_PACKAGES = {
    "apt": "sudo apt-get install -y libopencv-dev libturbojpeg0-dev pkg-config",
    "dnf": "sudo dnf install -y opencv-devel turbojpeg-devel pkgconf-pkg-config gcc-c++",
    "conda": "conda install -y -c conda-forge opencv libjpeg-turbo pkg-config compilers",
}


@contextlib.contextmanager
def ffcv_threads() -> Iterator[None]:
    """Put torch's thread count back: importing FFCV and building a Loader set it."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


_IMPORTING = threading.Lock()


def require_ffcv() -> None:
    """Import FFCV; MachineError when that fails, with what to run.

    `ffcv.fields.rgb_image` (1.0.2) keeps the numbers of its two encodings in a numba.typed.Dict,
    which is compiled for that: 4 s of processor time in every process. It looks them up in plain
    Python alone, so that a plain dict does while it is imported.
    """
    with _IMPORTING, ffcv_threads():
        try:
            from numba import typed

            before, typed.Dict = typed.Dict, dict
            try:
                import ffcv  # noqa: F401
            finally:
                typed.Dict = before
        except Exception as error:  # a missing shared library is an ImportError or an OSError
            commands = "; ".join(f"{name}: {run}" for name, run in _SYSTEM_PACKAGES.items())
            raise MachineError(
                "ffcv",
                f"cannot be imported ({reason_of(error)})",
                remedy=f"Install its libraries and run set-up again. {commands}.",
            ) from error


# --- Writing.


# FFCV's largest page is below 4 GiB; it holds whole images.
_MAX_PAGE = 2**31


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
    found = {
        split: survey(source, skip_bad=params.skip_bad, progress=progress)
        for split, source in sources.items()
    }
    if params.wrong_labels and "train" in found:
        found["train"] = found["train"].mislabelled(params)
    sizes: dict[Split, tuple[int, int]] = {}
    for split, each in found.items():
        sizes[split] = each.common_size(params.image_size, sizes.get("train"))
    first = next(iter(paths.values()))
    counts = {split: len(each.source) for split, each in found.items()}
    estimates = [_estimate(counts[split], *size, params) for split, size in sizes.items()]
    require_free(first.parent, sum(estimates))
    # FFCV keeps its table of samples there, for processes of its own.
    require_shared_memory(first, max(counts.values()) * SAMPLE.itemsize)
    with contextlib.ExitStack() as renamed:
        # The last to be entered are the first to be renamed: the betons.
        texts = {s: renamed.enter_context(staged(manifest_path(paths[s]))) for s in sources}
        betons = {split: renamed.enter_context(staged(paths[split])) for split in sources}
        for split, each in found.items():
            with writing(paths[split]):
                _encode(each, sizes[split], betons[split], params, progress)
        sums = {str(split): sha256_file(beton) for split, beton in betons.items()}
        labelled = {s: (each.source.labels, each.sample_hash) for s, each in found.items()}
        manifests = {
            split: Manifest(
                **each.facts(split, (params.channels, *sizes[split])),
                encoding=params.encoding,
                validation_fraction=params.validation_fraction,
                sha256=sums[split],
                size=betons[split].stat().st_size,
                one_colour=each.one_colour,
                turned=each.turned,
                duplicates=Duplicates.count(
                    labelled[split], labelled.get("train") if split == "test" else None
                ),
                preparation=digest(sums) if len(sums) > 1 else None,
            )
            for split, each in found.items()
        }
        for split, manifest in manifests.items():
            texts[split].write_text(json_text(manifest.to_json()), encoding="utf-8")
    return {split: (manifests[split], found[split].skipped) for split in sources}


def _page_size(height: int, width: int) -> int:
    """The smallest page that wastes at most an eighth: larger ones pad small data sets."""
    return min(_MAX_PAGE, max(PAGE_SIZES[0], 1 << (8 * 3 * height * width - 1).bit_length()))


def _estimate(count: int, height: int, width: int, params: PrepareParams) -> int:
    """Bytes that the beton will take, or a little more."""
    image, page = 3 * height * width, _page_size(height, width)
    pages = -(-count // (page // image))
    # A JPEG of quality 90 takes about a sixth of the raw pixels: a quarter is on the safe side.
    data = pages * page if params.encoding == "raw" else count * image // 4 + page
    return data + count * (SAMPLE.itemsize + PLACE.itemsize) + page + 2**13


def _encode(
    found: Survey,
    size: tuple[int, int],
    path: Path,
    params: PrepareParams,
    progress: Callable[[int], None] | None,
) -> None:
    """Write the samples in their order: equal ones give equal bytes, with any number of workers.

    FFCV 1.0.2 waits for a counter that its worker processes raise: when one of them dies, on a
    full disk for example, it waits for ever. So its job is done in this process.
    """
    labels, signed = found.source.labels, found.sample_hash.view(np.int64)

    def sample(i: int) -> tuple[NDArray[np.uint8], int, int, int]:
        image = np.ascontiguousarray(found.pixels(i, params.image_size))
        return image, int(labels[i]), i, int(signed[i])

    with ffcv_threads():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.memory_allocator import MemoryAllocator
        from ffcv.writer import DatasetWriter, handle_sample

    mode = {"raw": "raw", "jpeg": "jpg"}[params.encoding]
    image = RGBImageField(write_mode=mode, jpeg_quality=params.jpeg_quality)
    fields = {"image": image} | {name: IntField() for name in FIELDS[1:]}
    writer = DatasetWriter(str(path), fields, _page_size(*size), num_workers=1)
    writer.num_samples = len(labels)
    writer.prepare()
    table = np.frombuffer(writer.metadata_sm.buf, writer.metadata_type)
    try:
        pages = MemoryAllocator(str(path), writer.data_region_start, writer.page_size)
        with pages:
            for i, values in enumerate(_ahead(sample, len(labels), params.workers)):
                handle_sample(values, i, table.dtype.names, table, pages, fields)
                if progress:
                    progress(1)
        writer.finalize(pages.allocations)
    except BaseException as error:
        # A failed call's frames hold views of the shared memory, which could then not be closed.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        del table
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()
    # FFCV does not look at how much was written: on a disk that fills up the last page can be cut
    # short in silence.
    end = pages.offset + (pages.my_page + 1) * pages.page_size
    if path.stat().st_size != end + len(labels) * PLACE.itemsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _ahead(work: Callable[[int], _T], count: int, threads: int) -> Iterator[_T]:
    """What `work` gives for 0, 1, … in this order; at most two calls a thread wait or are done."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_T]] = deque()
        for i in range(count):
            waiting.append(pool.submit(work, i))
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
        for call in waiting:
            yield call.result()
