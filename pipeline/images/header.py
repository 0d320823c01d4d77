"""A beton's own numbers, held against its size before anything is read by them.

FFCV believes what a file says: a count decides how much memory is taken, and an image's place
and length how many bytes compiled code copies into a buffer. Whoever makes a beton can make a
manifest that goes with it, so that the manifest's hash is no protection here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.images.manifest import Manifest

__all__ = [
    "FIELD",
    "FIELDS",
    "HEADER",
    "PAGE_SIZES",
    "PLACE",
    "SAMPLE",
    "TYPE_IDS",
    "VERSION",
    "read_samples",
]

# FFCV 1.0.2's own, which take numba, OpenCV and torch to import: ffcv.types.
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
_TYPES = dict.fromkeys(FIELDS, "IntField") | {"image": "RGBImageField"}
# FFCV's IMAGE_MODES, which is a compiled dictionary that takes a second to ask.
_MODES = {"jpeg": 0, "raw": 1}
_REMEDY = "Run 'ltd-pipe prepare' again."


def read_samples(path: Path, manifest: Manifest) -> Any:
    """Read the table of samples.

    Parameters
    ----------
    path : Path
        A beton of the size that the manifest tells.
    manifest : Manifest
        Its manifest.

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
    _require_ours(path, header, manifest)
    _require_fields(path, np.frombuffer(head, FIELD, len(FIELDS), HEADER.itemsize))

    # Python's integers do not overflow.
    count, table = manifest.num_samples, int(header["alloc_table_ptr"])
    begin = start + count * SAMPLE.itemsize
    whole = begin <= table and table + count * PLACE.itemsize == manifest.size
    _require(path, whole, "its tables do not fit into the file")
    samples = np.fromfile(path, SAMPLE, count, offset=start)
    places = np.fromfile(path, PLACE, count, offset=table)
    _require_places(path, samples["f0"]["data_ptr"], places, (begin, table))
    _require_images(path, samples["f0"], places["size"], manifest)
    return samples


def _require(path: Path, fulfilled: bool | np.bool_, what: str) -> None:
    if not fulfilled:
        raise DataError(path, f"is not a beton of ours: {what}", remedy=_REMEDY)


def _require_ours(path: Path, header: Any, manifest: Manifest) -> None:
    told = (int(header["version"]), int(header["num_fields"]), int(header["num_samples"]))
    expected = (VERSION, len(FIELDS), manifest.num_samples)
    if told != expected:
        raise DataError(
            path,
            "is not a beton of ours: version, fields and samples",
            expected=expected,
            found=told,
            remedy=_REMEDY,
        )
    page = int(header["page_size"])
    sound = PAGE_SIZES[0] <= page < PAGE_SIZES[1] and page.bit_count() == 1
    _require(path, sound, f"page size {page}")


def _require_fields(path: Path, descriptions: Any) -> None:
    found = {
        bytes(row["name"]).rstrip(b"\0").decode(errors="replace"): TYPE_IDS.get(
            int(row["type_id"]), "unknown"
        )
        for row in descriptions
    }
    # As lists: the order counts too.
    if list(found.items()) != list(_TYPES.items()):
        raise DataError(path, "has other fields", expected=_TYPES, found=found, remedy=_REMEDY)


def _require_places(
    path: Path, pointers: NDArray[np.uint64], places: Any, region: tuple[int, int]
) -> None:
    """Each image has one place, between the two tables."""
    begin, end = (np.uint64(edge) for edge in region)
    order = np.argsort(places["ptr"], kind="stable")
    starts, sizes = places["ptr"][order], places["size"][order]
    _require(path, (sizes <= end).all() and (starts <= end).all(), "an image is not in the file")
    # Both are below the file's size now, so that their sum does not overflow.
    inside = (starts >= begin).all() and (starts + sizes <= end).all()
    _require(path, inside, "an image is not in the file")
    # FFCV looks an image's length up by its place: one that is not listed reads past the table.
    _require(path, (starts[1:] > starts[:-1]).all(), "two images have one place")
    _require(path, np.array_equal(np.sort(pointers), starts), "an image has no place")


def _require_images(path: Path, image: Any, sizes: Any, manifest: Manifest) -> None:
    _, height, width = manifest.shape
    mode = _MODES[manifest.encoding]
    _require(path, (image["mode"] == mode).all(), f"an image is not encoded as {manifest.encoding}")
    same = (image["height"] == height).all() and (image["width"] == width).all()
    _require(path, same, f"an image is not of {width}×{height} pixels")
    if manifest.encoding == "raw":
        # FFCV copies as many bytes as the file says into a buffer of this size.
        exact = (sizes == 3 * math.prod((height, width))).all()
        _require(path, exact, f"an image is not of {width}×{height} pixels")
