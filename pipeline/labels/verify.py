"""Checking everything about a store: without its teacher, and by asking it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import StoreError
from ltd_pipe.images.manifest import fingerprint, sampled_pixels_sha256
from ltd_pipe.labels.format import to_float32
from ltd_pipe.labels.manifest import verify_listing
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.labels.softmax import mean_softened, require_distributions, row_sum_tolerance
from ltd_pipe.threads import usable_cores

if TYPE_CHECKING:
    from ltd_pipe.device import Precision
    from ltd_pipe.images.stream import Stream
    from ltd_pipe.labels.join import ImagesLike
    from ltd_pipe.models.classifier import Classifier

# Each holds one chunk of each array.
_MAX_THREADS = 8


@dataclass(frozen=True)
class Check:
    """One thing that was checked and found right, or why it could not be checked."""

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
    StoreError, JoinError
        At the first thing that is wrong.
    """
    store = SoftLabels.open(path)
    chunks = {*store.chunk_names()}
    verify_listing(store.folder, store.hashes, chunks)
    with ThreadPoolExecutor(min(usable_cores(), _MAX_THREADS)) as threads:
        # In their order, so that the first wrong one is always the same; hashing, checksums and
        # arithmetic let other threads run.
        counts = range(store.arrays["labels"].layout.num_chunks)
        for rows in threads.map(partial(_verify_chunk, store), counts):
            if progress is not None:
                progress(rows)
    _verify_labels(store)
    if images is not None:
        data = f"{images.manifest.dataset} ({images.manifest.split})"
        store.require_data(images.manifest, data, images)
    return _list_checks(store, len(chunks), joined=images is not None)


def _verify_chunk(store: SoftLabels, chunk: int) -> int:
    rows = {}
    for name, array in store.arrays.items():
        count, fill = array.layout.rows_in(chunk), array.layout.fill_value
        # Each is forgotten after its turn.
        whole = array.padded_chunk(chunk)
        rows[name], padding = whole[:count], whole[count:]
        # Bit by bit: a NaN has room for a secret.
        bits = f"u{fill.itemsize}"
        if (np.ascontiguousarray(padding).view(bits) != fill.view(bits)).any():
            # Something is hidden behind the last row.
            what = f"{array.layout.chunk_name(chunk)}: padding"
            expected = f"the fill value {fill[0]}"
            raise StoreError(store.path, what, expected=expected, found="others")
    first = chunk * store.arrays["labels"].layout.rows
    require_distributions(store.path, store.attributes, rows, first)
    return len(rows["labels"])


def _verify_labels(store: SoftLabels) -> None:
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


def _list_checks(store: SoftLabels, chunk_files: int, *, joined: bool) -> list[Check]:
    """What was checked, then what was not."""
    views = f" of {store.num_views} views" if store.num_views > 1 else ""
    sums, tolerance = "sum 1 ±", row_sum_tolerance(store.num_classes)
    if store.top_k is not None:
        views += f" of {store.top_k} probabilities"
        sums = "falling, of different classes, sum at most 1 +"
    softmax = f"softmax of the logits at temperature {store.attributes.temperature:g}"
    checks = [
        Check("manifest", f"SHA-256 of {len(store.hashes)} files; no file is unlisted"),
        Check("checksums", f"CRC-32C of {chunk_files} chunks"),
        Check(
            "schema",
            f"metadata of the group and of each array, as format {store.attributes.version} says",
        ),
        Check(
            "distributions",
            f"{store.num_samples} rows{views}: finite, not negative, {sums} {tolerance:.2g}",
        ),
        Check("labels", "in range; with the hashes they give the data set's fingerprint"),
        Check("teacher", "that this teacher gave these answers: ask it again", done=False),
        Check("softmax", f"each soft label is the {softmax}, in float16")
        if store.has_logits
        else Check("softmax", "no logits are stored", done=False),
        Check("join", f"classes, fingerprint, and each of {store.num_samples} hashes and labels")
        if joined
        else Check("join", "no images were given", done=False),
    ]
    if store.top_k is not None:
        detail = "how far the rows are from all K probabilities: these are not stored"
        checks.append(Check("total variation", detail, done=False))
    return sorted(checks, key=lambda check: not check.done)


# --- Asking the teacher again: whether it gave the answers that a store says it gave.


# Of a row's largest logit: four steps of float16, which leaves room for the rounding of another
# machine, of another batch, and of TF32; and what bfloat16 needs.
TOLERANCE, TOLERANCE_OF_BFLOAT16 = 2.0**-9, 0.05
# float16's own rounding of a probability.
_RELATIVE, _ABSOLUTE = 2.0**-10, 2.0**-24
_BATCH = 256


@dataclass(frozen=True)
class Recomputed:
    """What came of asking again: how many pairs of sample and view, and the largest differences.

    Without stored logits there is no `worst_logit`.
    """

    answers: int
    worst_probability: float
    worst_logit: float | None


