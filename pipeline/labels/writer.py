"""Writing a soft-label store: a teacher's answers are staged, then published whole."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.group import ConsolidatedMetadata, GroupMetadata

from ltd_pipe.errors import JoinError, StoreError, WriteError
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.card import CARD, write_card
from ltd_pipe.labels.format import (
    ATTRIBUTE,
    StoreAttributes,
    StoreFacts,
    TopKFacts,
)
from ltd_pipe.labels.layout import SPARSE
from ltd_pipe.labels.manifest import MANIFEST, format_manifest
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
from ltd_pipe.labels.staging import WHOLE, DurableStore, Part, StagedColumns
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import (
    flush_tree,
    remove_state,
    replace_tree,
    write_text,
    writing,
)

if TYPE_CHECKING:
    from ltd_pipe.labels.layout import ArrayLayout

    # From the number of a chunk to its rows, or to a finished chunk file.
    ChunkSource: TypeAlias = Callable[[int], Path | NDArray[Any]]

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
        part: Part = WHOLE,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        # Without the temperature: labels at another one are derived from the same logits.
        key: dict[str, Any] = {"facts": facts.decides, "context": context}
        if top_k is not None:
            require_top_k("label.top_k", top_k, facts.num_classes)
            key |= {"top_k": top_k, "temperature": temperature}
        self.state, self.facts = state, facts
        self._part, self._top_k, self._temperature = part, top_k, temperature
        self._teachers = [f"logits-{number}" for number in range(max(len(facts.teachers), 1))]
        self._keep_logits = keep_logits and top_k is None and len(self._teachers) == 1
        # One chunk of few samples needs no padding.
        self._rows = min(rows or facts.rows_per_chunk(top_k), facts.num_samples)
        names = {name: name for name in ("labels", "sample_hash")}
        if top_k is not None:
            names |= {name: name for name in (*SPARSE, "topk_distance")}
        else:
            names |= dict.fromkeys(self._teachers, "logits")
        columns = {column: self._layout(name) for column, name in names.items()}
        self._num_chunks = columns["labels"].num_chunks
        key["rows"] = self._rows
        self._staged = StagedColumns(state, key, columns, part.chunks(self._num_chunks))

    def _layout(self, name: str) -> ArrayLayout:
        return self.facts.layout(name, self._rows, self._top_k)

    @property
    def rows_left(self) -> NDArray[np.int64]:
        """The samples to append, in this order; what is whole on disk is not asked for again."""
        return self._staged.rows_left

    def absent_chunks(self, part: Part = WHOLE) -> list[int]:
        """Chunks of any part that have no file yet; the bytes of the others are not read."""
        return self._staged.absent(part.chunks(self._num_chunks))

    def flush(self) -> None:
        """Wait until all whole chunks are on disk; they are written behind the caller."""
        self._staged.flush()

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
            assert self._temperature is not None  # noqa: S101
            soft = mean_softened([*stacked], self._temperature)
            indices, probs = largest(soft, self._top_k)
            distance = total_variation(soft, indices, probs)
            rows = {"topk_indices": indices, "topk_probs": probs, "topk_distance": distance}
        self._staged.append({"labels": labels, "sample_hash": sample_hash, **rows})

    def solve_temperature(self, target_top_probability: float) -> float:
        """The temperature for `publish`, from all samples; see `softmax.solve_temperature`."""
        self._require_complete()
        columns = [self._staged.column(name) for name in self._teachers]
        chunks = range(self._num_chunks)
        return solve_temperature(
            lambda: ([column.chunk(chunk) for column in columns] for chunk in chunks),
            target_top_probability,
        )

    def answered(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        """For each teacher the ground truth and its answer for each sample's first view."""
        self._require_complete()
        labels = self._staged.column("labels").read()
        for name in ["topk_indices"] if self._top_k else self._teachers:
            column = self._staged.column(name)
            parts = []
            for chunk in range(self._num_chunks):
                rows = column.chunk(chunk)
                rows = rows.reshape(len(rows), -1, rows.shape[-1])[:, 0]
                parts.append(rows[:, 0] if self._top_k else rows.argmax(axis=1))
            yield labels, np.concatenate(parts).astype(np.int64)

    def publish(self, target: Path, temperature: float, *, replace: bool = False) -> str:
        """Write soft labels, metadata and manifest, and give the store its name by one rename.

        Parameters
        ----------
        target : Path
            The store.
        temperature : float
            Logits are divided by it.
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
        if self._temperature not in (None, temperature):
            raise ValueError(f"written at temperature {self._temperature}, not {temperature}")
        self._require_complete()
        self._require_fingerprint()
        published, top_k = {"labels": "labels", "sample_hash": "sample_hash"}, None
        if self._keep_logits:
            published["logits"] = self._teachers[0]
        if self._top_k is not None:
            published |= {name: name for name in SPARSE}
            distances = self._staged.column("topk_distance").read()
            top_k = TopKFacts.measured(self._top_k, distances)
        sources: dict[ArrayLayout, ChunkSource] = {
            self._layout(name): partial(self._staged.chunk_path, column)
            for name, column in published.items()
        }
        if self._top_k is None:
            teachers = [self._staged.column(name) for name in self._teachers]
            # From the logits as they are stored, so that one can be checked against the other.
            sources[self._layout("soft_labels")] = lambda chunk: softened_half(
                [teacher.chunk(chunk) for teacher in teachers], temperature
            )
        facts = {name: getattr(self.facts, name) for name in StoreFacts.model_fields}
        attributes = StoreAttributes(**facts, temperature=temperature, top_k=top_k)
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
        labels, hashes = (self._staged.column(name).read() for name in ("labels", "sample_hash"))
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

    A folder of something else must never be lost to a slip of the keyboard.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not replace:
        raise WriteError(
            target, "exists already", remedy="Pass --force to replace it, or another --out."
        )
    if target.is_symlink() or not all((target / it).is_file() for it in ("zarr.json", MANIFEST)):
        raise WriteError(
            target,
            "is no soft-label store, and --force replaces stores only",
            remedy="Choose another --out.",
        )


def write_store(
    target: Path,
    attributes: Callable[[], StoreAttributes],
    sources: Mapping[ArrayLayout, ChunkSource],
    *,
    replace: bool = False,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> str:
    """Lay out all files of a store in a folder beside it, and give that its name by one rename.

    Parameters
    ----------
    target : Path
        The store.
    attributes : callable
        Gives the StoreAttributes; called when all chunks are there.
    sources : dict of ArrayLayout to callable
        Gives the content of chunk number i: its rows, or a finished chunk file. Asked in order,
        unless there are several threads.
    replace : bool
        Replace a store that is there.
    threads : int
        Chunks in the making at a time, each on a thread of its own. More than there are cores
        pay, since much of the time goes to waiting for the disk.
    progress : callable, optional
        Called with the number of samples just laid out.
    check : callable, optional
        Called with the folder before it gets its name; raises where it should not.

    Returns
    -------
    str
        The store's identity.
    """
    require_replaceable(target, replace=replace)
    beside = target.with_name(f".{target.name}.part")
    # What a killed process has left.
    shutil.rmtree(beside, ignore_errors=True)
    try:
        store = DurableStore(beside)
        _write_chunks(store, sources, threads, progress)
        known = attributes()
        arrays = {array.name: array.metadata() for array in sources}
        consolidated = ConsolidatedMetadata(metadata={**arrays})
        group = GroupMetadata({ATTRIBUTE: known.to_json()}, consolidated_metadata=consolidated)
        with writing(beside):
            deque(zarr.create_hierarchy(store=store, nodes={"": group, **arrays}), maxlen=0)
        write_card(beside, known, [*sources])
        hashes = store.hashes | {CARD: sha256_file(beside / CARD)}
        write_text(beside / MANIFEST, format_manifest(hashes))
        flush_tree(beside)
        identity = sha256_file(beside / MANIFEST)
        if check is not None:
            check(beside)
        replace_tree(beside, target)
    finally:
        # Gone already when all went well; made again in minutes when not.
        shutil.rmtree(beside, ignore_errors=True)
    return identity


def _write_chunks(
    store: DurableStore,
    sources: Mapping[ArrayLayout, ChunkSource],
    threads: int,
    progress: Callable[[int], None] | None,
) -> None:
    layout = next(iter(sources))

    def write(chunk: int) -> int:
        for array, source in sources.items():
            content = source(chunk)
            if isinstance(content, Path):
                with writing(store.root / array.chunk_name(chunk)):
                    store.link(content, array.chunk_name(chunk))
            else:
                store.write_chunk(array.name, array, chunk, content)
        return layout.rows_in(chunk)

    with ThreadPoolExecutor(threads, thread_name_prefix="build") as pool:
        try:
            for rows in (map if threads == 1 else pool.map)(write, range(layout.num_chunks)):
                if progress is not None:
                    progress(rows)
        finally:
            # After an error no further chunk begins.
            pool.shutdown(cancel_futures=True)
