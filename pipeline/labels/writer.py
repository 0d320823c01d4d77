"""Laying out a store's files in a folder that nobody reads yet."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ltd_pipe.background import Background
from ltd_pipe.errors import JoinError, MissingError, ParamsError, StateError, StoreError, WriteError
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.card import write_card
from ltd_pipe.labels.format import (
    ATTRIBUTE,
    DistanceFacts,
    StoreAttributes,
    StoreFacts,
    TopKFacts,
    chunk_bytes,
    row_bytes,
    row_sum_tolerance,
    rows_per_chunk,
    to_float16,
    to_float32,
    write_chunk,
)
from ltd_pipe.labels.manifest import MANIFEST, StoreFolder, format_manifest
from ltd_pipe.labels.reader import WHOLE, StoredArray, map_chunk
from ltd_pipe.labels.softmax import (
    bisect_temperature,
    largest,
    mean_softened,
    require_temperature,
    softened_half,
    top_probability,
    total_variation,
)
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import (
    flush_tree,
    remove_state,
    replace_tree,
    require_free,
    write_json,
    write_text,
    writing,
)
from ltd_pipe.text import differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from ltd_pipe.labels.format import ArrayLayout
    from ltd_pipe.labels.reader import Part


# --- What a teacher gives, checked and rounded before it is stored.


# float16's, as bits.
_INFINITY = 0x7C00
# Rows that are looked at, and how far the sum of probabilities in float16 is from one.
_LOOKED_AT, _SUM = 64, 0.01


def round_logits(
    logits: NDArray[np.floating[Any]], first_sample: int, where: Path
) -> NDArray[np.float16]:
    """Logits as float16.

    Parameters
    ----------
    logits : ndarray of shape (n, K) or (n, V, K)
    first_sample : int
        Index of the first row, for the error.
    where : Path
        The draft, for the error.

    Raises
    ------
    StoreError
        When one is NaN, infinite, or beyond float16's 65504, naming the sample.
    """
    rounded = to_float16(logits)
    # Of logits not one row is a distribution but by chance.
    some = np.asarray(logits[:_LOOKED_AT], np.float32)
    if some.size and (some >= 0).all() and (abs(some.sum(axis=-1) - 1) < _SUM).all():
        raise StoreError(
            where,
            f"sample {first_sample}: the logits are probabilities",
            found="rows of sum 1 without a negative number",
            remedy="Give what is before the softmax; of a table, call the array soft_labels.",
        )
    # As integers without the sign bit, infinity and NaN are the largest: ten times as fast.
    if rounded.size and (rounded.view(np.uint16) & 0x7FFF).max() >= _INFINITY:
        finite = np.isfinite(rounded)
        row = int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
        raise StoreError(
            where,
            f"sample {first_sample + row}: the teacher's logits",
            expected="finite numbers below 65504, float16's largest",
            found=logits[row][~finite[row]][0],
            remedy="Look at that image, and at the teacher's normalisation.",
        )
    return rounded


def round_soft_labels(
    soft_labels: NDArray[np.floating[Any]], first_sample: int, where: Path
) -> NDArray[np.float16]:
    """Probabilities as float16, with arguments as in `round_logits`.

    Raises
    ------
    StoreError
        When a row is not a distribution, naming the sample.
    """
    rounded = to_float16(soft_labels)
    stored = to_float32(rounded)
    totals = stored.sum(axis=-1, dtype=np.float64)
    tolerance = row_sum_tolerance(soft_labels.shape[-1])
    # Written so that NaN fails.
    right = (stored >= 0).all(axis=-1) & (abs(totals - 1.0) <= tolerance)
    if not right.all():
        row = _first_wrong(right)
        raise StoreError(
            where,
            f"sample {first_sample + row[0]}: the soft label is no distribution",
            expected=f"probabilities whose sum is 1 ± {tolerance:.1g}",
            found=f"lowest {stored[row].min()}, sum {totals[row]:.6f}",
            # Also by a rounding: what is too far for that may be logits.
            remedy="" if abs(totals[row] - 1) < _SUM else "If these are logits, call them so.",
        )
    # Without the sign of -0.0, which readers take for a negative number.
    return np.abs(rounded)


def round_topk(
    indices: NDArray[np.integer[Any]],
    probs: NDArray[np.floating[Any]],
    num_classes: int,
    first_sample: int,
    where: Path,
) -> tuple[NDArray[np.integer[Any]], NDArray[np.float16]]:
    """Classes and probabilities of shape (n, k) or (n, V, k), by falling probability.

    Raises
    ------
    StoreError
        When a class does not exist or comes twice in a row, a probability is negative or not
        finite, or their sum is above one, naming the sample.
    """
    rounded = to_float16(probs)
    order = np.argsort(-to_float32(rounded), axis=-1, kind="stable")
    indices = np.take_along_axis(indices, order, axis=-1)
    rounded = np.abs(np.take_along_axis(rounded, order, axis=-1))
    classes = np.sort(indices, axis=-1)
    totals = to_float32(rounded).sum(axis=-1, dtype=np.float64)
    right = (classes[..., 0] >= 0) & (classes[..., -1] < num_classes)
    right &= (np.diff(classes.astype(np.int64), axis=-1) > 0).all(axis=-1)
    right &= (probs >= 0).all(axis=-1) & (totals <= 1.0 + row_sum_tolerance(num_classes))
    if not right.all():
        row = _first_wrong(right)
        raise StoreError(
            where,
            f"sample {first_sample + row[0]}: the soft label is no distribution",
            expected=f"different classes below {num_classes}, probabilities of sum at most 1",
            found=f"classes {classes[row][0]} to {classes[row][-1]}, sum {totals[row]:.6f}",
        )
    return indices, rounded


def _first_wrong(right: NDArray[np.bool_]) -> tuple[int, ...]:
    # Sample, and view where there are several.
    return tuple(int(axis[0]) for axis in np.nonzero(~right))


# --- A store in the making: rows become durable chunk by chunk and survive an interruption.


_KEY = "draft.json"
# Chunks that are being written while the next one fills up.
_BEHIND = 2


class Draft:
    """Columns of equal length in a folder of their own, whose rows are taken in order.

    Chunks are written behind the caller. Which ones are there is told by the files alone: any
    number of processes may fill different chunks of one draft, and know nothing of each other.

    Parameters
    ----------
    path : Path
        The folder; one that an interrupted run has left is continued.
    key : dict
        Plain values that decide the content; a folder of another key is refused.
    columns : dict of str to ArrayLayout
        All with the same rows per chunk.
    chunks : range, optional
        Those to fill; all by default.

    Raises
    ------
    StateError
        When the folder holds another draft.
    WriteError
        When the disk cannot hold what is missing.
    """

    def __init__(
        self,
        path: Path,
        key: Mapping[str, Any],
        columns: Mapping[str, ArrayLayout],
        chunks: range | None = None,
    ) -> None:
        self.path, self.columns = path, dict(columns)
        self._any = next(iter(columns.values()))
        self._chunks = range(self._any.num_chunks) if chunks is None else chunks
        self._claim(key)
        self._missing = [chunk for chunk in self._chunks if not self._is_whole(chunk)]
        size = sum(layout.file_bytes for layout in columns.values())
        require_free(path, len(self._missing) * size)
        self._order = self._rows_of(self._missing)
        self._taken = self._filled = 0
        self._pending = self._buffers()
        self._behind = Background(threads=_BEHIND, waiting=_BEHIND)

    def _claim(self, key: Mapping[str, Any]) -> None:
        if not (self.path / _KEY).exists():
            # Linked, not renamed: of several processes that begin at once, one decides.
            beside = self.path / f".{_KEY}.{os.getpid()}-{os.urandom(4).hex()}"
            write_json(beside, key)
            with writing(self.path / _KEY):
                _name(beside, self.path / _KEY)
        self._require_key(json.loads(json.dumps(key)))

    def _require_key(self, key: Mapping[str, Any]) -> None:
        remedy = f"Remove the folder {self.path} to start again."
        try:
            found = json.loads((self.path / _KEY).read_text(encoding="utf-8"))
        except ValueError as error:
            raise StateError(self.path, f"{_KEY} is damaged", remedy=remedy) from error
        for name, expected, other in differences(key, found):
            raise StateError(
                self.path,
                f"holds the draft of other labels: {name}",
                expected=repr(expected)[:40],
                found=repr(other)[:40],
                remedy=remedy,
            )

    def _is_whole(self, chunk: int) -> bool:
        # By their checksums, since a power cut can leave blocks of zeros.
        try:
            for name, layout in self.columns.items():
                map_chunk(StoreFolder(self.path / name), layout, chunk)
        except (StoreError, MissingError):
            return False
        return True

    def _rows_of(self, chunks: list[int]) -> NDArray[np.int64]:
        rows = self._any.rows
        parts = [np.arange(at * rows, at * rows + self._any.rows_in(at)) for at in chunks]
        return np.concatenate(parts) if parts else np.arange(0)

    def _buffers(self) -> dict[str, NDArray[Any]]:
        return {
            name: np.empty(layout.chunk_shape, layout.dtype)
            for name, layout in self.columns.items()
        }

    @property
    def rows_left(self) -> NDArray[np.int64]:
        """The rows to append, in this order: those of chunks that are not whole on disk."""
        return self._order[self._taken :]

    def flush(self) -> None:
        """Wait until all whole chunks are on disk.

        Raises
        ------
        WriteError
            When one could not be written.
        """
        self._behind.finish()

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Take the next rows, equally many of each column; whole chunks go to disk.

        Raises
        ------
        WriteError
            When an earlier chunk could not be written.
        """
        done, count = 0, len(next(iter(rows.values())))
        while done < count:
            chunk = int(self._order[self._taken]) // self._any.rows
            room = self._any.rows_in(chunk) - self._filled
            step = min(room, count - done)
            for name, buffer in self._pending.items():
                buffer[self._filled : self._filled + step] = rows[name][done : done + step]
            done, self._filled, self._taken = done + step, self._filled + step, self._taken + step
            if step == room:
                self._behind.do(self._write, chunk, self._pending, self._filled)
                self._pending, self._filled = self._buffers(), 0

    def _write(self, chunk: int, columns: Mapping[str, NDArray[Any]], count: int) -> None:
        for name, layout in self.columns.items():
            rows = columns[name][:count]
            write_chunk(self.path / name, layout, chunk, rows, flush_name=False)

    def absent(self, chunks: range) -> list[int]:
        """Which chunks lack a file; the bytes are not read."""
        return [
            chunk
            for chunk in chunks
            if not all(self.chunk_path(name, chunk).exists() for name in self.columns)
        ]

    def column(self, name: str) -> StoredArray:
        """A finished column, to read."""
        return StoredArray(StoreFolder(self.path / name), self.columns[name])

    def chunk_path(self, name: str, chunk: int) -> Path:
        """The file of one chunk."""
        return self.path / name / self.columns[name].chunk_name(chunk)