def order_of_teachers(store: SoftLabels, sha256: Sequence[str]) -> list[int]:
    """For each teacher of the store, in its order, its place among the given checkpoints.

    A StoreError when one of them is not the store's, or one of the store's was not given.
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
    tolerance: float | None = None,
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
    tolerance : float, optional
        Of the row's largest logit; by default by the precision that the store says.
    progress : callable, optional
        Called with the number of answers just compared.
    """
    from ltd_pipe.labels.labelling import Labeller
    from ltd_pipe.labels.on_device import Replay

    _require_equal_shares(store)
    replay, asked = Replay.of(store.attributes.views, store.path), store.attributes.labelling
    precision: Precision = "bfloat16" if asked and asked.precision == "bfloat16" else "float32"
    if tolerance is None:
        tolerance = TOLERANCE_OF_BFLOAT16 if precision == "bfloat16" else TOLERANCE
    labeller = Labeller(teachers, stream, _BATCH, precision, replay)
    total = store.num_samples * store.num_views
    pairs = np.arange(total)
    if sample < total:
        # Ascending, so that files are read in their order.
        pairs = np.sort(np.random.default_rng(seed).choice(total, sample, replace=False))
    hint, worst = _hint(store, stream), {"probability": 0.0}
    for view in range(store.num_views):
        rows = pairs[pairs % store.num_views == view] // store.num_views
        for batch in stream.batches(rows, _BATCH):
            store.join(batch.rows, batch.sample_hash, data)
            logits = labeller.view(batch, view).cpu().numpy()
            for what, *compared in _stored_and_right(store, batch.rows, view, logits, tolerance):
                subject = f"view {view}: {what}"
                distance = _require_close(store, batch.rows, subject, hint, *compared)
                worst[what] = max(worst.get(what, 0.0), distance)
            if progress is not None:
                progress(len(batch.rows))
    return Recomputed(len(pairs), worst["probability"], worst.get("logit"))


def _require_equal_shares(store: SoftLabels) -> None:
    """Refuse an average that the equal mean over its teachers is not."""
    made, teachers = store.attributes.derived_from, store.attributes.teachers
    if made is None or "average" not in made.operation:
        return
    weighted = any(" weight " in source for source in made.sources)
    if weighted or store.top_k is not None or len(made.sources) != len(teachers):
        raise StoreError(
            store.path,
            "is an average in which its teachers have unequal shares, or of labels that were cut: "
            "their answers alone do not tell what it must be",
            remedy="Ask the teachers of the stores that it was made of, one by one.",
        )


def same_pixels(store: SoftLabels, stream: Stream) -> bool | None:
    """Whether a sample of the images is what was labelled; None where the store does not say."""
    asked = store.attributes.labelling
    if asked is None or asked.pixels_sha256 is None:
        return None
    return asked.pixels_sha256 == sampled_pixels_sha256(stream, store.num_samples)


def _hint(store: SoftLabels, stream: Stream) -> str:
    same = same_pixels(store, stream)
    if same is None:
        return "These labels are not that teacher's answers to those views."
    if same:
        return "These labels are not that teacher's answers to those views of the same pixels."
    return (
        "These images have other pixels than those that were labelled (another encoding, or "
        "another decoder): pass them as they were."
    )


def _stored_and_right(
    store: SoftLabels,
    rows: NDArray[np.int64],
    view: int,
    logits: NDArray[np.float32],
    tolerance: float,
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32], NDArray[np.floating]]]:
    """What is compared, what is stored, what the teachers answer, and how far it may be off.

    The logits are of shape (M, n, K).
    """
    temperature = store.attributes.temperature
    delta = tolerance * np.abs(logits).max(axis=(0, 2))[:, None]
    if store.has_logits:
        stored = to_float32(store.gather_logits(rows, view=view))
        yield "logit", stored, logits[0], np.broadcast_to(delta, stored.shape)
    right = mean_softened([*logits], temperature)
    if store.top_k is None:
        stored = to_float32(store.gather(rows, view=view))
    else:
        indices, probs = store.gather_topk(rows, view=view)
        # Of a class that is not listed only this is said: it has no more than the last that is.
        stored = np.minimum(right, to_float32(probs[:, -1:]))
        np.put_along_axis(stored, indices.astype(np.int64), to_float32(probs), axis=1)
    # Beyond e^50 nothing is refused, and nothing must overflow.
    share = np.expm1(np.minimum(2.0 * delta / temperature, 50.0)) + _RELATIVE
    yield "probability", stored, right, right * share + _ABSOLUTE


def _require_close(
    store: SoftLabels,
    rows: NDArray[np.int64],
    subject: str,
    hint: str,
    stored: NDArray[np.floating],
    right: NDArray[np.floating],
    bound: NDArray[np.floating],
) -> float:
    """The largest distance, none of which may be beyond its bound."""
    distance = np.abs(stored - right)
    # Written so that NaN fails.
    within = distance <= bound
    if within.all():
        return float(distance.max())
    row = int(np.argmin(within.all(axis=1)))
    column = int(np.argmax(np.where(within[row], -1.0, distance[row] / bound[row])))
    raise StoreError(
        store.path,
        f"sample {rows[row]}, {subject} of class '{store.attributes.class_names[column]}'",
        expected=f"{right[row, column]:.6g}, which the teacher answers",
        found=f"{stored[row, column]:.6g}, {distance[row, column] / bound[row, column]:.3g} "
        "times as far as rounding explains",
        remedy=hint,
    )
