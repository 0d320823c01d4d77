"""Asking the teacher again: whether it gave the answers that a store says it gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ltd_pipe.errors import StoreError
from ltd_pipe.images.manifest import sampled_pixels_sha256
from ltd_pipe.labels.dataset import Replay
from ltd_pipe.labels.format import to_float32
from ltd_pipe.labels.labelling import view_answers
from ltd_pipe.labels.softmax import mean_softened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ltd_pipe.device import Precision
    from ltd_pipe.images.stream import Batch, Stream
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.models.classifier import Classifier

__all__ = ["TOLERANCE", "Recomputed", "order_of_teachers", "recompute"]

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
