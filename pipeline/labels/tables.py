"""Tables of labels, .npz or Parquet: written of stores, and made into stores.

Both carry all of a store: a table that was made of one gives that store again, to the byte. Beside
the arrays they have `ltd_pipe`, JSON of the store's attribute and of its rows per chunk.
"""

from __future__ import annotations

import abc
import contextlib
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import (
    JoinError,
    MachineError,
    MissingError,
    ParamsError,
    StoreError,
    install_extra,
    reason_of,
    refuse_pointer,
)
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.convert import Origin, convert, foreign_attributes
from ltd_pipe.labels.derive import answer_arrays
from ltd_pipe.labels.format import (
    ATTRIBUTE,
    StoreAttributes,
    parse_attributes,
    parse_object,
    to_float32,
)
from ltd_pipe.labels.join import ImageRows, partners
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import staged

if TYPE_CHECKING:
    from ltd_pipe.labels.derive import Block, DerivedStore
    from ltd_pipe.labels.join import ImagesLike
    from ltd_pipe.labels.reader import SoftLabels


# --- What both kinds have in common.


# The arrays that have an answer for each row, and those of them that make a store.
_WIDE = ("soft_labels", "logits", "topk_indices", "topk_probs")
_STORES = ({"soft_labels"}, {"logits"}, {"soft_labels", "logits"}, {"topk_indices", "topk_probs"})
_CHUNK_ROWS = "chunk_rows"


def _carried_text(store: SoftLabels) -> str:
    rows = store.arrays["labels"].layout.rows
    content = {ATTRIBUTE: store.attributes.to_json(), _CHUNK_ROWS: rows}
    return json.dumps(content, allow_nan=False)


