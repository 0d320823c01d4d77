"""Stores as NumPy's .npz: one file that every Python has a reader for.

Keys: `soft_labels`, and `logits` where there are some, or `topk_indices` and `topk_probs`;
`labels`; `sample_hash`; all as in the store. `ltd_pipe` is a text: JSON of the store's attribute
and of its rows per chunk. No member is compressed, and none is pickled.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pipeline.combine.columns import WIDE, carried_text, parse_carried
from pipeline.errors import MissingError, StoreError, reason_of, refuse_pointer
from pipeline.labels.format import ATTRIBUTE
from pipeline.publish import staged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.source import ProvenStore

__all__ = ["NpzColumns", "write_npz"]

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
