"""Writing a soft-label store: into a state folder that survives faults, then published whole."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import JoinError, ParamsError, StoreError, WriteError
from pipeline.images.fingerprint import fingerprint
from pipeline.labels.arrays import ArrayLayout
from pipeline.labels.build import build_store
from pipeline.labels.draft import Draft
from pipeline.labels.format import StoreAttributes, StoreFacts, rows_per_chunk
from pipeline.labels.half import to_float16
from pipeline.labels.incoming import round_logits, round_soft_labels
from pipeline.labels.manifest import MANIFEST
from pipeline.labels.softmax import (
    bisect_temperature,
    mean_softened,
    require_temperature,
    top_probability,
)
from pipeline.publish import remove_state, replace_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["StoreWriter", "require_replaceable", "write_store"]

_STORE_FILES = ("zarr.json", MANIFEST)


class StoreWriter:
    """Takes a teacher's answers in order and publishes them as a store.

    Logits are kept as they come, in float16, and soft labels are derived from them when the
    store is published: the temperature need not be known before, and a run that was
    interrupted goes on after its last whole chunk. Two processes on one state folder are kept
    apart by the caller, with `pipeline.publish.exclusive`.

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
    ) -> None:
        if keep_logits and (source != "logits" or len(facts.teachers) > 1):
            raise ParamsError(
                "label.logits", "only the labels of one teacher have logits", remedy="Set it false."
            )
        self.state, self.facts = state, facts
        self._keep_logits, self._source = keep_logits, source
        # One chunk of few samples needs no padding.
        self._rows = min(rows or rows_per_chunk(2 * facts.num_classes), facts.num_samples)
        self._teachers = [f"logits-{number}" for number in range(max(len(facts.teachers), 1))]
        # Without the temperature: labels at another one are derived from the same draft.
        known = facts.model_dump(mode="json", include=set(StoreFacts.model_fields))
        key = {"facts": known, "source": source, "rows": self._rows}
        self._draft = Draft(state, key, self._columns())

    def _columns(self) -> dict[str, ArrayLayout]:
        columns = {name: self._layout(name) for name in ("labels", "sample_hash")}
        if self._source == "soft_labels":
            return columns | {"soft_labels": self._layout("soft_labels")}
        return columns | {name: self._layout("logits") for name in self._teachers}

    def _layout(self, name: str) -> ArrayLayout:
        return ArrayLayout(name, self.facts.num_samples, self.facts.num_classes, self._rows)

    @property
    def rows_done(self) -> int:
        """Rows that are safe on disk: the index of the first sample to append next."""
        return self._draft.rows_done

    def append(
        self,
        answers: NDArray[np.floating[Any]],
        labels: NDArray[np.integer[Any]],
        sample_hash: NDArray[np.uint64],
    ) -> None:
        """Take the next n samples.

        Parameters
        ----------
        answers : ndarray of shape (n, K), or (M, n, K) for M teachers
            Logits or soft labels, as `source` says; float16 or float32.
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
            When the disk refuses; what was written before is kept.
        """
        first = self._draft.rows_taken
        shape = (len(labels), self.facts.num_classes)
        stacked = answers[None] if answers.ndim == 2 else answers
        if stacked.shape != (len(self._teachers), *shape) or sample_hash.shape != labels.shape:
            raise ValueError(f"expected answers of shape {shape}, found {answers.shape}")
        if first + len(labels) > self.facts.num_samples:
            raise ValueError(f"more than {self.facts.num_samples} samples")
        rows: dict[str, NDArray[Any]] = {"labels": labels, "sample_hash": sample_hash}
        if self._source == "soft_labels":
            rows["soft_labels"] = round_soft_labels(stacked[0], first, self.state)
        else:
            for name, logits in zip(self._teachers, stacked, strict=True):
                rows[name] = round_logits(logits, first, self.state)
        self._draft.append(rows)

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
            return total / self.facts.num_samples

        return bisect_temperature(mean_top, target_top_probability)

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
        require_replaceable(target, replace=replace)
        require_temperature(temperature)
        self._require_complete()
        self._require_fingerprint()
        beside = target.with_name(f".{target.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        attributes = StoreAttributes(**(_only_facts(self.facts) | {"temperature": temperature}))
        identity = build_store(beside, attributes, self._sources(temperature), progress)
        replace_tree(beside, target)
        remove_state(self.state)
        return identity

    def _sources(
        self, temperature: float
    ) -> dict[ArrayLayout, Callable[[int], Path | NDArray[Any]]]:
        names = {"labels": "labels", "sample_hash": "sample_hash", "soft_labels": "soft_labels"}
        if self._keep_logits:
            names["logits"] = self._teachers[0]
        sources: dict[ArrayLayout, Callable[[int], Path | NDArray[Any]]] = {
            self._layout(name): partial(self._draft.chunk_path, column)
            for name, column in names.items()
        }
        if self._source == "logits":
            teachers = [self._draft.column(name) for name in self._teachers]
            # From the logits as they are stored, so that one can be checked against the other.
            sources[self._layout("soft_labels")] = lambda chunk: to_float16(
                mean_softened([teacher.chunk(chunk) for teacher in teachers], temperature)
            )
        return sources

    def _require_complete(self) -> None:
        if self.rows_done < self.facts.num_samples:
            raise StoreError(
                self.state,
                "samples are missing",
                expected=self.facts.num_samples,
                found=self.rows_done,
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


def _only_facts(facts: StoreFacts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in StoreFacts.model_fields}


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
    writer = StoreWriter(state, attributes, keep_logits=keep_logits, source=source, rows=rows)
    writer.append(answers, labels, sample_hash)
    return writer.publish(target, attributes.temperature, replace=replace)
