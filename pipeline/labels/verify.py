"""Checking everything about a store that can be checked without its teacher."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ltd_pipe.errors import JoinError, StoreError
from ltd_pipe.images.manifest import fingerprint, sampled_pixels_sha256
from ltd_pipe.labels.dataset import Replay
from ltd_pipe.labels.format import row_sum_tolerance, to_float32
from ltd_pipe.labels.labelling import view_answers
from ltd_pipe.labels.manifest import StoreFolder, verify_listing
from ltd_pipe.labels.reader import SoftLabels, parse_chunk, require_distributions, require_padding
from ltd_pipe.labels.softmax import mean_softened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ltd_pipe.device import Precision
    from ltd_pipe.images.stream import Batch, Stream
    from ltd_pipe.labels.join import ImagesLike
    from ltd_pipe.models.classifier import Classifier


# --- Asking the teacher again: whether it gave the answers that a store says it gave.


# Of a row's largest logit: four steps of float16, which leaves room for the rounding of another
# machine, of another batch, and of TF32. bfloat16 needs about 0.05.
TOLERANCE = 2.0**-9
# float16's own rounding of a probability.
_RELATIVE, _ABSOLUTE = 2.0**-10, 2.0**-24


@dataclass(frozen=True)
class Recomputed:
    """What came of asking again.

    Attributes
    ----------
    answers : int
        Pairs of sample and view that were compared.
    worst_probability : float
        Largest difference of a probability.
    worst_logit : float or None
        Largest difference of a logit; None: the store has none.
    """

    answers: int
    worst_probability: float
    worst_logit: float | None


def order_of_teachers(store: SoftLabels, sha256: Sequence[str]) -> list[int]:
    """Which of the given checkpoints is each of the store's teachers.

    Parameters
    ----------
    store : SoftLabels
    sha256 : sequence of str
        Of the checkpoints that are given, in any order.

    Returns
    -------
    list of int
        For each teacher of the store, in its order, its place among the given ones.

    Raises
    ------
    StoreError
        When one is not the store's, or one of the store's was not given.
    """
    named = [teacher.sha256 for teacher in store.attributes.teachers]
    known = ", ".join(f"{one[:12]}… " for one in named).rstrip() or "none"
    for one in sha256:
        if one not in named:
            raise StoreError(
                store.path,
                "the teacher that was given is not the store's",
                expected=known,
                found=f"{one[:12]}…",
                remedy="Pass the checkpoint that 'ltd-pipe store info' names.",
            )
    missing = [one for one in named if one not in sha256]
    if missing or not named:
        raise StoreError(
            store.path,
            "all of its teachers are needed",
            expected=known,
            found=f"no {missing[0][:12]}…" if missing else None,
            remedy="Pass --teacher for each.",
        )
    return [list(sha256).index(one) for one in named]


def recompute(
    store: SoftLabels,
    teachers: Sequence[Classifier],
    stream: Stream,
    *,
    sample: int,
    seed: int,
    data: str,
    tolerance: float = TOLERANCE,
    batch_size: int = 256,
    precision: Precision = "float32",
    progress: Callable[[int], None] | None = None,
) -> Recomputed:
    """Compare the teachers' answers to random views of random samples with the stored ones.

    A stored probability p is right when it lies within p · (exp(2δ / temperature) - 1) of the
    recomputed one, and float16's rounding: that far it moves when no logit moves by more than δ,
    the tolerance times the largest logit of the row. So small probabilities are held as closely
    as large ones, and labels of another crop are found out by them. Logits, where there are
    any, must be within δ themselves.

    Parameters
    ----------
    store : SoftLabels
        Verified: what is compared here is only whether its numbers are the teachers'.
    teachers : sequence of Classifier
        In the store's order, in evaluation mode, on the stream's device.
    stream : ImageStream or FolderStream
        Of the labelled images; each one's hash is compared.
    sample : int
        Number of pairs of sample and view, drawn without replacement; all where there are fewer.
    seed : int
        Of the draw. Whoever made the labels must not have known it.
    data : str
        How the user knows the images, for the error.
    tolerance : float
        Of the row's largest logit.
    batch_size : int
    precision : str
    progress : callable, optional
        Called with the number of answers just compared.

    Raises
    ------
    StoreError
        At the first answer that is another one, naming sample, view and class.
    JoinError
        When an image is not the labelled one.
    """
    replay = Replay.of(store.attributes.views, store.path)
    pairs = _drawn(store.num_samples * store.num_views, sample, seed)
    comparison = _Comparison(store, tolerance, _hint(store, stream))
    for view in range(store.num_views):
        rows = pairs[pairs % store.num_views == view] // store.num_views
        for batch in stream.batches(rows, batch_size):
            store.join(batch.rows, batch.sample_hash, data)
            logits = view_answers(teachers, batch, replay, view, precision)
            comparison.add(batch, view, logits.cpu().numpy())
            if progress is not None:
                progress(len(batch.rows))
    return Recomputed(len(pairs), comparison.worst_probability, comparison.worst_logit)


def _hint(store: SoftLabels, stream: Stream) -> str:
    asked = store.attributes.labelling
    if asked is None or asked.pixels_sha256 is None:
        return "These labels are not that teacher's answers to those views."
    if asked.pixels_sha256 == sampled_pixels_sha256(stream, store.num_samples):
        return "These labels are not that teacher's answers to those views of the same pixels."
    return (
        "These images have other pixels than those that were labelled (another encoding, or "
        "another decoder): pass them as they were."
    )


def _drawn(total: int, count: int, seed: int) -> NDArray[np.int64]:
    # Ascending, so that files are read in their order.
    if count >= total:
        return np.arange(total)
    drawn = np.random.default_rng(seed).choice(total, count, replace=False)
    return np.sort(drawn).astype(np.int64)


class _Comparison:
    def __init__(self, store: SoftLabels, tolerance: float, hint: str) -> None:
        self._store, self._tolerance, self._hint = store, tolerance, hint
        self.worst_probability = 0.0
        self.worst_logit = 0.0 if store.has_logits else None

    def add(self, batch: Batch, view: int, logits: NDArray[np.float32]) -> None:
        """Compare one batch; logits of shape (M, n, K)."""
        store, temperature = self._store, self._store.attributes.temperature
        delta = self._tolerance * np.abs(logits).max(axis=(0, 2))[:, None]
        if store.has_logits:
            stored = to_float32(store.gather_logits(batch.rows, view=view))
            bound = np.broadcast_to(delta, stored.shape)
            worst = self._require(batch, view, "logit", stored, logits[0], bound)
            self.worst_logit = max(self.worst_logit or 0.0, worst)
        right = mean_softened([*logits], temperature)
        # Beyond e^50 nothing is refused, and nothing must overflow.
        share = np.expm1(np.minimum(2.0 * delta / temperature, 50.0)) + _RELATIVE
        found = self._stored(batch, view, right)
        bound = right * share + _ABSOLUTE
        worst = self._require(batch, view, "probability", found, right, bound)
        self.worst_probability = max(self.worst_probability, worst)

    def _stored(self, batch: Batch, view: int, right: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._store.top_k is None:
            return to_float32(self._store.gather(batch.rows, view=view))
        indices, probs = self._store.gather_topk(batch.rows, view=view)
        # Of a class that is not listed only this is said: it has no more than the last that is.
        found = np.minimum(right, to_float32(probs[:, -1:]))
        np.put_along_axis(found, indices.astype(np.int64), to_float32(probs), axis=1)
        return found

    def _require(
        self,
        batch: Batch,
        view: int,
        what: str,
        stored: NDArray[np.float32],
        right: NDArray[np.float32],
        bound: NDArray[np.floating],
    ) -> float:
        distance = np.abs(stored - right)
        # Written so that NaN fails.
        within = distance <= bound
        if within.all():
            return float(distance.max())
        row = int(np.argmin(within.all(axis=1)))
        column = int(np.argmax(np.where(within[row], -1.0, distance[row] / bound[row])))
        name = self._store.attributes.class_names[column]
        raise StoreError(
            self._store.path,
            f"sample {batch.rows[row]}, view {view}: {what} of class '{name}'",
            expected=f"{right[row, column]:.6g}, which the teacher answers",
            found=f"{stored[row, column]:.6g}, {distance[row, column] / bound[row, column]:.3g} "
            "times as far as rounding explains",
            remedy=self._hint,
        )


# --- Checking everything about a store that can be checked without its teacher.


# Each holds one chunk of each array.
_MAX_THREADS = 8


@dataclass(frozen=True)
class Check:
    """One thing that was checked and found right, or that could not be checked.

    Attributes
    ----------
    name : str
    detail : str
        What exactly was compared, or why it could not be.
    done : bool
    """

    name: str
    detail: str
    done: bool = True


def verify_store(
    path: Path, images: ImagesLike | None = None, progress: Callable[[int], None] | None = None
) -> list[Check]:
    """Check a store, a few chunks at a time, and in their memory.

    Parameters
    ----------
    path : Path
        The store.
    images : Beton, optional
        The images that it should belong to.
    progress : callable, optional
        Called with the number of samples just checked, N in all.

    Returns
    -------
    list of Check
        What was checked, then what was not.

    Raises
    ------
    StoreError
        At the first thing that is wrong.
    JoinError
        When the labels belong to other images.
    """
    store = SoftLabels.open(path)
    folder = StoreFolder(path)
    chunks = {
        array.layout.chunk_name(chunk)
        for array in store.arrays.values()
        for chunk in range(array.layout.num_chunks)
    }
    verify_listing(folder, store.hashes, chunks)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as threads:
        # In their order, so that the first wrong one is always the same; hashing, checksums and
        # arithmetic let other threads run.
        counts = range(store.arrays["labels"].layout.num_chunks)
        for rows in threads.map(partial(_verify_chunk, store, folder), counts):
            if progress is not None:
                progress(rows)
    _verify_labels(store)
    checks = _done(store, len(chunks))
    if images is not None:
        _verify_join(store, images)
        detail = f"classes, fingerprint, and each of {store.num_samples} hashes and labels"
        checks.append(Check("join", detail))
    return checks + _not_done(store, joined=images is not None)


def _verify_chunk(store: SoftLabels, folder: StoreFolder, chunk: int) -> int:
    # Mapped anew: each is forgotten after its turn, and the bytes that are hashed are those that
    # are looked at.
    rows = {}
    for name, array in store.arrays.items():
        file = array.layout.chunk_name(chunk)
        content = folder.map(file, array.layout.file_bytes)
        store.hashes.verify_content(file, content)
        whole = parse_chunk(folder, array.layout, chunk, content)
        rows[name] = whole[: array.layout.rows_in(chunk)]
        fill = array.layout.fill_value
        require_padding(store.path, file, whole[array.layout.rows_in(chunk) :], fill)
    first = chunk * store.arrays["labels"].layout.rows
    require_distributions(store.path, store.attributes, rows, first)
    return len(rows["labels"])


def _verify_labels(store: SoftLabels) -> None:
    wrong = (store.labels < -1) | (store.labels >= store.num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise StoreError(
            store.path,
            f"sample {row}: label",
            expected=f"-1 to {store.num_classes - 1}",
            found=store.labels[row],
        )
    names = store.attributes.class_names
    found = fingerprint(names, store.labels, store.sample_hash)
    if found != store.attributes.dataset.fingerprint:
        raise StoreError(
            store.path,
            "fingerprint of its own labels and hashes",
            expected=f"{store.attributes.dataset.fingerprint[:12]}…",
            found=f"{found[:12]}…",
            remedy="The store was made wrongly: run 'ltd-pipe label' again.",
        )


def _verify_join(store: SoftLabels, images: ImagesLike) -> None:
    data = f"{images.manifest.dataset} ({images.manifest.split})"
    store.require_data(images.manifest, data, images)
    store.join(np.arange(store.num_samples), images.sample_hash, data)
    different = store.labels != images.labels
    if different.any():
        row = int(np.argmax(different))
        raise JoinError(
            store.path,
            f"sample {row}: label",
            expected=store.labels[row],
            found=f"{images.labels[row]} in {data}",
        )


def _distributions(store: SoftLabels) -> Check:
    tolerance = row_sum_tolerance(store.num_classes)
    rows = f"{store.num_samples} rows"
    if store.num_views > 1:
        rows += f" of {store.num_views} views"
    if store.top_k is None:
        detail = f"{rows}: finite, not negative, sum 1 ± {tolerance:.2g}"
    else:
        detail = (
            f"{rows} of {store.top_k} probabilities: finite, not negative, falling, "
            f"of different classes, sum at most 1 + {tolerance:.2g}"
        )
    return Check("distributions", detail)


def _done(store: SoftLabels, chunk_files: int) -> list[Check]:
    checks = [
        Check("manifest", f"SHA-256 of {len(store.hashes)} files; no file is unlisted"),
        Check("checksums", f"CRC-32C of {chunk_files} chunks"),
        Check("schema", "metadata of the group and of each array, as format 1.0 says"),
        _distributions(store),
        Check("labels", "in range; with the hashes they give the data set's fingerprint"),
    ]
    if store.has_logits:
        detail = f"softmax of the logits at temperature {store.attributes.temperature:g}"
        checks.append(Check("softmax", f"each soft label is the {detail}, in float16"))
    return checks


def _not_done(store: SoftLabels, *, joined: bool) -> list[Check]:
    checks = [Check("teacher", "that this teacher gave these answers: ask it again", done=False)]
    if not store.has_logits:
        checks.append(Check("softmax", "no logits are stored", done=False))
    if store.top_k is not None:
        detail = "how far the rows are from all K probabilities: these are not stored"
        checks.append(Check("total variation", detail, done=False))
    if not joined:
        checks.append(Check("join", "no images were given", done=False))
    return checks