def _name(beside: Path, target: Path) -> None:
    try:
        os.link(beside, target)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links.
        beside.replace(target)
    beside.unlink(missing_ok=True)


# --- Writing a soft-label store: into a state folder that survives faults, then published whole.


_SPARSE = ("topk_indices", "topk_probs")
# Chunks that are softened, hashed and written at the same time.
_THREADS = 4
_STORE_FILES = ("zarr.json", MANIFEST)


class StoreWriter:
    """Takes a teacher's answers in order and publishes them as a store.

    Logits are kept as they come, in float16, and soft labels are derived from them when the
    store is published: the temperature need not be known before, and a run that was
    interrupted goes on after its last whole chunk. Two processes on one state folder are kept
    apart by the caller, with `ltd_pipe.publish.exclusive`.

    Of a top-k store only the largest probabilities are ever written, so there the temperature
    has to be known from the beginning.

    Parameters
    ----------
    state : Path
        A folder of its own; removed once the store is published. On the target's file system
        nothing is copied in the end.
    facts : StoreFacts
        All attributes but the temperature. Of several teachers, each one's logits are
        appended, and the soft label is the average of their probabilities.
    keep_logits : bool
        Publish the logits too; several teachers have none in common.
    source : {"logits", "soft_labels"}
        What `append` is given.
    rows : int, optional
        Rows per chunk; see `rows_per_chunk`. Never more than there are samples.
    top_k : int, optional
        Store so many probabilities per row.
    temperature : float, optional
        Of a top-k store from logits.
    part : Part
        The chunks to fill. Several writers may fill different parts of one state folder at a
        time, and one of the whole publishes them.
    context : dict, optional
        What else decides the answers, as plain values: a draft of another context is refused.

    Raises
    ------
    StateError
        When the folder holds the draft of other labels.
    WriteError
        When the disk cannot hold the labels.
    """

    def __init__(
        self,
        state: Path,
        facts: StoreFacts,
        *,
        keep_logits: bool,
        source: Literal["logits", "soft_labels"] = "logits",
        rows: int | None = None,
        top_k: int | None = None,
        temperature: float | None = None,
        part: Part = WHOLE,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        if keep_logits and (source != "logits" or len(facts.teachers) > 1 or top_k):
            raise ParamsError(
                "label.logits",
                "only the dense labels of one teacher have logits",
                remedy="Set it false.",
            )
        if top_k is not None and not 1 <= top_k <= facts.num_classes:
            raise ParamsError(
                "label.top_k",
                "is out of range",
                expected=f"1 to {facts.num_classes}, the number of classes",
                found=top_k,
            )
        if top_k and source == "logits" and temperature is None:
            raise ValueError("a top-k store from logits needs its temperature")
        self.state, self.facts = state, facts
        self._keep_logits, self._source = keep_logits, source
        self._top_k, self._temperature = top_k, temperature
        self._row_shape = facts.layout("logits").row_shape
        self._teachers = [f"logits-{number}" for number in range(max(len(facts.teachers), 1))]
        # One chunk of few samples needs no padding.
        self._rows = min(rows or rows_per_chunk(row_bytes(facts, top_k)), facts.num_samples)
        # Without the temperature: labels at another one are derived from the same draft.
        key: dict[str, Any] = {"facts": facts.decides, "source": source, "rows": self._rows}
        if top_k:
            key |= {"top_k": top_k, "temperature": temperature}
        if context:
            key |= {"context": dict(context)}
        columns = self._columns()
        self._num_chunks = columns["labels"].num_chunks
        self._part = part
        self._draft = Draft(state, key, columns, part.chunks(self._num_chunks))

    def _columns(self) -> dict[str, ArrayLayout]:
        columns = {name: self._layout(name) for name in ("labels", "sample_hash")}
        if self._top_k:
            return columns | {name: self._layout(name) for name in (*_SPARSE, "topk_distance")}
        if self._source == "soft_labels":
            return columns | {"soft_labels": self._layout("soft_labels")}
        return columns | {name: self._layout("logits") for name in self._teachers}

    def _layout(self, name: str) -> ArrayLayout:
        return self.facts.layout(name, self._rows, self._top_k)

    @property
    def rows_left(self) -> NDArray[np.int64]:
        """The samples to append, in this order; what is whole on disk is not asked for again."""
        return self._draft.rows_left

    def absent_chunks(self, part: Part = WHOLE) -> list[int]:
        """Chunks of any part that have no file yet; the bytes of the others are not read."""
        return self._draft.absent(part.chunks(self._num_chunks))

    def flush(self) -> None:
        """Wait until all whole chunks are on disk; they are written behind the caller.

        Raises
        ------
        WriteError
            When the disk refused one.
        """
        self._draft.flush()

    def append(
        self,
        answers: NDArray[np.floating[Any]],
        labels: NDArray[np.integer[Any]],
        sample_hash: NDArray[np.uint64],
    ) -> None:
        """Take the next n samples of `rows_left`, which follow each other in the data set.

        Parameters
        ----------
        answers : ndarray of shape (n, K), or (n, V, K) of several views
            Logits or soft labels, as `source` says; float16 or float32. Of M teachers, M of
            them: an axis before the others.
        labels : ndarray of shape (n,)
            Classes, -1 where unknown.
        sample_hash : ndarray of shape (n,), dtype uint64
            Of the images.

        Raises
        ------
        StoreError
            When an answer cannot be stored, naming the sample: NaN, infinite, beyond float16,
            or no distribution.
        WriteError
            When the disk refused an earlier chunk; what was written before is kept.
        """
        first = self._next(len(labels))
        shape = (len(labels), *self._row_shape)
        stacked = answers[None] if answers.shape == shape else answers
        if stacked.shape != (len(self._teachers), *shape):
            raise ValueError(f"expected answers of shape {shape}, found {answers.shape}")
        if self._source == "soft_labels":
            rows = {"soft_labels": round_soft_labels(stacked[0], first, self.state)}
        else:
            rows = {
                name: round_logits(logits, first, self.state)
                for name, logits in zip(self._teachers, stacked, strict=True)
            }
        if self._top_k:
            rows = self._largest(stacked)
        self._append(rows, labels, sample_hash)

    def append_topk(
        self,
        indices: NDArray[np.integer[Any]],
        probs: NDArray[np.floating[Any]],
        labels: NDArray[np.integer[Any]],
        sample_hash: NDArray[np.uint64],
    ) -> None:
        """Take the next n samples of a top-k store, of which no more is known.

        Parameters
        ----------
        indices, probs : ndarray of shape (n, k), or (n, V, k) of several views
            Classes, in any order, and their probabilities.
        labels, sample_hash : ndarray of shape (n,)
            As in `append`.
        """
        shape = (len(labels), *self._layout("topk_probs").row_shape)
        if not self._top_k or indices.shape != shape or probs.shape != shape:
            raise ValueError(f"expected {shape}, found {indices.shape} and {probs.shape}")
        first = self._next(len(labels))
        classes, rounded = round_topk(indices, probs, self.facts.num_classes, first, self.state)
        unknown = np.full(shape[:-1], np.nan, np.float32)
        rows = {"topk_indices": classes, "topk_probs": rounded, "topk_distance": unknown}
        self._append(rows, labels, sample_hash)

    def _largest(self, stacked: NDArray[np.floating[Any]]) -> dict[str, NDArray[Any]]:
        assert self._top_k is not None  # noqa: S101
        soft = to_float32(stacked[0])
        if self._source == "logits":
            assert self._temperature is not None  # noqa: S101
            soft = mean_softened([*stacked], self._temperature)
        indices, probs = largest(soft, self._top_k)
        distance = total_variation(soft, indices, probs)
        return {"topk_indices": indices, "topk_probs": probs, "topk_distance": distance}

    def _next(self, count: int) -> int:
        samples = self.rows_left[:count]
        if len(samples) < count:
            raise ValueError(f"{count} samples, and the draft lacks {len(samples)}")
        first, last = (int(samples[0]), int(samples[-1])) if count else (0, -1)
        if last - first != count - 1:
            raise ValueError(f"between samples {first} and {last} are some that are not missing")
        return first

    def _append(
        self,
        rows: dict[str, NDArray[Any]],
        labels: NDArray[np.integer[Any]],
        sample_hash: NDArray[np.uint64],
    ) -> None:
        if sample_hash.shape != labels.shape:
            raise ValueError(f"{len(labels)} labels and {len(sample_hash)} sample hashes")
        self._draft.append({"labels": labels, "sample_hash": sample_hash, **rows})

    def solve_temperature(self, target_top_probability: float) -> float:
        """The temperature for `publish`, from all samples; see `softmax.solve_temperature`."""
        self._require_complete()
        columns = [self._draft.column(name) for name in self._teachers]

        def mean_top(temperature: float) -> float:
            chunks = range(columns[0].layout.num_chunks)
            total = sum(
                top_probability([column.chunk(chunk) for column in columns], temperature)
                for chunk in chunks
            )
            return total / (self.facts.num_samples * self.facts.views.count)

        return bisect_temperature(mean_top, target_top_probability)

    def answered(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        """For each teacher the ground truth and its answer for each sample's first view."""
        self._require_complete()
        labels = self._draft.column("labels").read()
        for name in ["topk_indices"] if self._top_k else self._teachers:
            column = self._draft.column(name)
            parts = []
            for chunk in range(column.layout.num_chunks):
                rows = column.chunk(chunk)
                rows = rows.reshape(len(rows), -1, rows.shape[-1])[:, 0]
                parts.append(rows[:, 0] if self._top_k else rows.argmax(axis=1))
            yield labels, np.concatenate(parts).astype(np.int64)

    def publish(
        self,
        target: Path,
        temperature: float,
        *,
        replace: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> str:
        """Write soft labels, metadata and manifest, and give the store its name by one rename.

        Parameters
        ----------
        target : Path
            The store.
        temperature : float
            Logits are divided by it. Of given soft labels it only says how they were made.
        replace : bool
            Replace a store that is there.
        progress : callable, optional
            Called with the number of samples just softened, N in all.

        Returns
        -------
        str
            The store's identity.

        Raises
        ------
        WriteError
            When the target exists, or the disk refuses. The draft is kept.
        StoreError
            When samples are missing.
        JoinError
            When the samples are not those of the data set that the facts name.
        """
        if self._part != WHOLE:
            raise ValueError(f"a writer of part {self._part} cannot publish the whole")
        require_replaceable(target, replace=replace)
        require_temperature(temperature)
        if self._temperature not in (None, temperature):
            raise ValueError(f"written at temperature {self._temperature}, not {temperature}")
        self._require_complete()
        self._require_fingerprint()
        beside = target.with_name(f".{target.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        identity = build_store(
            beside,
            lambda: self._attributes(temperature),
            self._sources(temperature),
            progress,
            _THREADS,
        )
        replace_tree(beside, target)
        remove_state(self.state)
        return identity

    def _sources(
        self, temperature: float
    ) -> dict[ArrayLayout, Callable[[int], Path | NDArray[Any]]]:
        names = {"labels": "labels", "sample_hash": "sample_hash"}
        names |= {name: name for name in (_SPARSE if self._top_k else ("soft_labels",))}
        if self._keep_logits:
            names["logits"] = self._teachers[0]
        sources: dict[ArrayLayout, Callable[[int], Path | NDArray[Any]]] = {
            self._layout(name): partial(self._draft.chunk_path, column)
            for name, column in names.items()
        }
        if self._source == "logits" and not self._top_k:
            teachers = [self._draft.column(name) for name in self._teachers]
            # From the logits as they are stored, so that one can be checked against the other.
            sources[self._layout("soft_labels")] = lambda chunk: softened_half(
                [teacher.chunk(chunk) for teacher in teachers], temperature
            )
        return sources

    def _attributes(self, temperature: float) -> StoreAttributes:
        facts = {name: getattr(self.facts, name) for name in StoreFacts.model_fields}
        return StoreAttributes(**facts, temperature=temperature, top_k=self._topk_facts())

    def _topk_facts(self) -> TopKFacts | None:
        if self._top_k is None:
            return None
        distances = self._draft.column("topk_distance").read()
        if np.isnan(distances).any():
            return TopKFacts(k=self._top_k)
        mean, worst = distances.mean(dtype=float), distances.max()
        known = DistanceFacts.measured(mean, worst, len(distances))
        return TopKFacts(k=self._top_k, total_variation=known)

    def _require_complete(self) -> None:
        self.flush()
        missing = len(self.rows_left)
        if missing:
            raise StoreError(
                self.state,
                "samples are missing",
                expected=self.facts.num_samples,
                found=self.facts.num_samples - missing,
                remedy="Run 'ltd-pipe label' again: it goes on from there.",
            )

    def _require_fingerprint(self) -> None:
        labels, hashes = (self._draft.column(name).read() for name in ("labels", "sample_hash"))
        found = fingerprint(self.facts.class_names, labels, hashes)
        if found != self.facts.dataset.fingerprint:
            raise JoinError(
                self.state,
                "fingerprint of the samples that were labelled",
                expected=f"{self.facts.dataset.fingerprint[:12]}…",
                found=f"{found[:12]}…: they are not those of {self.facts.dataset.name}",
                remedy="Run 'ltd-pipe prepare' again, then 'ltd-pipe label'.",
            )


def require_replaceable(target: Path, *, replace: bool) -> None:
    """Refuse to publish over what is there, unless it is a store and may be replaced.

    Raises
    ------
    WriteError
        When the target exists and `replace` is false, or it is no soft-label store: a folder
        of something else must never be lost to a slip of the keyboard.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not replace:
        raise WriteError(
            target, "exists already", remedy="Pass --force to replace it, or another --out."
        )
    if target.is_symlink() or not all((target / name).is_file() for name in _STORE_FILES):
        raise WriteError(
            target,
            "is no soft-label store, and --force replaces stores only",
            remedy="Choose another --out.",
        )


def write_store(
    target: Path,
    attributes: StoreAttributes,
    answers: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    sample_hash: NDArray[np.uint64],
    *,
    source: Literal["logits", "soft_labels"] = "logits",
    keep_logits: bool = False,
    rows: int | None = None,
    top_k: int | None = None,
    replace: bool = False,
) -> str:
    """Write a store whose rows are all in memory; the arguments are those of `StoreWriter`.

    Returns
    -------
    str
        The store's identity.
    """
    state = target.with_name(f".{target.name}.draft")
    shutil.rmtree(state, ignore_errors=True)
    writer = StoreWriter(
        state,
        attributes,
        keep_logits=keep_logits,
        source=source,
        rows=rows,
        top_k=top_k,
        temperature=attributes.temperature if top_k else None,
    )
    writer.append(answers, labels, sample_hash)
    return writer.publish(target, attributes.temperature, replace=replace)


# --- Laying out a store's files in a folder that nobody reads yet.


_COPIED_BYTES = 2**20


def build_store(
    folder: Path,
    attributes: Callable[[], StoreAttributes],
    sources: Mapping[ArrayLayout, Callable[[int], Path | NDArray[Any]]],
    progress: Callable[[int], None] | None = None,
    threads: int = 1,
) -> str:
    """Lay out all files of a store.

    Parameters
    ----------
    folder : Path
        An absent or empty folder.
    attributes : callable
        Gives the StoreAttributes; called when all chunks are there.
    sources : dict of ArrayLayout to callable
        Gives the content of chunk number i: its rows, or a finished chunk file. Asked in order,
        unless there are several threads.
    progress : callable, optional
        Called with the number of samples just laid out.
    threads : int
        Chunks in the making at a time, each on a thread of its own. More than there are cores
        pay, since much of the time goes to waiting for the disk.

    Returns
    -------
    str
        The store's identity.
    """
    layout, hashes = next(iter(sources)), dict[str, str]()
    chunks, build = range(layout.num_chunks), partial(_build_chunk, folder, sources)
    with ThreadPoolExecutor(threads, thread_name_prefix="build") as pool:
        try:
            for chunk, found in enumerate((map if threads == 1 else pool.map)(build, chunks)):
                hashes |= found
                if progress is not None:
                    progress(layout.rows_in(chunk))
        finally:
            # After an error no further chunk begins.
            pool.shutdown(cancel_futures=True)
    known, layouts = attributes(), list(sources)
    _write_metadata(folder, known, layouts)
    write_card(folder, known, layouts)
    identity = _write_manifest(folder, hashes)
    flush_tree(folder)
    return identity


def _build_chunk(
    folder: Path,
    sources: Mapping[ArrayLayout, Callable[[int], Path | NDArray[Any]]],
    chunk: int,
) -> dict[str, str]:
    # SHA-256 by file name.
    hashes = {}
    for array, source in sources.items():
        name, content = array.chunk_name(chunk), source(chunk)
        with writing(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                _link(content, folder / name)
                hashes[name] = sha256_file(folder / name)
            else:
                hashes[name] = _write(folder / name, *chunk_bytes(array, content))
    return hashes


def _write(target: Path, *parts: memoryview | bytes) -> str:
    # Under its own name at once: nobody looks into this folder before it is finished.
    digest = hashlib.sha256()
    with target.open("wb") as handle:
        for part in parts:
            handle.write(part)
            digest.update(part)
        handle.flush()
        os.fsync(handle.fileno())
    return digest.hexdigest()


def _write_metadata(
    folder: Path, attributes: StoreAttributes, layouts: Sequence[ArrayLayout]
) -> None:
    # Of the group, with consolidated metadata, and of each array.
    arrays = {layout.name: layout.to_json() for layout in sorted(layouts, key=lambda a: a.name)}
    group = {
        "attributes": {ATTRIBUTE: attributes.to_json()},
        "zarr_format": 3,
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": arrays,
        },
        "node_type": "group",
    }
    for name, metadata in arrays.items():
        _write_json(folder / name / "zarr.json", metadata)
    _write_json(folder / "zarr.json", group)


def _write_json(target: Path, content: Any) -> None:
    # ASCII, so that no reader's locale matters.
    write_text(target, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=True) + "\n")


def _link(source: Path, target: Path) -> None:
    # A second name, or a copy on another file system: the draft stays whole, so that an
    # interrupted publication is simply done again.
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as content, target.open("wb") as handle:
            shutil.copyfileobj(content, handle, _COPIED_BYTES)
            handle.flush()
            os.fsync(handle.fileno())


def _write_manifest(folder: Path, hashes: Mapping[str, str]) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    listed = {name: hashes.get(name) or sha256_file(folder / name) for name in names}
    write_text(folder / MANIFEST, format_manifest(listed))
    return sha256_file(folder / MANIFEST)
