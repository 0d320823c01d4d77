"""Tables of labels, .npz or Parquet: written of stores, and made into stores.

Both carry all of a store: a table that was made of one gives that store again, to the byte. Beside
the arrays they have `ltd_pipe`, JSON of the store's attribute, of its rows per chunk and of the
SHA-256 of each array of answers: rows that were changed are not that teacher's any more.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import (
    DAMAGED_ZIP,
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
from ltd_pipe.labels.convert import LabelFiles, Origin, convert
from ltd_pipe.labels.derive import answer_arrays, row_blocks
from ltd_pipe.labels.format import (
    ATTRIBUTE,
    StoreAttributes,
    parse_attributes,
    parse_object,
    to_float32,
)
from ltd_pipe.labels.join import ImageRows, partners
from ltd_pipe.labels.reader import require_memory
from ltd_pipe.labels.softmax import require_class_numbers
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
_CHUNK_ROWS, _SHA256 = "chunk_rows", "sha256"


class Carried(NamedTuple):
    """What a table says of the store that it was made of.

    `sha256` is that of each array's rows, one after the other in the store's dtype.
    """

    attributes: StoreAttributes
    rows: int
    sha256: dict[str, str]


def _carried_text(store: SoftLabels) -> str:
    hashes = {name: hashlib.sha256() for name in answer_arrays(store)}
    for index in row_blocks(0, store.num_samples, store.num_views * store.num_classes):
        for name, found in hashes.items():
            found.update(np.ascontiguousarray(store.arrays[name].gather(index)).data)
    content = {
        ATTRIBUTE: store.attributes.to_json(),
        _CHUNK_ROWS: store.arrays["labels"].layout.rows,
        _SHA256: {name: found.hexdigest() for name, found in hashes.items()},
    }
    return json.dumps(content, allow_nan=False)


class Table(LabelFiles):
    """An opened file, read from its beginning to its end.

    Attributes
    ----------
    carried : Carried or None
        What it says of the store that it was made of.
    num_samples : int
    row_shapes : dict of str to tuple of int
        Of each array that has an answer for each row.
    """

    carried: Carried | None = None
    num_samples: int
    row_shapes: dict[str, tuple[int, ...]]
    # What this kind of file is called, what its arrays are, and what its package raises.
    kind: str
    unit: str
    errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_pointer(path, path, StoreError)
        try:
            self._names = self._open()
        except FileNotFoundError as error:
            raise MissingError(path, "no such file") from error
        except self.errors as error:
            raise StoreError(path, f"is no {self.kind} file ({reason_of(error)})") from error
        try:
            self._look([name for name in _WIDE if name in self._names])
        except BaseException:
            self.close()
            raise

    def _look(self, names: list[str]) -> None:
        if not names:
            expected = f"a {self.unit} of {', '.join(_WIDE)}"
            found = ", ".join(self._names[:8]) or "nothing"
            raise StoreError(self.path, "has no labels", expected=expected, found=found)
        self.arrays = frozenset(names)
        if (text := self._text()) is not None:
            content = parse_object(text, self.path)
            rows = content.get(_CHUNK_ROWS)
            known = parse_attributes(content.get(ATTRIBUTE), self.path)
            if type(rows) is not int or rows < 1:
                expected, found = "1 or more", repr(rows)[:40]
                raise StoreError(self.path, _CHUNK_ROWS, expected=expected, found=found)
            hashes = content.get(_SHA256)
            self.carried = Carried(known, rows, hashes if isinstance(hashes, dict) else {})
        self.num_samples, self.row_shapes = self._begin(names)
        # Of zeros a compressed file holds a thousand times its size.
        require_memory(self.path, self.num_samples, 16 * self.num_samples)
        ranks = self.row_shapes.get("topk_probs")
        self.top_k = ranks[-1] if ranks else None

    @abc.abstractmethod
    def _open(self) -> list[str]:
        """Open the file; the names of its arrays."""

    @abc.abstractmethod
    def _text(self) -> bytes | None:
        """What it carries of the store that it was made of."""

    @abc.abstractmethod
    def _begin(self, names: list[str]) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Number of rows, and of the wide arrays the shape of a row."""

    @abc.abstractmethod
    def _column(self, name: str) -> NDArray[Any]:
        """All of an array of one integer for each row."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file."""

    def origin(self) -> str:
        """The file's kind and hash."""
        kind = self.path.suffix.removeprefix(".") or "table"
        return f"{kind}, SHA-256 {sha256_file(self.path)}"

    def column(self, name: str, dtype: type[np.integer[Any]]) -> NDArray[Any] | None:
        """All of `labels` or `sample_hash`, or None when the file has none."""
        if name not in self._names:
            return None
        values, limits = self._column(name), np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            found = f"{values.dtype} from {values.min()} to {values.max()}"
            expected = np.dtype(dtype).name
            # Hashes that somebody kept in NumPy's usual integers.
            same_bits = values.dtype == np.int64 and dtype is np.uint64
            remedy = "Save it as uint64: numpy's it.view(numpy.uint64)." if same_bits else ""
            raise StoreError(self.path, name, expected=expected, found=found, remedy=remedy)
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
        labels, hashes = self.column("labels", np.int32), self.column("sample_hash", np.uint64)
        if self.carried is None:
            attributes, labels, hashes = self._join(labels, hashes, origin or Origin(), images)
            self._require_shapes(attributes)
            return convert(self, attributes, labels, hashes)
        attributes = self.carried.attributes
        if labels is None or hashes is None:
            raise StoreError(self.path, "lacks the labels or the sample_hash of the store")
        require_class_numbers(self.path, "labels", labels, attributes.num_classes, 0, "")
        found = fingerprint(attributes.class_names, labels, hashes)
        expected = attributes.dataset.fingerprint
        self._require_carried("fingerprint of labels and sample_hash", expected, found)
        self._require_shapes(attributes)
        store = convert(self, attributes, labels, hashes, self.carried.rows)
        return replace(store, block=self._compared(store, self.carried.sha256))

    def _compared(
        self, store: DerivedStore, known: dict[str, str]
    ) -> Callable[[NDArray[np.int64]], Block]:
        # The store's rows, which come in order, and with the last of them the comparison.
        top_k = store.attributes.top_k.k if store.attributes.top_k else None
        dtypes = {name: store.attributes.layout(name, 1, top_k).dtype for name in store.arrays}
        hashes = {name: hashlib.sha256() for name in store.arrays}

        def block(index: NDArray[np.int64]) -> Block:
            rows = store.block(index)
            for name, found in hashes.items():
                found.update(np.ascontiguousarray(rows[name], dtypes[name]).data)
                if index[-1] == self.num_samples - 1:
                    expected = known.get(name)
                    self._require_carried(f"SHA-256 of {name}", expected, found.hexdigest())
            return rows

        return block

    def _require_carried(self, what: str, expected: str | None, found: str) -> None:
        if found != expected:
            temperature = self.carried.attributes.temperature if self.carried else 1
            raise StoreError(
                self.path,
                "its rows are not those of the store that it says it was made of: the "
                f"{what} differs",
                remedy="Remove the ltd_pipe metadata, name the images with --data, and say with "
                f"options what it said, such as --temperature {temperature:g}.",
            )

    def _join(
        self,
        labels: NDArray[np.int32] | None,
        hashes: NDArray[np.uint64] | None,
        origin: Origin,
        images: ImagesLike | None,
    ) -> tuple[StoreAttributes, NDArray[np.int32], NDArray[np.uint64]]:
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
        theirs = images.labels
        if labels is None:
            # By hash alone: the classes are the data's to say.
            labels, theirs = np.zeros(len(hashes), np.int32), np.zeros_like(theirs)
        at = partners(
            ImageRows(hashes, labels, self.path),
            ImageRows(images.sample_hash, theirs, "the data", "sample"),
            whole=False,
        )
        labels = images.labels[at]
        attributes = origin.attributes(images.manifest, labels, hashes, self.top_k)
        return attributes, labels, hashes

    def _require_shapes(self, attributes: StoreAttributes) -> None:
        top_k = attributes.top_k.k if attributes.top_k else None
        if (top_k is not None) != ("topk_probs" in self.arrays):
            what = "is dense where its attributes say top-k, or the reverse"
            raise StoreError(self.path, what)
        compared: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        compared["rows"] = (attributes.num_samples,), (self.num_samples,)
        for name, shape in self.row_shapes.items():
            wanted = attributes.layout(name, 1, top_k).row_shape
            compared[f"{name}: numbers per row"] = wanted, shape
        for what, (wanted, shape) in compared.items():
            if wanted != shape:
                expected, found = (" × ".join(map(str, each)) for each in (wanted, shape))
                raise StoreError(self.path, what, expected=expected, found=found)


