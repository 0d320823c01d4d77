"""The arrays of a store: their names and types, their zarr.json, and their chunk files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from pipeline.errors import StoreError
from pipeline.publish import staged

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ArrayLayout", "chunk_bytes", "parse_layout", "write_chunk"]

_MAX_CHUNK_BYTES = 2**28
_CRC_BYTES = 4


@dataclass(frozen=True)
class _Kind:
    dtype: str
    dimensions: tuple[str, ...]
    fill: int | str


_KINDS = {
    "soft_labels": _Kind("float16", ("sample", "view", "class"), "NaN"),
    "logits": _Kind("float16", ("sample", "view", "class"), "NaN"),
    "topk_indices": _Kind("uint16", ("sample", "view", "rank"), 0),
    "topk_probs": _Kind("float16", ("sample", "view", "rank"), "NaN"),
    "labels": _Kind("int32", ("sample",), -1),
    "sample_hash": _Kind("uint64", ("sample",), 0),
    # Never published: how far each top-k row is from the dense one.
    "topk_distance": _Kind("float32", ("sample", "view"), "NaN"),
}
# The largest class number is one less.
_UINT16_CLASSES = 2**16


@dataclass(frozen=True)
class ArrayLayout:
    """Where the rows of one array are.

    Attributes
    ----------
    name : str
        `soft_labels`, `logits`, `topk_indices`, `topk_probs`, `labels` or `sample_hash`.
    num_samples, num_classes : int
        N and K.
    rows : int
        Samples in a chunk. The last chunk is as long as the others, padded with the fill value.
    num_views : int
        V; a single view has no axis.
    top_k : int
        k, of the arrays with ranks.
    """

    name: str
    num_samples: int
    num_classes: int
    rows: int
    num_views: int = 1
    top_k: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element, little-endian."""
        return np.dtype(self._type).newbyteorder("<")

    @property
    def _type(self) -> str:
        if self.name == "topk_indices" and self.num_classes > _UINT16_CLASSES:
            return "uint32"
        return _KINDS[self.name].dtype

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the axes."""
        names = _KINDS[self.name].dimensions
        return names if self.num_views > 1 else tuple(name for name in names if name != "view")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one sample's part: (K,), (V, K), (k,), (V, k) or ()."""
        lengths = {"view": self.num_views, "class": self.num_classes, "rank": self.top_k}
        return tuple(lengths[name] for name in self.dimensions[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *row_shape)."""
        return (self.num_samples, *self.row_shape)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """(rows, *row_shape)."""
        return (self.rows, *self.row_shape)

    @property
    def num_chunks(self) -> int:
        """Number of chunk files."""
        return -(-self.num_samples // self.rows)

    @property
    def payload_bytes(self) -> int:
        """Size of a chunk without its checksum."""
        size: int = self.dtype.itemsize
        for length in self.chunk_shape:
            size *= length
        return size

    @property
    def file_bytes(self) -> int:
        """Size of a chunk file."""
        return self.payload_bytes + _CRC_BYTES

    def chunk_name(self, chunk: int) -> str:
        """Path of a chunk file within the store."""
        return "/".join([self.name, "c", str(chunk), *(["0"] * (len(self.shape) - 1))])

    def rows_in(self, chunk: int) -> int:
        """Rows of a chunk that are samples, not padding."""
        return min(self.rows, self.num_samples - chunk * self.rows)

    @property
    def fill_value(self) -> NDArray[Any]:
        """What pads the last chunk, shape (1,)."""
        return np.array([float(_KINDS[self.name].fill)], self.dtype)

    def empty_chunk(self) -> NDArray[Any]:
        """A chunk of nothing but fill values."""
        return np.full(self.chunk_shape, self.fill_value, self.dtype)

    def to_json(self) -> dict[str, Any]:
        """The array's zarr.json, as zarr itself writes it."""
        kind = _KINDS[self.name]
        return {
            "shape": list(self.shape),
            "data_type": self._type,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.chunk_shape)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": kind.fill,
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "attributes": {},
            "dimension_names": list(self.dimensions),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


def parse_layout(metadata: Any, wanted: ArrayLayout, where: object) -> ArrayLayout:
    """Read one array's zarr.json, in which only the rows per chunk are free.

    Parameters
    ----------
    metadata : Any
        Parsed JSON.
    wanted : ArrayLayout
        What the attributes imply; its rows are not looked at.
    where : object
        The store, for the error.

    Raises
    ------
    StoreError
        When any key differs from what the format says: types, codecs, names, sizes.
    """
    name = wanted.name
    layout = replace(wanted, rows=_parse_rows(metadata, name, where))
    found, expected = _without_optional(metadata), _without_optional(layout.to_json())
    for key in sorted(found.keys() | expected.keys()):
        if _text(found.get(key)) != _text(expected.get(key)):
            raise StoreError(
                where,
                f"{name}/zarr.json: {key} is not as format 1.0 says",
                expected=expected.get(key),
                found=repr(found.get(key))[:120],
            )
    if layout.payload_bytes > _MAX_CHUNK_BYTES:
        raise StoreError(
            where,
            f"{name}: chunks are too large",
            expected=f"at most {_MAX_CHUNK_BYTES} bytes",
            found=layout.payload_bytes,
        )
    return layout


def _parse_rows(metadata: Any, name: str, where: object) -> int:
    try:
        rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    except (KeyError, IndexError, TypeError) as error:
        raise StoreError(where, f"{name}/zarr.json: has no chunk_shape") from error
    if type(rows) is not int or rows < 1:
        raise StoreError(
            where, f"{name}/zarr.json: chunk_shape", expected="rows >= 1", found=repr(rows)[:40]
        )
    return rows


def _without_optional(metadata: dict[str, Any]) -> dict[str, Any]:
    # Zarr lets writers leave out or add these without a change of meaning.
    kept = dict(metadata)
    kept.pop("attributes", None)
    if kept.get("storage_transformers") == []:
        del kept["storage_transformers"]
    if kept.get("fill_value") == "0x7e00":
        kept["fill_value"] = "NaN"
    if isinstance(kept.get("codecs"), list):
        kept["codecs"] = [_without_empty(codec) for codec in kept["codecs"]]
    return kept


def _without_empty(codec: Any) -> Any:
    if not isinstance(codec, dict):
        return codec
    return {key: value for key, value in codec.items() if value != {}}


def _text(value: Any) -> str:
    # Compared as text, since in Python 1 == 1.0 == True.
    return json.dumps(value, sort_keys=True)


def write_chunk(
    folder: Path, layout: ArrayLayout, chunk: int, content: NDArray[Any], *, flush_name: bool = True
) -> None:
    """Write one chunk file so that it is either whole or absent.

    Parameters
    ----------
    folder : Path
        Of the store.
    layout : ArrayLayout
    chunk : int
    content : ndarray of shape (rows_in(chunk), *row_shape)
    flush_name : bool
        See `pipeline.publish.staged`.
    """
    payload, checksum = chunk_bytes(layout, content)
    target = folder / layout.chunk_name(chunk)
    with staged(target, flush_name=flush_name) as beside, beside.open("wb") as handle:
        handle.write(payload)
        handle.write(checksum)


def chunk_bytes(layout: ArrayLayout, content: NDArray[Any]) -> tuple[memoryview, bytes]:
    """The content of a chunk file: the padded rows, not copied where they are whole, and CRC-32C.

    Parameters
    ----------
    layout : ArrayLayout
    content : ndarray of shape (n, *row_shape)
        At most `layout.rows` rows.
    """
    rows = np.ascontiguousarray(content, layout.dtype)
    if len(rows) < layout.rows:
        rows = np.concatenate([rows, layout.empty_chunk()[len(rows) :]])
    payload = rows.reshape(-1).view(np.uint8)
    checksum = int(google_crc32c.value(payload)).to_bytes(_CRC_BYTES, "little")
    return payload.data, checksum
