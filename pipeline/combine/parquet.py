"""Stores as Parquet tables: for DuckDB, pandas, Polars and Hugging Face's data sets.

A row per sample. Columns: `sample_hash` (uint64), `labels` (int32), and `soft_labels`, and
`logits` where there are some, or `topk_indices` and `topk_probs`: lists of fixed length, of lists
where there are several views. Numbers are float32, which holds float16 exactly and which every
reader knows. The file's metadata have `ltd_pipe`: JSON of the store's attribute and of its rows
per chunk.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.combine.columns import WIDE, Carried, carried_text, parse_carried
from pipeline.errors import (
    MachineError,
    MissingError,
    StoreError,
    install_extra,
    reason_of,
    refuse_pointer,
)
from pipeline.labels.format import ATTRIBUTE
from pipeline.labels.half import to_float32
from pipeline.publish import staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.source import ProvenStore

__all__ = ["ParquetColumns", "write_parquet"]

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
