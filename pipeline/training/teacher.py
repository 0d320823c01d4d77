"""The teacher: clean training with one-hot (or smoothed) labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import objectives
from pipeline.evaluation.accuracy import predict
from pipeline.team import Team
from pipeline.training.examples import fresh_examples
from pipeline.training.loop import Fit
from pipeline.training.targets import smoothed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.images.stream import ImageStream
    from pipeline.models.classifier import Classifier
    from pipeline.params import TeacherParams
    from pipeline.training.passes import Passes
    from pipeline.training.state import Snapshots

__all__ = ["teacher_fit"]


def teacher_fit(
    model: Classifier,
    stream: ImageStream,
    training: NDArray[np.int64],
    validation: NDArray[np.int64],
    params: TeacherParams,
    *,
    snapshots: Snapshots,
    seed: int,
    passes: Passes,
    team: Team | None = None,
) -> Fit:
    """Put together the teacher's run; the best checkpoint has the highest clean accuracy.

    Parameters
    ----------
    model : Classifier
        Freshly initialised, on its device.
    stream : ImageStream
        Over the training images.
    training, validation : ndarray of shape (N,), dtype int64
        Disjoint sample indices.
    params : TeacherParams
    snapshots : Snapshots
    seed : int
    passes : Passes
    team : Team, optional
        Processes that train together.

    Returns
    -------
    Fit
    """
    team = team or Team()

    def validate(candidate: Classifier) -> dict[str, float]:
        if not len(validation):
            return {}
        mine = validation[team.rank :: team.count]
        probabilities, labels = predict(candidate, stream, mine, params.batch_size)
        (hits,) = team.totals(int((probabilities.argmax(axis=1) == labels).sum()))
        return {"validation/clean_accuracy": hits / len(validation)}

    return Fit(
        model=model,
        stream=stream,
        samples=training,
        params=params,
        objective=objectives.Clean(),
        examples=fresh_examples(
            params,
            seed,
            lambda batch: smoothed(batch.labels, model.num_classes, params.label_smoothing),
        ),
        adversary=None,
        validate=validate,
        select=lambda row: (row.get("validation/clean_accuracy", 0.0),),
        snapshots=snapshots,
        seed=seed,
        passes=passes,
        team=team,
    )
