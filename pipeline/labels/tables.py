"""Tables of labels, .npz or Parquet, made into stores."""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

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
from ltd_pipe.labels.derive import (
    NewRows,
    Origin,
    chunk_rows,
    derive_store,
    foreign_attributes,
    stepwise,
)
from ltd_pipe.labels.foreign import match_rows
from ltd_pipe.labels.format import (
    ATTRIBUTE,
    StoreAttributes,
    parse_attributes,
    parse_object,
    to_float16,
    to_float32,
)
from ltd_pipe.labels.softmax import soften
from ltd_pipe.labels.writer import round_logits, round_soft_labels, round_topk
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from ltd_pipe.labels.foreign import ProvenStore
    from ltd_pipe.labels.join import ImagesLike


# --- A table of labels in a file of another format, read from its beginning to its end.


# The arrays that have an answer for each row.
WIDE = ("soft_labels", "logits", "topk_indices", "topk_probs")
CHUNK_ROWS = "chunk_rows"


@dataclass(frozen=True)
class Carried:
    """What a file that was made of a store says of that store.

    Attributes
    ----------
    attributes : StoreAttributes
    rows : int
        Rows per chunk: with them the store made of the file is the same to the byte.
    """

    attributes: StoreAttributes
    rows: int


class Columns(Protocol):
    """An opened file: `NpzColumns` or `ParquetColumns`.

    Attributes
    ----------
    path : Path
    carried : Carried or None
        None when the file was not made of a store.
    num_samples : int
    row_shapes : dict of str to tuple of int
        Of each wide array.
    """

    path: Path
    carried: Carried | None
    num_samples: int
    row_shapes: dict[str, tuple[int, ...]]

    def column(self, name: str) -> NDArray[Any] | None:
        """All of `labels` or `sample_hash`, or None when the file has none."""

    def take(self, count: int) -> dict[str, NDArray[Any]]:
        """The next rows of each wide array."""

    def close(self) -> None:
        """Close the file."""


def carried_text(source: ProvenStore) -> str:
    """The attributes and the rows per chunk of a store, as JSON."""
    content = {ATTRIBUTE: source.store.attributes.to_json(), CHUNK_ROWS: source.rows}
    return json.dumps(content, allow_nan=False)


def parse_carried(text: str | bytes, where: Path) -> Carried:
    """Read what `carried_text` wrote.

    Raises
    ------
    StoreError
        When it is damaged.
    """
    content = parse_object(text.encode() if isinstance(text, str) else text, where)
    rows = content.get(CHUNK_ROWS)
    attributes = parse_attributes(content.get(ATTRIBUTE), where)
    if type(rows) is not int or not 1 <= rows <= attributes.num_samples:
        raise StoreError(
            where, CHUNK_ROWS, expected=f"1 to {attributes.num_samples}", found=repr(rows)[:40]
        )
    return Carried(attributes, rows)


# --- Stores as NumPy's .npz: one file that every Python has a reader for.
#
# Keys: `soft_labels`, and `logits` where there are some, or `topk_indices` and `topk_probs`;
# `labels`; `sample_hash`; all as in the store. `ltd_pipe` is a text: JSON of the store's attribute
# and of its rows per chunk. No member is compressed, and none is pickled.


_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_STEP_BYTES = 2**23
# As much as a store's metadata may have.
_MAX_TEXT_BYTES = 2**26
_MAX_HEADER_BYTES = 10_000


def write_npz(
    source: ProvenStore, target: Path, progress: Callable[[int], None] | None = None
) -> None:
    """Write a store as one .npz file, in the memory of few rows.

    The same store gives the same bytes.

    Parameters
    ----------
    source : ProvenStore
    target : Path
        Replaced when it is there.
    progress : callable, optional
        Called with the number of samples just written of one array.
    """
    text = np.array(carried_text(source))
    with staged(target) as beside, zipfile.ZipFile(beside, "w", allowZip64=True) as archive:
        for name in (*source.names, "labels", "sample_hash"):
            _write_member(archive, source, name, progress if name == source.names[0] else None)
        with _new_member(archive, ATTRIBUTE) as member:
            np.lib.format.write_array(member, text, allow_pickle=False)


