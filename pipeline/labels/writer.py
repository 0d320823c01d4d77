"""Writing a soft-label store: a teacher's answers are staged, then published whole."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import JoinError, ParamsError, StateError, StoreError
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.files import DurableStore, require_replaceable, write_store
from ltd_pipe.labels.format import CalibrationFacts, StoreAttributes, StoreFacts, TopKFacts
from ltd_pipe.labels.layout import SPARSE
from ltd_pipe.labels.manifest import StoreFolder
from ltd_pipe.labels.reader import StoredArray
from ltd_pipe.labels.softmax import (
    largest,
    mean_softened,
    require_temperature,
    require_top_k,
    round_logits,
    softened_half,
    solve_temperature,
    total_variation,
)
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import read_json, remove_state, require_free, write_json, writing
from ltd_pipe.text import differences

if TYPE_CHECKING:
    from ltd_pipe.labels.files import ChunkSource
    from ltd_pipe.labels.layout import ArrayLayout


# --- Part 3 of 8: which chunks of a store a process fills.


@dataclass(frozen=True)
class Part:
    """One of `count` shares of the chunks, equal but for one chunk; `number` is 1 to `count`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `3/8`; anything else is a ParamsError."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ParamsError("--part", "expected one such as 3/8, the third of eight", found=text)
        return cls(int(match[1]), int(match[2]))

    def split(self, rank: int, ranks: int) -> Part:
        """The share of one of several processes that fill this part together."""
        return Part((self.number - 1) * ranks + rank + 1, self.count * ranks)

    def chunks(self, num_chunks: int) -> range:
        """The chunks of this part; none where there are more parts than chunks."""
        first, last = (num_chunks * at // self.count for at in (self.number - 1, self.number))
        return range(first, last)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Part(1, 1)
# A chunk has at most 8,192 images.
_STALL_S = 3600.0
_LOOK_S = 0.25


def wait_for_chunks(absent: Callable[[], list[int]], stall_s: float = _STALL_S) -> None:
    """Wait until other processes have written all chunks that `absent` gives.

    After `stall_s` seconds without a new one the others are taken for dead: a StateError.
    """
    missing, since = absent(), time.monotonic()
    while missing:
        time.sleep(_LOOK_S)
        found = absent()
        if len(found) < len(missing):
            since = time.monotonic()
        elif time.monotonic() - since > stall_s:
            raise StateError(
                "label",
                f"no other process has written a chunk for {stall_s:.0f} s",
                found=f"{len(found)} missing, the first is {found[0]}",
                remedy="Run it again: what is done is kept.",
            )
        missing = found


# --- Work that goes on behind its caller: in order, and never much of it waiting.


class Background:
    """Calls functions on threads of its own; as a context, it waits for all of them.

    What waits or runs is bounded, and so is the memory that it holds. After a call that fails
    no later one begins, and its error is raised where the caller next looks in.

    Parameters
    ----------
    threads : int
        With one of them, calls run in the order in which they were given.
    waiting : int
        Calls that may be unfinished; the next one waits for the oldest.
    """

    def __init__(self, *, threads: int, waiting: int) -> None:
        self._threads, self._waiting = threads, waiting
        self._pool: ThreadPoolExecutor | None = None
        self._unfinished: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # The block's own error is the one to tell.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.finish()

    def do(self, function: Callable[..., object], *arguments: Any) -> None:
        """Take one call, unless an earlier one has failed, whose error is raised."""
        while len(self._unfinished) >= self._waiting:
            self._unfinished.popleft().result()
        if self._error is not None:
            raise self._error
        if self._pool is None:
            # Not before there is work: a process that only looks has no threads.
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="background")
        self._unfinished.append(self._pool.submit(self._run, function, arguments))

    def _run(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self._error is None:
            try:
                function(*arguments)
            except BaseException as error:
                self._error = error

    def finish(self) -> None:
        """Wait for all calls, end the threads, and raise the error of a call that failed."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._unfinished.clear()
        if self._error is not None:
            raise self._error


# --- A teacher's answers, durable chunk by chunk, until they are a store.


_KEY = "draft.json"
# Of a temperature that two processors measure, relatively: of logits in float16.
_ROUNDING = 1e-3
# Chunks that are being written while the next one fills up.
_BEHIND = 2
# Chunks that are softened, hashed and written at the same time.
_THREADS = 4


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
        Publish the logits too, where there is one row of them that gives the soft label: of dense
        labels of one teacher.
    rows : int, optional
        Rows per chunk; see `StoreFacts.rows_per_chunk`. Never more than there are samples.
    top_k : int, optional
        Store so many probabilities per row.
    temperature : float, optional
        Of a top-k store.
    measured : bool
        The temperature was measured. Each part of a store measures it, maybe on another processor:
        the draft's own is taken where it differs by no more than rounding explains.
    part : Part
        The chunks to fill. Several writers may fill different parts of one state folder at a
        time, and one of the whole publishes them.
    context : dict, optional
        What else decides the answers, as plain values: a state of another context is refused.

    Raises
    ------
    StateError
        When the folder holds other labels.
    WriteError
        When the disk cannot hold the labels.
    """

    def __init__(
        self,
        state: Path,
        facts: StoreFacts,
        *,
        keep_logits: bool,
        rows: int | None = None,
        top_k: int | None = None,
        temperature: float | None = None,
        measured: bool = False,
        part: Part = WHOLE,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self.state, self.facts = state, facts
        self._part, self._top_k = part, top_k
        self._teachers = [f"logits-{number}" for number in range(max(len(facts.teachers), 1))]
        self._keep_logits = keep_logits and top_k is None and len(self._teachers) == 1
        # One chunk of few samples needs no padding.
        self._rows = min(rows or facts.rows_per_chunk(top_k), facts.num_samples)
        # Without the temperature: labels at another one are derived from the same logits.
        key = {"facts": facts.decides, "rows": self._rows, "context": context}
        names = {name: name for name in ("labels", "sample_hash")}
        if top_k is not None:
            require_top_k("label.top_k", top_k, facts.num_classes)
            key |= {"top_k": top_k, "temperature": temperature}
            names |= {name: name for name in (*SPARSE, "topk_distance")}
        else:
            names |= dict.fromkeys(self._teachers, "logits")
        found = _claim(state, json.loads(json.dumps(key)), measured=measured)
        self.temperature: float | None = found.get("temperature")
        self._columns = {column: self._layout(name) for column, name in names.items()}
        self._files = DurableStore(state)
        layout = self._columns["labels"]
        self._num_chunks = layout.num_chunks
        missing = [chunk for chunk in part.chunks(layout.num_chunks) if not self._is_whole(chunk)]
        size = sum(column.file_bytes for column in self._columns.values())
        require_free(state, len(missing) * size)
        samples = [chunk * layout.rows + np.arange(layout.rows_in(chunk)) for chunk in missing]
        self._order = np.concatenate([np.arange(0), *samples])
        self._taken = self._filled = 0
        self._buffers = self._new_buffers()
        self._behind = Background(threads=_BEHIND, waiting=_BEHIND)

    def _layout(self, name: str) -> ArrayLayout:
        return self.facts.layout(name, self._rows, self._top_k)

    def _new_buffers(self) -> dict[str, NDArray[Any]]:
        return {name: np.empty(it.chunk_shape, it.dtype) for name, it in self._columns.items()}

    def _is_whole(self, chunk: int) -> bool:
        # Told by the folder alone: any number of processes may fill different chunks of it. By
        # hashes of files that have the chunk's number in their names: an answer that is damaged,
        # or that was moved to the place of another, is asked for again.
        try:
            found = {name: sha256_file(self.state / name) for name in self._chunk_names(chunk)}
        except OSError:
            return False
        return read_json(self._record(chunk)) == found

    def _record(self, chunk: int) -> Path:
        """Written last: the SHA-256 of each file of a chunk."""
        return self.state / "chunks" / f"{chunk}.json"

    def _column(self, name: str) -> StoredArray:
        return StoredArray(StoreFolder(self.state / name), self._columns[name])

    def _chunk_path(self, column: str, chunk: int) -> Path:
        return self.state / column / self._columns[column].chunk_name(chunk)

    def _chunk_names(self, chunk: int) -> list[str]:
        return [f"{name}/{layout.chunk_name(chunk)}" for name, layout in self._columns.items()]

    @property
    def rows_left(self) -> NDArray[np.int64]:
        """The samples to append, in this order; what is whole on disk is not asked for again."""
        return self._order[self._taken :]

    def absent_chunks(self, part: Part = WHOLE) -> list[int]:
        """Chunks of any part that are not written yet; the bytes of the others are not read."""
        return [
            chunk for chunk in part.chunks(self._num_chunks) if not self._record(chunk).exists()
        ]

    def flush(self) -> None:
        """Wait until all whole chunks are on disk, or raise the WriteError of one that is not."""
        self._behind.finish()

    def append(
        self,
        logits: NDArray[np.floating[Any]],
        labels: NDArray[np.integer[Any]],
        sample_hash: NDArray[np.uint64],
    ) -> None:
        """Take the next n samples of `rows_left`, which follow each other in the data set.

        Parameters
        ----------
        logits : ndarray of shape (n, K), or (n, V, K) of several views
            In float16 or float32. Of M teachers, M of them: an axis before the others. One that
            cannot be stored is a StoreError that names the sample.
        labels : ndarray of shape (n,)
            Classes, -1 where unknown.
        sample_hash : ndarray of shape (n,), dtype uint64
            Of the images.
        """
        count, samples = len(labels), self.rows_left[: len(labels)]
        shape = (count, *self.facts.layout("logits").row_shape)
        stacked = logits[None] if logits.shape == shape else logits
        if stacked.shape != (len(self._teachers), *shape) or sample_hash.shape != (count,):
            raise ValueError(f"expected logits of shape {shape} and as many labels and hashes")
        if len(samples) < count or (np.diff(samples) != 1).any():
            raise ValueError(f"{count} samples, and not so many are missing one after the other")
        first = int(samples[0]) if count else 0
        rows: dict[str, NDArray[Any]] = {
            name: round_logits(each, first, self.state)
            for name, each in zip(self._teachers, stacked, strict=True)
        }
        if self._top_k is not None:
            assert self.temperature is not None  # noqa: S101
            # Of the rounded ones, which a store with logits keeps, too.
            soft = mean_softened([*rows.values()], self.temperature)
            indices, probs = largest(soft, self._top_k)
            distance = total_variation(soft, indices, probs)
            rows = {"topk_indices": indices, "topk_probs": probs, "topk_distance": distance}
        self._take({"labels": labels, "sample_hash": sample_hash, **rows})

    def _take(self, rows: Mapping[str, NDArray[Any]]) -> None:
        # Whole chunks go to disk, behind the caller.
        done, count, layout = 0, len(rows["labels"]), self._columns["labels"]
        while done < count:
            chunk = int(self._order[self._taken]) // layout.rows
            room = layout.rows_in(chunk) - self._filled
            step = min(room, count - done)
            for name, buffer in self._buffers.items():
                buffer[self._filled : self._filled + step] = rows[name][done : done + step]
            done, self._filled, self._taken = done + step, self._filled + step, self._taken + step
            if step == room:
                self._behind.do(self._write, chunk, self._buffers, self._filled)
                self._buffers, self._filled = self._new_buffers(), 0

    def _write(self, chunk: int, buffers: Mapping[str, NDArray[Any]], count: int) -> None:
        for name, layout in self._columns.items():
            folder = f"{name}/{layout.name}"
            self._files.write_chunk(folder, layout, chunk, buffers[name][:count])
        hashes = {name: self._files.hashes.pop(name) for name in self._chunk_names(chunk)}
        write_json(self._record(chunk), hashes)

    def solve_temperature(self, target_top_probability: float) -> float:
        """The temperature for `publish`, from all samples; see `softmax.solve_temperature`."""
        self._require_complete()
        columns = [self._column(name) for name in self._teachers]
        chunks = range(self._num_chunks)
        return solve_temperature(
            lambda: ([column.chunk(chunk) for column in columns] for chunk in chunks),
            target_top_probability,
        )

    def answered(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        """For each teacher the ground truth and its answer for each sample's first view."""
        self._require_complete()
        labels = self._column("labels").read()
        for name in ["topk_indices"] if self._top_k else self._teachers:
            column = self._column(name)
            parts = []
            for chunk in range(self._num_chunks):
                rows = column.chunk(chunk)
                rows = rows.reshape(len(rows), -1, rows.shape[-1])[:, 0]
                parts.append(rows[:, 0] if self._top_k else rows.argmax(axis=1))
            yield labels, np.concatenate(parts).astype(np.int64)

    def publish(
        self,
        target: Path,
        temperature: float,
        *,
        calibration: CalibrationFacts | None = None,
        replace: bool = False,
    ) -> str:
        """Write soft labels, metadata and manifest, and give the store its name by one rename.

        Parameters
        ----------
        target : Path
            The store.
        temperature : float
            Logits are divided by it.
        calibration : CalibrationFacts, optional
            How it was found, from `softmax.calibrated_temperature`.
        replace : bool
            Replace a store that is there.

        Returns
        -------
        str
            The store's identity.

        Raises
        ------
        WriteError
            When the target exists, or the disk refuses. The state is kept.
        StoreError, JoinError
            When samples are missing, or are not those of the data set that the facts name.
        """
        if self._part != WHOLE:
            raise ValueError(f"a writer of part {self._part} cannot publish the whole")
        require_replaceable(target, replace=replace)
        require_temperature(temperature)
        if self.temperature not in (None, temperature):
            raise ValueError(f"written at temperature {self.temperature}, not {temperature}")
        self._require_complete()
        self._require_fingerprint()
        published, top_k = {"labels": "labels", "sample_hash": "sample_hash"}, None
        if self._keep_logits:
            published["logits"] = self._teachers[0]
        if self._top_k is not None:
            published |= {name: name for name in SPARSE}
            distances = self._column("topk_distance").read()
            top_k = TopKFacts.measured(self._top_k, distances)
        sources: dict[ArrayLayout, ChunkSource] = {
            self._layout(name): partial(self._chunk_path, column)
            for name, column in published.items()
        }
        if self._top_k is None:
            teachers = [self._column(name) for name in self._teachers]
            # From the logits as they are stored, so that one can be checked against the other.
            sources[self._layout("soft_labels")] = lambda chunk: softened_half(
                [teacher.chunk(chunk) for teacher in teachers], temperature
            )
        facts = {name: getattr(self.facts, name) for name in StoreFacts.model_fields}
        attributes = StoreAttributes(
            **facts, temperature=temperature, top_k=top_k, calibration=calibration
        )
        identity = write_store(
            target, lambda: attributes, sources, replace=replace, threads=_THREADS
        )
        remove_state(self.state)
        return identity

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
        labels, hashes = (self._column(name).read() for name in ("labels", "sample_hash"))
        found = fingerprint(self.facts.class_names, labels, hashes)
        if found != self.facts.dataset.fingerprint:
            raise JoinError(
                self.state,
                "fingerprint of the samples that were labelled",
                expected=f"{self.facts.dataset.fingerprint[:12]}…",
                found=f"{found[:12]}…: they are not those of {self.facts.dataset.name}",
                remedy="Run 'ltd-pipe prepare' again, then 'ltd-pipe label'.",
            )


def _claim(folder: Path, key: Mapping[str, Any], *, measured: bool) -> dict[str, Any]:
    """Refuse to go on with what an interrupted run has left of other labels; what is written there.

    A temperature that was measured may differ by rounding.
    """
    path = folder / _KEY
    if not path.exists():
        # Linked, not renamed: of several processes that begin at once, one decides.
        beside = folder / f".{_KEY}.{os.getpid()}-{os.urandom(4).hex()}"
        write_json(beside, key)
        with writing(path):
            try:
                os.link(beside, path)
            except FileExistsError:
                pass
            except OSError:
                # A file system without hard links.
                beside.replace(path)
            beside.unlink(missing_ok=True)
    remedy = f"Remove the folder {folder} to start again."
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StateError(folder, f"{_KEY} is damaged", remedy=remedy) from error
    ours, theirs = key.get("temperature"), found.get("temperature")
    if measured and ours and theirs and math.isclose(ours, theirs, rel_tol=_ROUNDING):
        key = {**key, "temperature": theirs}
    for name, expected, other in differences(key, found):
        raise StateError(
            folder,
            f"holds the draft of other labels: {name}",
            expected=repr(expected)[:40],
            found=repr(other)[:40],
            remedy=remedy,
        )
    return found