class Table(abc.ABC):
    """An opened file, read from its beginning to its end; see `LabelFiles`.

    Attributes
    ----------
    path : Path
    carried : tuple of StoreAttributes and int, or None
        Attributes and rows per chunk of the store that the file was made of.
    num_samples : int
    row_shapes : dict of str to tuple of int
        Of each array that has an answer for each row.
    """

    path: Path
    carried: tuple[StoreAttributes, int] | None
    num_samples: int
    row_shapes: dict[str, tuple[int, ...]]

    @abc.abstractmethod
    def column(self, name: str) -> NDArray[Any] | None:
        """All of `labels` or `sample_hash`, integers, or None when the file has none."""

    @abc.abstractmethod
    def read(self, index: NDArray[np.int64]) -> Block:
        """The next rows of each wide array."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file."""

    @property
    def arrays(self) -> frozenset[str]:
        """What `read` gives."""
        return frozenset(self.row_shapes)

    @property
    def top_k(self) -> int | None:
        """Probabilities in a row of a sparse table."""
        shape = self.row_shapes.get("topk_probs")
        return shape[-1] if shape else None

    def origin(self) -> str:
        """The file's kind and hash."""
        kind = self.path.suffix.removeprefix(".") or "table"
        return f"{kind}, SHA-256 {sha256_file(self.path)}"

    def _parse_carried(self, text: str | bytes) -> tuple[StoreAttributes, int]:
        content = parse_object(text.encode() if isinstance(text, str) else text, self.path)
        rows = content.get(_CHUNK_ROWS)
        known = parse_attributes(content.get(ATTRIBUTE), self.path)
        if type(rows) is not int or not 1 <= rows <= known.num_samples:
            expected, found = f"1 to {known.num_samples}", repr(rows)[:40]
            raise StoreError(self.path, _CHUNK_ROWS, expected=expected, found=found)
        return known, rows

    def _narrow(self, name: str, dtype: type[np.integer[Any]]) -> NDArray[Any] | None:
        values = self.column(name)
        if values is None:
            return None
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            expected, found = np.dtype(dtype).name, f"up to {values.max()}"
            raise StoreError(self.path, name, expected=expected, found=found)
        return values.astype(dtype)

    def to_store(
        self, origin: Origin | None = None, images: ImagesLike | None = None
    ) -> DerivedStore:
        """The store of this table.

        Parameters
        ----------
        origin : Origin, optional
            What is known of the labels, where the file does not carry it.
        images : Beton, optional
            The images of the rows, where the file does not carry their classes: its rows must
            have a `sample_hash`, and are of these images.

        Raises
        ------
        StoreError
            When the file is damaged, or makes no store.
        JoinError
            When the rows are of other images.
        ParamsError
            When the file carries no attributes, and no images are given.
        """
        if self.arrays not in _STORES:
            raise StoreError(
                self.path,
                "has arrays that make no store",
                expected="soft_labels, logits, both, or topk_indices and topk_probs",
                found=", ".join(sorted(self.arrays)),
            )
        if self.carried is None:
            attributes, labels, hashes = self._join(origin or Origin(), images)
            rows = None
        else:
            attributes, rows = self.carried
            labels, hashes = self._rows_of_store(attributes)
        self._require_shapes(attributes)
        return convert(self, attributes, labels, hashes, rows)

    def _rows_of_store(
        self, attributes: StoreAttributes
    ) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        labels = self._narrow("labels", np.int32)
        hashes = self._narrow("sample_hash", np.uint64)
        if labels is None or hashes is None:
            raise StoreError(self.path, "lacks the labels or the sample_hash of the store")
        if fingerprint(attributes.class_names, labels, hashes) != attributes.dataset.fingerprint:
            raise StoreError(
                self.path,
                "its rows are not those of the store that it says it was made of: the fingerprint "
                "of labels and sample_hash differs",
                remedy="Remove the ltd_pipe metadata, and name the images with --data.",
            )
        return labels, hashes

    def _join(
        self, origin: Origin, images: ImagesLike | None
    ) -> tuple[StoreAttributes, NDArray[np.int32], NDArray[np.uint64]]:
        hashes = self._narrow("sample_hash", np.uint64)
        if hashes is None:
            raise JoinError(
                self.path,
                "has no sample_hash, so that nothing says which image a row belongs to",
                remedy="Add it: BLAKE2b of 8 bytes over each image's file, read as a little-endian "
                "integer.",
            )
        if images is None:
            raise ParamsError(
                self.path,
                "was not made of a store, and knows neither its classes nor its images",
                remedy="Name the images with --data.",
            )
        known = self._narrow("labels", np.int32)
        # Where the file knows no classes, by hash alone: they are the data's to say.
        ours, theirs = known, images.labels
        if ours is None:
            ours, theirs = np.zeros(len(hashes), np.int32), np.zeros_like(theirs)
        at = partners(
            ImageRows(hashes, ours, self.path),
            ImageRows(images.sample_hash, theirs, "the data", "sample"),
            whole=False,
        )
        labels = images.labels[at]
        attributes = foreign_attributes(origin, images.manifest, labels, hashes, self.top_k)
        return attributes, labels, hashes

    def _require_shapes(self, attributes: StoreAttributes) -> None:
        top_k = attributes.top_k.k if attributes.top_k else None
        if (top_k is not None) != ("topk_probs" in self.arrays):
            what = "is dense where its attributes say top-k, or the reverse"
            raise StoreError(self.path, what)
        if self.num_samples != attributes.num_samples:
            raise StoreError(
                self.path, "rows", expected=attributes.num_samples, found=self.num_samples
            )
        for name, shape in self.row_shapes.items():
            expected = attributes.layout(name, 1, top_k).row_shape
            if shape != expected:
                raise StoreError(
                    self.path,
                    f"{name}: numbers per row",
                    expected=" × ".join(map(str, expected)),
                    found=" × ".join(map(str, shape)),
                )


# --- NumPy's .npz: one file that every Python has a reader for.
#
# Keys: `soft_labels`, and `logits` where there are some, or `topk_indices` and `topk_probs`;
# `labels`; `sample_hash`; all as in the store; and `ltd_pipe`, a text. No member is compressed, and
# none is pickled.


_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_STEP_BYTES = 2**23
# As much as a store's metadata may have.
_MAX_TEXT_BYTES = 2**26
_MAX_HEADER_BYTES = 10_000