def _new_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # Of no time, so that equal stores are equal files.
    return archive.open(zipfile.ZipInfo(f"{name}.npy", _FIRST_DAY), "w", force_zip64=True)


def _write_member(
    archive: zipfile.ZipFile,
    source: ProvenStore,
    name: str,
    progress: Callable[[int], None] | None,
) -> None:
    layout = source.store.arrays[name].layout
    header = {
        "descr": np.lib.format.dtype_to_descr(layout.dtype),
        "fortran_order": False,
        "shape": layout.shape,
    }
    step = max(_STEP_BYTES // (layout.payload_bytes // layout.rows), 1)
    with _new_member(archive, name) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for first in range(0, layout.num_samples, step):
            index = np.arange(first, min(first + step, layout.num_samples))
            member.write(np.ascontiguousarray(source.gather(name, index)).data)
            if progress is not None:
                progress(len(index))


class NpzColumns:
    """A .npz file of labels, made by `write_npz` or by hand; see `Columns`.

    Parameters
    ----------
    path : Path

    Raises
    ------
    MissingError, StoreError
        When it is not there, is no .npz, or holds what is no array of numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_pointer(path, path, StoreError)
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise MissingError(path, "no such file") from error
        except (zipfile.BadZipFile, OSError) as error:
            raise StoreError(path, f"is no .npz file ({reason_of(error)})") from error
        names = [name.removesuffix(".npy") for name in self._archive.namelist()]
        self._known, self._members = set(names), dict[str, _Member]()
        try:
            self._open_members()
            self.carried = self._carried()
        except BaseException:
            self.close()
            raise
        self.num_samples = next(iter(self._members.values())).shape[0]
        self.row_shapes = {name: member.shape[1:] for name, member in self._members.items()}

    def _open_members(self) -> None:
        for name in WIDE:
            if name in self._known:
                self._members[name] = _Member(self, name)
        if not self._members:
            raise StoreError(
                self.path,
                "has no labels",
                expected=f"a key of {', '.join(WIDE)}",
                found=", ".join(sorted(self._known)[:8]) or "nothing",
            )
        counts = {name: member.shape[0] for name, member in self._members.items()}
        if len(set(counts.values())) > 1:
            raise StoreError(self.path, "arrays differ in their rows", found=counts)

    def _carried(self) -> Any:
        if ATTRIBUTE not in self._known:
            return None
        with contextlib.closing(_Member(self, ATTRIBUTE, text=True)) as member:
            text = member.read_all()
        return parse_carried(str(text), self.path)

    def column(self, name: str) -> NDArray[Any] | None:
        """All of a narrow array."""
        if name not in self._known:
            return None
        with contextlib.closing(_Member(self, name)) as member:
            if member.shape != (self.num_samples,) or member.dtype.kind not in "iu":
                raise StoreError(
                    self.path,
                    name,
                    expected=f"integers of shape ({self.num_samples},)",
                    found=f"{member.dtype} {member.shape}",
                )
            return member.read_all()

    def take(self, count: int) -> dict[str, NDArray[Any]]:
        """The next rows of each wide array."""
        return {name: member.take(count) for name, member in self._members.items()}

    def close(self) -> None:
        """Close the file."""
        for member in self._members.values():
            member.close()
        self._archive.close()

    def open_member(self, name: str) -> IO[bytes]:
        """The bytes of one member."""
        return self._archive.open(f"{name}.npy")


class _Member:
    # One array of the archive, read from its beginning to its end.
    def __init__(self, columns: NpzColumns, name: str, *, text: bool = False) -> None:
        self._where, self._name = columns.path, name
        self._stream = columns.open_member(name)
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


# --- Stores as Parquet tables: for DuckDB, pandas, Polars and Hugging Face's data sets.
#
# A row per sample. Columns: `sample_hash` (uint64), `labels` (int32), and `soft_labels`, and
# `logits` where there are some, or `topk_indices` and `topk_probs`: lists of fixed length, of lists
# where there are several views. Numbers are float32, which holds float16 exactly and which every
# reader knows. The file's metadata have `ltd_pipe`: JSON of the store's attribute and of its rows
# per chunk.


# Row groups of 4 MiB per column: memory for few, and worth a request to whoever reads one.
_GROUP_ELEMENTS = 2**20


def write_parquet(
    source: ProvenStore, target: Path, progress: Callable[[int], None] | None = None
) -> None:
    """Write a store as one Parquet file, in the memory of one row group.

    Parameters
    ----------
    source : ProvenStore
    target : Path
        Replaced when it is there.
    progress : callable, optional
        Called with the number of samples just written.

    Raises
    ------
    MachineError
        When pyarrow is not installed.
    """
    arrow, parquet = _packages()
    store = source.store
    schema = arrow.schema(
        [("sample_hash", arrow.uint64()), ("labels", arrow.int32())]
        + [(name, _type(arrow, source, name)) for name in source.names],
        metadata={ATTRIBUTE: carried_text(source)},
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
                _lists(arrow, source.gather(name, index), _type(arrow, source, name))
                for name in source.names
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


def _type(arrow: Any, source: ProvenStore, name: str) -> Any:
    layout = source.store.arrays[name].layout
    kind = arrow.uint32() if name == "topk_indices" else arrow.float32()
    for length in reversed(layout.row_shape):
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


class ParquetColumns:
    """A Parquet file of labels, made by `write_parquet` or by hand; see `Columns`.

    Parameters
    ----------
    path : Path

    Raises
    ------
    MachineError
        When pyarrow is not installed.
    MissingError, StoreError
        When it is not there, is no Parquet file, or has no column of labels.
    """

    def __init__(self, path: Path) -> None:
        self._arrow, parquet = _packages()
        self.path = path
        if not path.is_file():
            raise MissingError(path, "no such file")
        refuse_pointer(path, path, StoreError)
        try:
            # Without whole row groups in memory, which others make as large as they like.
            self._file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        except (self._arrow.ArrowException, OSError) as error:
            raise StoreError(path, f"is no Parquet file ({reason_of(error)})") from error
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        schema = self._file.schema_arrow
        self._names = [name for name in WIDE if name in schema.names]
        self._known = set(schema.names)
        if not self._names:
            raise StoreError(
                self.path,
                "has no labels",
                expected=f"a column of {', '.join(WIDE)}",
                found=", ".join(schema.names[:8]),
            )
        text = (schema.metadata or {}).get(ATTRIBUTE.encode())
        self.carried: Carried | None = None if text is None else parse_carried(text, self.path)
        self.num_samples: int = self._file.metadata.num_rows
        if self.num_samples < 1:
            raise StoreError(self.path, "has no rows")
        # Lists say only in the rows how long they are.
        first = next(self._batches(1))
        self.row_shapes = {name: first[name].shape[1:] for name in self._names}
        width = max(math.prod(shape) for shape in self.row_shapes.values())
        self._rows = self._batches(max(_GROUP_ELEMENTS // max(width, 1), 1))
        self._left: dict[str, NDArray[Any]] = {}

    def column(self, name: str) -> NDArray[Any] | None:
        """All of a narrow array."""
        if name not in self._known:
            return None
        try:
            column = self._file.read(columns=[name], use_threads=False).column(0)
        except (self._arrow.ArrowException, OSError) as error:
            raise self._damaged(error) from error
        if not self._arrow.types.is_integer(column.type) or column.null_count:
            raise StoreError(
                self.path, name, expected="an integer in each row", found=str(column.type)
            )
        values: NDArray[Any] = column.to_numpy()
        return values

    def take(self, count: int) -> dict[str, NDArray[Any]]:
        """The next rows of each wide array."""
        parts = [self._left] if self._left else []
        while sum(len(part[self._names[0]]) for part in parts) < count:
            parts.append(next(self._rows))
        rows = {name: np.concatenate([part[name] for part in parts]) for name in self._names}
        self._left = {name: each[count:] for name, each in rows.items()}
        return {name: each[:count] for name, each in rows.items()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _batches(self, rows: int) -> Iterator[dict[str, NDArray[Any]]]:
        try:
            for batch in self._file.iter_batches(
                batch_size=rows, columns=self._names, use_threads=False
            ):
                yield {name: self._dense(batch.column(name), name) for name in self._names}
        except (self._arrow.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    def _dense(self, column: Any, name: str) -> NDArray[Any]:
        # Lists of any kind to one array: all of one length, nothing left out.
        shape = [len(column)]
        types = self._arrow.types
        while (
            types.is_list(column.type)
            or types.is_large_list(column.type)
            or (types.is_fixed_size_list(column.type))
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


# --- Tables of labels, .npz or Parquet, made into stores.


_ARRAYS = (
    frozenset({"soft_labels"}),
    frozenset({"logits"}),
    frozenset({"soft_labels", "logits"}),
    frozenset({"topk_indices", "topk_probs"}),
)


def store_of_table(
    columns: Columns,
    target: Path,
    *,
    origin: Origin | None = None,
    images: ImagesLike | None = None,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Make a store of a table, in the memory of one chunk.

    Parameters
    ----------
    columns : Columns
        An opened file. One that was made of a store carries that store's attributes, and gives
        that store again, to the byte.
    target : Path
    origin : Origin, optional
        What is known of the labels, where the file does not carry it.
    images : Beton, optional
        The images of the rows, where the file does not carry their classes: its rows must have
        a `sample_hash`, and are of these images.
    replace : bool
        Replace a store that is there.
    progress : callable, optional
        Called with the number of samples just written, N in all.

    Returns
    -------
    str
        The store's identity.

    Raises
    ------
    StoreError
        When the file is damaged, or a row is no distribution.
    JoinError
        When the rows are of other images.
    ParamsError
        When the file carries no attributes, and no images are given.
    """
    found = frozenset(columns.row_shapes)
    if found not in _ARRAYS:
        raise StoreError(
            columns.path,
            "has arrays that make no store",
            expected="soft_labels, logits, both, or topk_indices and topk_probs",
            found=", ".join(sorted(found)),
        )
    attributes, labels, hashes, rows = (
        _carried(columns) if columns.carried else _joined(columns, origin or Origin(), images)
    )
    _require_shapes(columns, attributes)
    taking = _Taking(columns, attributes)
    block = stepwise(taking.block, attributes)
    new = NewRows(labels, hashes, taking.names, block)
    return derive_store(
        target, attributes, new, rows=rows, replace=replace, progress=progress, verify=True
    )


def _narrow(columns: Columns, name: str, dtype: type[np.integer[Any]]) -> NDArray[Any] | None:
    values = columns.column(name)
    if values is None:
        return None
    limits = np.iinfo(dtype)
    if int(values.min()) < limits.min or int(values.max()) > limits.max:
        raise StoreError(
            columns.path, name, expected=np.dtype(dtype).name, found=f"up to {values.max()}"
        )
    return values.astype(dtype)


def _carried(
    columns: Columns,
) -> tuple[StoreAttributes, NDArray[np.int32], NDArray[np.uint64], int]:
    assert columns.carried is not None  # noqa: S101
    attributes = columns.carried.attributes
    labels = _narrow(columns, "labels", np.int32)
    hashes = _narrow(columns, "sample_hash", np.uint64)
    if labels is None or hashes is None:
        raise StoreError(columns.path, "lacks the labels or the sample_hash of the store")
    if fingerprint(attributes.class_names, labels, hashes) != attributes.dataset.fingerprint:
        raise StoreError(
            columns.path,
            "its rows are not those of the store that it says it was made of: the fingerprint of "
            "labels and sample_hash differs",
            remedy="Remove the ltd_pipe metadata, and name the images with --data.",
        )
    return attributes, labels, hashes, columns.carried.rows


def _joined(
    columns: Columns, origin: Origin, images: ImagesLike | None
) -> tuple[StoreAttributes, NDArray[np.int32], NDArray[np.uint64], int]:
    hashes = _narrow(columns, "sample_hash", np.uint64)
    if hashes is None:
        raise JoinError(
            columns.path,
            "has no sample_hash, so that nothing says which image a row belongs to",
            remedy="Add it: BLAKE2b of 8 bytes over each image's file, read as a little-endian "
            "integer.",
        )
    if images is None:
        raise ParamsError(
            columns.path,
            "was not made of a store, and knows neither its classes nor its images",
            remedy="Name the images with --data.",
        )
    known = _narrow(columns, "labels", np.int32)
    # Where the file knows no classes, by hash alone: they are the data's to say.
    nothing = (np.zeros(len(hashes), np.int32), np.zeros_like(images.labels))
    ours, theirs = nothing if known is None else (known, images.labels)
    pairs = match_rows((hashes, ours), (images.sample_hash, theirs))
    if len(pairs.only_first):
        row = pairs.only_first[0]
        raise JoinError(
            columns.path,
            f"row {row} is no image of the data, or one that another row has "
            f"({len(pairs.only_first)} such)",
            found=f"sample_hash {hashes[row]:016x}",
        )
    labels = images.labels[pairs.second]
    if known is not None and (known != labels).any():
        row = int(np.argmax(known != labels))
        raise JoinError(
            columns.path,
            f"row {row}: label",
            expected=f"{labels[row]} of the data",
            found=known[row],
        )
    shape = columns.row_shapes.get("topk_probs")
    source = f"{columns.path.suffix.removeprefix('.') or 'table'}, SHA-256 "
    sources = (source + sha256_file(columns.path),)
    top_k = shape[-1] if shape else None
    attributes = foreign_attributes(origin, images.manifest, labels, hashes, sources, top_k)
    return attributes, labels, hashes, chunk_rows([], attributes)


def _require_shapes(columns: Columns, attributes: StoreAttributes) -> None:
    top_k = attributes.top_k.k if attributes.top_k else None
    if (top_k is not None) != ("topk_probs" in columns.row_shapes):
        raise StoreError(columns.path, "is dense where its attributes say top-k, or the reverse")
    if columns.num_samples != attributes.num_samples:
        raise StoreError(
            columns.path, "rows", expected=attributes.num_samples, found=columns.num_samples
        )
    for name, shape in columns.row_shapes.items():
        expected = attributes.layout(name, 1, top_k).row_shape
        if shape != expected:
            raise StoreError(
                columns.path,
                f"{name}: numbers per row",
                expected=" × ".join(map(str, expected)),
                found=" × ".join(map(str, shape)),
            )


class _Taking:
    # The rows of a table as a store has them: checked as a teacher's answers are.
    def __init__(self, columns: Columns, attributes: StoreAttributes) -> None:
        self._columns, self._attributes = columns, attributes
        self._given = frozenset(columns.row_shapes)
        dense = ("soft_labels", "logits") if "logits" in self._given else ("soft_labels",)
        self.names = ("topk_indices", "topk_probs") if "topk_probs" in self._given else dense

    def block(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        rows, where = self._columns.take(last - first), self._columns.path
        if "topk_probs" in rows:
            indices, probs = round_topk(
                rows["topk_indices"].astype(np.int64),
                rows["topk_probs"],
                self._attributes.num_classes,
                first,
                where,
            )
            return {"topk_indices": indices, "topk_probs": probs}
        taken = {}
        if "logits" in rows:
            taken["logits"] = round_logits(rows["logits"], first, where)
        if "soft_labels" in rows:
            taken["soft_labels"] = round_soft_labels(rows["soft_labels"], first, where)
        else:
            soft = soften(taken["logits"], self._attributes.temperature)
            taken["soft_labels"] = to_float16(soft)
        return taken
