"""The arrays of a store: as zarr describes them, and where their rows are."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import LtdPipeError, StoreError

if TYPE_CHECKING:
    from zarr.core.metadata.v3 import ArrayV3Metadata

_MAX_CHUNK_BYTES = 2**28
_CRC_BYTES = 4
# What zarr parses of one array's metadata; ours take 1 KiB.
_MAX_ARRAY_BYTES = 2**16
# The largest class number is one less.
_UINT16_CLASSES = 2**16

SPARSE = ("topk_indices", "topk_probs")
# Type, axes and fill value.
_KINDS: dict[str, tuple[str, tuple[str, ...], float]] = {
    "soft_labels": ("float16", ("sample", "view", "class"), math.nan),
    "logits": ("float16", ("sample", "view", "class"), math.nan),
    "topk_indices": ("uint16", ("sample", "view", "rank"), 0),
    "topk_probs": ("float16", ("sample", "view", "rank"), math.nan),
    "labels": ("int32", ("sample",), -1),
    "sample_hash": ("uint64", ("sample",), 0),
    # Never published: how far each top-k row is from the dense one.
    "topk_distance": ("float32", ("sample", "view"), math.nan),
}


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
        wide = self.name == "topk_indices" and self.num_classes > _UINT16_CLASSES
        return np.dtype("uint32" if wide else _KINDS[self.name][0]).newbyteorder("<")

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the axes."""
        names = _KINDS[self.name][1]
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
        return math.prod(self.chunk_shape, start=self.dtype.itemsize)

    @property
    def file_bytes(self) -> int:
        """Size of a chunk file."""
        return self.payload_bytes + _CRC_BYTES

    @property
    def fits(self) -> bool:
        """Whether readers take chunks of that size."""
        return self.payload_bytes <= _MAX_CHUNK_BYTES

    def require_fitting(
        self, where: object, error: type[LtdPipeError] = StoreError, remedy: str = ""
    ) -> None:
        """Refuse chunks that no reader takes."""
        if not self.fits:
            raise error(
                where,
                f"{self.name}: chunks are too large",
                expected=f"at most {_MAX_CHUNK_BYTES} bytes",
                found=self.payload_bytes,
                remedy=remedy,
            )

    def chunk_name(self, chunk: int) -> str:
        """Path of a chunk file within the store."""
        return "/".join([self.name, "c", str(chunk), *(["0"] * len(self.row_shape))])

    def rows_in(self, chunk: int) -> int:
        """Rows of a chunk that are samples, not padding."""
        return min(self.rows, self.num_samples - chunk * self.rows)

    @property
    def fill_value(self) -> NDArray[Any]:
        """What pads the last chunk, shape (1,)."""
        return np.array([_KINDS[self.name][2]], self.dtype)

    def metadata(self) -> ArrayV3Metadata:
        """The array as zarr describes it."""
        from zarr.codecs import BytesCodec, Crc32cCodec
        from zarr.core.metadata.v3 import ArrayV3Metadata
        from zarr.dtype import parse_dtype

        grid: dict[str, Any] = {"chunk_shape": self.chunk_shape}
        return ArrayV3Metadata(
            shape=self.shape,
            data_type=parse_dtype(self.dtype, zarr_format=3),
            chunk_grid={"name": "regular", "configuration": grid},
            chunk_key_encoding={"name": "default", "configuration": {"separator": "/"}},
            fill_value=self.fill_value[0],
            codecs=[BytesCodec(endian="little"), Crc32cCodec()],
            attributes={},
            dimension_names=self.dimensions,
        )


def parse_layout(raw: dict[str, Any], wanted: ArrayLayout, where: object) -> ArrayLayout:
    """Compare one array's metadata with the format's, in which only the rows per chunk are free.

    The attributes imply what is `wanted`; its rows are not looked at.
    """
    name = wanted.name
    found = _zarr_metadata(raw, name, where)
    # As they are written: zarr takes true for 1.
    found |= {key: raw[key] for key in ("shape", "chunk_grid")}
    rows = raw["chunk_grid"]["configuration"]["chunk_shape"][0]
    if type(rows) is not int or rows < 1:
        raise StoreError(
            where, f"{name}/zarr.json: chunk_shape", expected="rows >= 1", found=repr(rows)[:40]
        )
    layout = replace(wanted, rows=rows)
    layout.require_fitting(where)
    expected: dict[str, Any] = layout.metadata().to_dict()
    for key in sorted(found.keys() | expected.keys()):
        if _as_text(found.get(key)) != _as_text(expected.get(key)):
            raise StoreError(
                where,
                f"{name}/zarr.json: {key} is not as format 1.0 says",
                expected=expected.get(key),
                found=ascii(found.get(key))[:120],
            )
    return layout


def _as_text(value: Any) -> str:
    # Since in Python 1 == 1.0 == True.
    return json.dumps(value, sort_keys=True)


def _zarr_metadata(raw: dict[str, Any], name: str, where: object) -> dict[str, Any]:
    """The metadata as zarr reads them, with what may be left out, and without the attributes."""
    from zarr.core.metadata.v3 import ArrayV3Metadata

    kept = {key: value for key, value in raw.items() if key != "attributes"}
    if (size := len(json.dumps(kept))) > _MAX_ARRAY_BYTES:
        raise StoreError(
            where,
            f"{name}/zarr.json: is too long",
            expected=f"at most {_MAX_ARRAY_BYTES} bytes without its attributes",
            found=size,
        )
    try:
        with warnings.catch_warnings():
            # Of types and codecs that no specification has: these are refused in any case.
            warnings.simplefilter("ignore")
            return ArrayV3Metadata.from_dict(kept).to_dict()
    # Zarr raises whatever comes of a value that it does not expect.
    except Exception as error:
        raise StoreError(
            where,
            f"{name}/zarr.json: is not that of a Zarr v3 array as format 1.0 says",
            found=ascii(str(error) or type(error).__name__)[:200],
        ) from error