def write_npz(
    store: SoftLabels, target: Path, progress: Callable[[int], None] | None = None
) -> None:
    """Write a store as one .npz file, in the memory of few rows; equal stores are equal files.

    Parameters
    ----------
    store : SoftLabels
    target : Path
        Replaced when it is there.
    progress : callable, optional
        Called with the number of samples just written of one array.
    """
    wide = answer_arrays(store)
    with staged(target) as beside, zipfile.ZipFile(beside, "w", allowZip64=True) as archive:

        def new_member(name: str) -> IO[bytes]:
            # Of no time, so that equal stores are equal files.
            info = zipfile.ZipInfo(f"{name}.npy", _FIRST_DAY)
            return archive.open(info, "w", force_zip64=True)

        for name in (*wide, "labels", "sample_hash"):
            array = store.arrays[name]
            layout = array.layout
            header = {
                "descr": np.lib.format.dtype_to_descr(layout.dtype),
                "fortran_order": False,
                "shape": layout.shape,
            }
            step = max(_STEP_BYTES // (layout.payload_bytes // layout.rows), 1)
            with new_member(name) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for first in range(0, layout.num_samples, step):
                    index = np.arange(first, min(first + step, layout.num_samples))
                    member.write(np.ascontiguousarray(array.gather(index)).data)
                    if progress is not None and name == wide[0]:
                        progress(len(index))
        with new_member(ATTRIBUTE) as member:
            text = np.array(_carried_text(store))
            np.lib.format.write_array(member, text, allow_pickle=False)


class NpzTable(Table):
    """A .npz file of labels, made by `write_npz` or by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_pointer(path, path, StoreError)
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise MissingError(path, "no such file") from error
        except (zipfile.BadZipFile, OSError) as error:
            raise StoreError(path, f"is no .npz file ({reason_of(error)})") from error
        self._known = {name.removesuffix(".npy") for name in self._archive.namelist()}
        self._members = dict[str, _Member]()
        try:
            self._open_members()
        except BaseException:
            self.close()
            raise

    def _open_members(self) -> None:
        for name in _WIDE:
            if name in self._known:
                self._members[name] = self._member(name)
        if not self._members:
            raise StoreError(
                self.path,
                "has no labels",
                expected=f"a key of {', '.join(_WIDE)}",
                found=", ".join(sorted(self._known)[:8]) or "nothing",
            )
        counts = {name: member.shape[0] for name, member in self._members.items()}
        if len(set(counts.values())) > 1:
            raise StoreError(self.path, "arrays differ in their rows", found=counts)
        self.num_samples = next(iter(counts.values()))
        self.row_shapes = {name: member.shape[1:] for name, member in self._members.items()}
        self.carried = None
        if ATTRIBUTE in self._known:
            with contextlib.closing(self._member(ATTRIBUTE, text=True)) as member:
                self.carried = self._parse_carried(str(member.read_all()))

    def _member(self, name: str, *, text: bool = False) -> _Member:
        return _Member(self._archive.open(f"{name}.npy"), self.path, name, text=text)

    def column(self, name: str) -> NDArray[Any] | None:
        """All of a narrow array."""
        if name not in self._known:
            return None
        with contextlib.closing(self._member(name)) as member:
            if member.shape != (self.num_samples,) or member.dtype.kind not in "iu":
                raise StoreError(
                    self.path,
                    name,
                    expected=f"integers of shape ({self.num_samples},)",
                    found=f"{member.dtype} {member.shape}",
                )
            return member.read_all()

    def read(self, index: NDArray[np.int64]) -> Block:
        """The next rows of each wide array."""
        return {name: member.take(len(index)) for name, member in self._members.items()}

    def close(self) -> None:
        """Close the file."""
        for member in self._members.values():
            member.close()
        self._archive.close()


class _Member:
    """One array of the archive, read from its beginning to its end."""

    def __init__(self, stream: IO[bytes], where: Path, name: str, *, text: bool) -> None:
        self._stream, self._where, self._name = stream, where, name
        try:
            self.shape, self.dtype = self._header(text=text)
        except BaseException:
            self.close()
            raise
        self._left = self.shape[0] if self.shape else 1

    def _header(self, *, text: bool) -> tuple[tuple[int, ...], np.dtype[Any]]:
        try:
            version = np.lib.format.read_magic(self._stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(self._stream, max_header_size=_MAX_HEADER_BYTES)
        except (ValueError, KeyError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
            raise StoreError(
                self._where, f"{self._name}: is no array that NumPy wrote ({reason_of(error)})"
            ) from error
        plain = dtype.kind == "U" and not shape if text else dtype.kind in "fiu" and shape
        size = math.prod(shape) * dtype.itemsize
        if not plain or fortran or min(shape, default=1) < 1 or (text and size > _MAX_TEXT_BYTES):
            raise StoreError(
                self._where,
                self._name,
                expected="a text" if text else "numbers, row after row",
                found=f"{dtype} {shape}{' by column' if fortran else ''}",
            )
        return shape, dtype

    def take(self, count: int) -> NDArray[Any]:
        shape = (count, *self.shape[1:]) if self.shape else ()
        size = math.prod(shape) * self.dtype.itemsize
        try:
            content = self._stream.read(size)
            self._left -= count
            # What remains after the last row; its end is also where the checksum is compared.
            more = self._stream.read(1) if self._left == 0 else b""
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            reason = reason_of(error)
            raise StoreError(self._where, f"{self._name} is damaged ({reason})") from error
        if len(content) != size or more:
            raise StoreError(self._where, f"{self._name} is cut short, or longer than it says")
        rows: NDArray[Any] = np.frombuffer(content, self.dtype).reshape(shape)
        return rows

    def read_all(self) -> NDArray[Any]:
        return self.take(self._left)

    def close(self) -> None:
        self._stream.close()


# --- Parquet: for DuckDB, pandas, Polars and Hugging Face's data sets.
#
# A row per sample. Columns: `sample_hash` (uint64), `labels` (int32), and `soft_labels`, and
# `logits` where there are some, or `topk_indices` and `topk_probs`: lists of fixed length, of lists
# where there are several views. Numbers are float32, which holds float16 exactly and which every
# reader knows. `ltd_pipe` is in the file's metadata.


# Row groups of 4 MiB per column: memory for few, and worth a request to whoever reads one.
_GROUP_ELEMENTS = 2**20


def write_parquet(
    store: SoftLabels, target: Path, progress: Callable[[int], None] | None = None
) -> None:
    """Write a store as one Parquet file, in the memory of one row group; else as `write_npz`."""
    arrow, parquet = _packages()
    kinds = {name: _list_type(arrow, store, name) for name in answer_arrays(store)}
    schema = arrow.schema(
        {"sample_hash": arrow.uint64(), "labels": arrow.int32()} | kinds,
        metadata={ATTRIBUTE: _carried_text(store)},
    )
    step = max(_GROUP_ELEMENTS // (store.num_views * (store.top_k or store.num_classes)), 1)
    with (
        staged(target) as beside,
        parquet.ParquetWriter(beside, schema, compression="zstd", use_dictionary=False) as writer,
    ):
        for first in range(0, store.num_samples, step):
            index = np.arange(first, min(first + step, store.num_samples))
            columns = [arrow.array(store.sample_hash[index]), arrow.array(store.labels[index])]
            columns += [
                _lists(arrow, store.arrays[name].gather(index), kind)
                for name, kind in kinds.items()
            ]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
            if progress is not None:
                progress(len(index))


def _packages() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MachineError(
            "pyarrow",
            "is not installed, and Parquet files need it",
            remedy=install_extra("parquet"),
        ) from error
    return pyarrow, pyarrow.parquet


def _list_type(arrow: Any, store: SoftLabels, name: str) -> Any:
    kind = arrow.uint32() if name == "topk_indices" else arrow.float32()
    for length in reversed(store.arrays[name].layout.row_shape):
        kind = arrow.list_(kind, length)
    return kind


def _lists(arrow: Any, rows: NDArray[Any], kind: Any) -> Any:
    values = rows.astype(np.uint32) if rows.dtype.kind == "u" else to_float32(rows)
    flat, kinds = arrow.array(values.reshape(-1)), [kind]
    while arrow.types.is_fixed_size_list(kinds[-1].value_type):
        kinds.append(kinds[-1].value_type)
    for each in reversed(kinds):
        flat = arrow.FixedSizeListArray.from_arrays(flat, type=each)
    return flat


class ParquetTable(Table):
    """A Parquet file of labels, made by `write_parquet` or by hand; it needs pyarrow."""

    def __init__(self, path: Path) -> None:
        self._arrow, parquet = _packages()
        self._errors = (self._arrow.ArrowException, OSError)
        self.path = path
        if not path.is_file():
            raise MissingError(path, "no such file")
        refuse_pointer(path, path, StoreError)
        try:
            # Without whole row groups in memory, which others make as large as they like.
            self._file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        except self._errors as error:
            raise StoreError(path, f"is no Parquet file ({reason_of(error)})") from error
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        schema = self._file.schema_arrow
        self._names = [name for name in _WIDE if name in schema.names]
        self._known = set(schema.names)
        if not self._names:
            raise StoreError(
                self.path,
                "has no labels",
                expected=f"a column of {', '.join(_WIDE)}",
                found=", ".join(schema.names[:8]),
            )
        text = (schema.metadata or {}).get(ATTRIBUTE.encode())
        self.carried = None if text is None else self._parse_carried(text)
        self.num_samples = self._file.metadata.num_rows
        if self.num_samples < 1:
            raise StoreError(self.path, "has no rows")
        # Lists say only in the rows how long they are.
        first = next(self._batches(1))
        self.row_shapes = {name: first[name].shape[1:] for name in self._names}
        width = max(math.prod(shape) for shape in self.row_shapes.values())
        self._rows = self._batches(max(_GROUP_ELEMENTS // max(width, 1), 1))
        self._left: Block = {}

    def column(self, name: str) -> NDArray[Any] | None:
        """All of a narrow array."""
        if name not in self._known:
            return None
        try:
            column = self._file.read(columns=[name], use_threads=False).column(0)
        except self._errors as error:
            raise self._damaged(error) from error
        if not self._arrow.types.is_integer(column.type) or column.null_count:
            raise StoreError(
                self.path, name, expected="an integer in each row", found=str(column.type)
            )
        values: NDArray[Any] = column.to_numpy()
        return values

    def read(self, index: NDArray[np.int64]) -> Block:
        """The next rows of each wide array."""
        count, parts = len(index), [self._left] if self._left else []
        while sum(len(part[self._names[0]]) for part in parts) < count:
            parts.append(next(self._rows))
        rows = {name: np.concatenate([part[name] for part in parts]) for name in self._names}
        self._left = {name: each[count:] for name, each in rows.items()}
        return {name: each[:count] for name, each in rows.items()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _batches(self, rows: int) -> Iterator[Block]:
        try:
            for batch in self._file.iter_batches(
                batch_size=rows, columns=self._names, use_threads=False
            ):
                yield {name: self._dense(batch.column(name), name) for name in self._names}
        except self._errors as error:
            raise self._damaged(error) from error

    def _dense(self, column: Any, name: str) -> NDArray[Any]:
        # Lists of any kind to one array: all of one length, nothing left out.
        shape, types = [len(column)], self._arrow.types
        while (
            types.is_list(column.type)
            or types.is_large_list(column.type)
            or types.is_fixed_size_list(column.type)
        ):
            inner = column.flatten()
            shape.append(len(inner) // max(math.prod(shape), 1))
            lengths = column.value_lengths()
            if column.null_count or lengths.unique().to_pylist() != [shape[-1]]:
                raise StoreError(
                    self.path, f"{name}: rows differ in length", expected=f"{shape[-1]} numbers"
                )
            column = inner
        number = types.is_floating(column.type) or types.is_integer(column.type)
        if column.null_count or not number or len(shape) < 2:
            raise StoreError(
                self.path, name, expected="a list of numbers in each row", found=str(column.type)
            )
        values: NDArray[Any] = column.to_numpy(zero_copy_only=False).reshape(shape)
        return values

    def _damaged(self, error: Exception) -> Exception:
        if isinstance(error, MemoryError):
            return error
        return StoreError(self.path, f"is damaged ({reason_of(error)})")
