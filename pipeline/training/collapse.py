"""Catastrophic overfitting: training that has learnt to fool its own attack.

Training against one step can collapse within an epoch: the network becomes so crooked between
an image and its neighbours that the training attack finds nothing any more, while PGD finds
everything (Wong et al. 2020; Andriushchenko and Flammarion 2020). Wong et al. stop
when PGD's accuracy on one batch of training images falls by 0.2 from one epoch to the next.
Andriushchenko and Flammarion measure how far gradients within the ball point the same way.

Here nothing more is measured than an epoch's row has: the accuracy under validation's PGD,
against its own best so far and against that under the training attack in the same epoch. It is
not robust overfitting (Rice et al. 2020), in which robust accuracy on held-out images sinks by
some points over many epochs, for any attack, and for which the best checkpoint is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltd_pipe.evaluation.statistics import wilson_interval

if TYPE_CHECKING:
    from ltd_pipe.training.snapshots import Row

_VALIDATED, _TRAINED = "validation/robust_accuracy", "train/robust_accuracy"
# A fall to below half of the best: robust overfitting costs up to a third of it.
_FALL = 0.5
# What PGD leaves, of what the training attack leaves. Sound runs that fit their training images
# perfectly still have a fifth (CIFAR-100); collapsed ones have nothing.
_GAP = 0.1
# Below, a training attack that finds most images is fooled by nobody yet.
_FOOLED = 0.5


@dataclass(frozen=True)
class Collapse:
    """The first epoch at which training was seen to have collapsed, and the best one before.

    Robust accuracies are under validation's PGD, the attack's under the training attack. Epochs
    are counted from 0.
    """

    epoch: int
    best_epoch: int
    robust_accuracy: float
    best_robust_accuracy: float
    attack_accuracy: float

    def __str__(self) -> str:
        return (
            f"catastrophic overfitting at epoch {self.epoch + 1}: PGD leaves "
            f"{self.robust_accuracy:.1%} of the validation images right "
            f"({self.best_robust_accuracy:.1%} at epoch {self.best_epoch + 1}), the training "
            f"attack {self.attack_accuracy:.1%} of its own"
        )


def first_collapse(
    history: Sequence[Row], *, images: int, warmup_epochs: float = 0.0
) -> Collapse | None:
    """The first epoch whose row shows catastrophic overfitting, a pure function of the rows.

    Either robust accuracy has fallen to below half of its best, while the training attack finds
    no more than it did then; or it is below a tenth of what the training attack leaves, and that
    is half of the images or more: single-step training that never was robust. In both, the ends
    of 95 % intervals are compared and not the numbers, so that a few images more or less are
    no collapse. A run whose loss diverges is none: there the training attack wins as well.

    Parameters
    ----------
    history : sequence of dict
        One row per epoch: `train/robust_accuracy`, and where there was a validation
        `validation/robust_accuracy`.
    images : int
        Of the validation split.
    warmup_epochs : float
        Rows of epochs that began before are passed over: their training attack had a smaller
        ball than validation's.
    """
    best: Row = {}
    for row in history:
        if _VALIDATED not in row or _TRAINED not in row or row["epoch"] < warmup_epochs:
            continue
        attacked = row[_TRAINED]
        _, highest = _interval(row, images)
        never_robust = attacked >= _FOOLED and highest < _GAP * attacked
        if best:
            lowest, _ = _interval(best, images)
            has_fallen = highest < _FALL * lowest and attacked >= best[_TRAINED]
            if has_fallen or never_robust:
                return Collapse(
                    epoch=int(row["epoch"]),
                    best_epoch=int(best["epoch"]),
                    robust_accuracy=row[_VALIDATED],
                    best_robust_accuracy=best[_VALIDATED],
                    attack_accuracy=attacked,
                )
        if not best or row[_VALIDATED] >= best[_VALIDATED]:
            best = row
    return None


def _interval(row: Row, images: int) -> tuple[float, float]:
    return wilson_interval(round(row[_VALIDATED] * images), images)