# --- NumPy's .npz: one file that every Python has a reader for.
#
# Keys: `soft_labels`, and `logits` where there are some, or `topk_indices` and `topk_probs`;
# `labels`; `sample_hash`; all as in the store; and `ltd_pipe`, a text. No member is compressed, and
# none is pickled.


_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
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
            descr = np.lib.format.dtype_to_descr(layout.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": layout.shape}
            with new_member(name) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for index in row_blocks(0, layout.num_samples, math.prod(layout.row_shape)):
                    member.write(np.ascontiguousarray(array.gather(index)).data)
                    if progress is not None and name == wide[0]:
                        progress(len(index))
        with new_member(ATTRIBUTE) as member:
            text = np.array(_carried_text(store))
            np.lib.format.write_array(member, text, allow_pickle=False)


class NpzTable(Table):
    """A .npz file of labels, made by `write_npz` or by hand."""

    kind, unit, errors = ".npz", "key", DAMAGED_ZIP

    def _open(self) -> list[str]:
        self._opened = contextlib.ExitStack()
        self._archive = self._opened.enter_context(zipfile.ZipFile(self.path))
        return sorted(name.removesuffix(".npy") for name in self._archive.namelist())

    def _text(self) -> bytes | None:
        if ATTRIBUTE not in self._names:
            return None
        member = _Member(self, ATTRIBUTE)
        short = member.shape == () and member.dtype.itemsize <= _MAX_TEXT_BYTES
        member.require("U", "a text", short)
        return str(member.take(1)).encode()

    def _begin(self, names: list[str]) -> tuple[int, dict[str, tuple[int, ...]]]:
        self._members = {name: _Member(self, name) for name in names}
        for member in self._members.values():
            member.require("fiu", "numbers, row after row", min(member.shape, default=0) > 0)
        counts = {name: member.shape[0] for name, member in self._members.items()}
        if len(set(counts.values())) > 1:
            raise StoreError(self.path, "arrays differ in their rows", found=counts)
        shapes = {name: member.shape[1:] for name, member in self._members.items()}
        return counts[names[0]], shapes

    def _column(self, name: str) -> NDArray[Any]:
        member, shape = _Member(self, name), (self.num_samples,)
        member.require("iu", f"integers of shape {shape}", member.shape == shape)
        return member.take(self.num_samples)

    def read(self, index: NDArray[np.int64]) -> Block:
        """The next rows of each wide array."""
        return {name: member.take(len(index)) for name, member in self._members.items()}

    def open(self, name: str) -> IO[bytes]:
        """The bytes of one array with its header."""
        return self._opened.enter_context(self._archive.open(f"{name}.npy"))

    def close(self) -> None:
        """Close the file."""
        self._opened.close()


class _Member:
    """One array of the archive, read from its beginning to its end."""

    def __init__(self, table: NpzTable, name: str) -> None:
        self._where, self._name = table.path, name
        try:
            self._stream = table.open(name)
            version = np.lib.format.read_magic(self._stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            header = read(self._stream, max_header_size=_MAX_HEADER_BYTES)
        except (*DAMAGED_ZIP, KeyError, SyntaxError) as error:
            what = f"{name}: is no array that NumPy wrote ({reason_of(error)})"
            raise StoreError(self._where, what) from error
        self.shape, self._by_column, self.dtype = header
        self._left = self.shape[0] if self.shape else 1

    def require(self, kinds: str, expected: str, fits: bool) -> None:
        """Refuse numbers of other kinds than NumPy's letters say, or that do not fit."""
        if self.dtype.kind not in kinds or self._by_column or not fits:
            found = f"{self.dtype} {self.shape}{' by column' if self._by_column else ''}"
            remedy = "Save it anew, as numpy.ascontiguousarray(it)." if self._by_column else ""
            raise StoreError(self._where, self._name, expected=expected, found=found, remedy=remedy)

    def take(self, count: int) -> NDArray[Any]:
        """The next rows, or the whole of an array without rows."""
        shape = (count, *self.shape[1:]) if self.shape else ()
        size = math.prod(shape) * self.dtype.itemsize
        try:
            content = self._stream.read(size)
            self._left -= count
            # What remains after the last row; its end is also where the checksum is compared.
            more = self._stream.read(1) if self._left == 0 else b""
        except DAMAGED_ZIP as error:
            what = f"{self._name} is damaged ({reason_of(error)})"
            raise StoreError(self._where, what) from error
        if len(content) != size or more:
            raise StoreError(self._where, f"{self._name} is cut short, or longer than it says")
        rows: NDArray[Any] = np.frombuffer(content, self.dtype).reshape(shape)
        return rows


# --- Parquet: for DuckDB, pandas, Polars and Hugging Face's data sets.
#
# A row per sample. Columns: `sample_hash` (uint64), `labels` (int32), and `soft_labels`, and
# `logits` where there are some, or `topk_indices` and `topk_probs`: lists of fixed length, of lists
# where there are several views. Numbers are float32, which holds float16 exactly and which every
# reader knows. `ltd_pipe` is in the file's metadata.


# Read at a time.
_GROUP_ELEMENTS = 2**20


def write_parquet(
    store: SoftLabels, target: Path, progress: Callable[[int], None] | None = None
) -> None:
    """Write a store as one Parquet file, in the memory of one row group; else as `write_npz`."""
    arrow, parquet = _packages()

    def rows(index: NDArray[np.int64]) -> Any:
        found = {"sample_hash": store.sample_hash[index], "labels": store.labels[index]}
        columns = {name: arrow.array(each) for name, each in found.items()}
        for name in answer_arrays(store):
            answers = store.arrays[name].gather(index)
            wide = answers.dtype.kind == "u"
            values = answers.astype(np.uint32) if wide else to_float32(answers)
            columns[name] = arrow.array(values.reshape(-1))
            for length in reversed(values.shape[1:]):
                columns[name] = arrow.FixedSizeListArray.from_arrays(columns[name], length)
        return arrow.table(columns)

    schema = rows(np.arange(1)).schema.with_metadata({ATTRIBUTE: _carried_text(store)})
    # Row groups of 4 MiB per column: memory for few, and worth a request to whoever reads one.
    width = store.num_views * (store.top_k or store.num_classes)
    with (
        staged(target) as beside,
        parquet.ParquetWriter(beside, schema, compression="zstd", use_dictionary=False) as writer,
    ):
        for index in row_blocks(0, store.num_samples, width):
            writer.write_table(rows(index))
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


class ParquetTable(Table):
    """A Parquet file of labels, made by `write_parquet` or by hand; it needs pyarrow."""

    kind, unit = "Parquet", "column"

    def _open(self) -> list[str]:
        self._arrow, parquet = _packages()
        self.errors = (self._arrow.ArrowException, OSError)
        # Without whole row groups in memory, which others make as large as they like.
        self._file = parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=2**20)
        return list(self._file.schema_arrow.names)

    def _text(self) -> bytes | None:
        return (self._file.schema_arrow.metadata or {}).get(ATTRIBUTE.encode())

    def _begin(self, names: list[str]) -> tuple[int, dict[str, tuple[int, ...]]]:
        count = self._file.metadata.num_rows
        if count < 1:
            raise StoreError(self.path, "has no rows")
        # Lists say only in the rows how long they are.
        shapes = {name: rows.shape[1:] for name, rows in next(self._batches(names, 1)).items()}
        width = max(math.prod(shape) for shape in shapes.values())
        self._rows = self._batches(names, max(_GROUP_ELEMENTS // max(width, 1), 1))
        self._left: Block = {}
        return count, shapes

    def _column(self, name: str) -> NDArray[Any]:
        try:
            column = self._file.read(columns=[name], use_threads=False).column(0)
        except self.errors as error:
            raise self._damaged(error) from error
        if not self._arrow.types.is_integer(column.type) or column.null_count:
            expected, found = "an integer in each row", str(column.type)
            raise StoreError(self.path, name, expected=expected, found=found)
        values: NDArray[Any] = column.to_numpy()
        return values

    def read(self, index: NDArray[np.int64]) -> Block:
        """The next rows of each wide array."""
        count, parts = len(index), [self._left] if self._left else []
        while sum(len(next(iter(part.values()))) for part in parts) < count:
            parts.append(next(self._rows))
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._left = {name: each[count:] for name, each in rows.items()}
        return {name: each[:count] for name, each in rows.items()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _batches(self, names: Sequence[str], rows: int) -> Iterator[Block]:
        try:
            for batch in self._file.iter_batches(rows, columns=names, use_threads=False):
                yield {name: self._dense(batch.column(name), name) for name in names}
        except self.errors as error:
            raise self._damaged(error) from error

    def _dense(self, column: Any, name: str) -> NDArray[Any]:
        # Lists of any kind to one array: all of one length, nothing left out.
        shape, arrow = [len(column)], self._arrow
        while isinstance(column, arrow.ListArray | arrow.LargeListArray | arrow.FixedSizeListArray):
            inner = column.flatten()
            shape.append(len(inner) // max(math.prod(shape), 1))
            lengths = column.value_lengths()
            if column.null_count or lengths.unique().to_pylist() != [shape[-1]]:
                raise StoreError(
                    self.path, f"{name}: rows differ in length", expected=f"{shape[-1]} numbers"
                )
            column = inner
        number = arrow.types.is_floating(column.type) or arrow.types.is_integer(column.type)
        if column.null_count or not number or len(shape) < 2:
            expected, found = "a list of numbers in each row", str(column.type)
            raise StoreError(self.path, name, expected=expected, found=found)
        values: NDArray[Any] = column.to_numpy(zero_copy_only=False).reshape(shape)
        return values

    def _damaged(self, error: Exception) -> Exception:
        if isinstance(error, MemoryError):
            return error
        return StoreError(self.path, f"is damaged ({reason_of(error)})")
