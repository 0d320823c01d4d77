"""Reliability: how often a model is right that says it is so sure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.errors import ResultError
from pipeline.evaluation.accuracy import BINS, mean_gap, wilson_interval
from pipeline.report.drawing import COLOURS, STYLES, draw
from pipeline.report.results import Document, Share, read_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["BINS", "Bin", "Reliability", "draw_reliability", "read_reliability"]

_COMMAND = "ltd-pipe evaluate"


class Bin(Document):
    """Images to which a model answered with about one confidence; bin k has (k/15, (k+1)/15]."""

    number: int = Field(ge=0, lt=BINS)
    count: int = Field(ge=1)
    confidence: Share
    accuracy: Share

    @property
    def interval(self) -> tuple[float, float]:
        """Of the accuracy, 95 %."""
        return wilson_interval(round(self.accuracy * self.count), self.count)


class Reliability(Document):
    """reliability.json: the bins that hold images, without and under attack."""

    clean: tuple[Bin, ...]
    under_attack: tuple[Bin, ...]


def read_reliability(path: Path, n: int, errors: Mapping[str, float | None]) -> Reliability:
    """Read what an evaluation left.

    Parameters
    ----------
    path : Path
        reliability.json.
    n : int
        Images of the evaluation.
    errors : mapping of str to float
        The calibration errors of its metrics.json; None where it has none.

    Raises
    ------
    ResultError
        When the file is damaged, or the bins are not those of these calibration errors.
    """
    found = read_result(path, Reliability, _COMMAND)
    for name, error in errors.items():
        bins: tuple[Bin, ...] = getattr(found, name)
        if sum(one.count for one in bins) != n:
            raise _other(path, f"{name}: images", n, sum(one.count for one in bins))
        # What is left is rounding: the sums are of the same numbers.
        if error is not None and abs(mean_gap(bins) - error) > 1e-6:
            raise _other(path, f"{name}: calibration error", error, mean_gap(bins))
    return found


def _other(path: Path, what: str, expected: float, found: float) -> ResultError:
    return ResultError(
        path,
        f"is of another evaluation than its metrics: {what}",
        expected=f"{expected:.6g}",
        found=f"{found:.6g}",
        remedy=f"Run '{_COMMAND}' again.",
    )


def draw_reliability(name: str, models: Mapping[str, Sequence[Bin]]) -> str:
    """Accuracy by confidence with the diagonal, and below it the images in each bin.

    Parameters
    ----------
    name : str
        Of the figure, unique on the page.
    models : mapping of str to sequence of Bin
        By `student` and `baseline`, which decide colour and line.

    Returns
    -------
    str
        An `<svg>` element; the same arguments give the same text.
    """

    def paint(upper: Any, lower: Any) -> None:
        upper.plot([0, 100], [0, 100], color=COLOURS["muted"], linewidth=1.2, linestyle=(0, (2, 2)))
        for place, (model, bins) in enumerate(models.items()):
            _points(upper, model, bins)
            _counts(lower, model, bins, place, len(models))
        upper.set_xlim(0, 100)
        upper.set_ylim(0, 104)
        upper.set_yticks([0, 25, 50, 75, 100])
        upper.set_ylabel("accuracy, %")
        upper.legend(loc="lower right")
        _count_axis(lower, max(one.count for bins in models.values() for one in bins))

    return draw(name, paint, heights=(3, 1), size=(5.2, 4.4))


def _points(axes: Any, model: str, bins: Sequence[Bin]) -> None:
    x, y = ([100 * getattr(one, side) for one in bins] for side in ("confidence", "accuracy"))
    ends = [one.interval for one in bins]
    # Rounding may put a bound a hair beyond the share that it bounds.
    below = [max(100 * (one.accuracy - low), 0) for one, (low, _) in zip(bins, ends, strict=True)]
    above = [max(100 * (high - one.accuracy), 0) for one, (_, high) in zip(bins, ends, strict=True)]
    colour = COLOURS[model]
    axes.errorbar(x, y, [below, above], fmt="none", ecolor=colour, elinewidth=1, alpha=0.45)
    axes.plot(x, y, color=colour, label=model, **STYLES[model])


def _counts(axes: Any, model: str, bins: Sequence[Bin], place: int, models: int) -> None:
    width = 100 / BINS
    part = 0.86 * width / models
    left = [one.number * width + 0.07 * width + place * part for one in bins]
    counts = [one.count for one in bins]
    axes.bar(left, counts, width=part, align="edge", color=COLOURS[model])


def _count_axis(axes: Any, largest: int) -> None:
    # One image is still a bar, beside thousands.
    axes.set_yscale("log")
    axes.set_ylim(0.6, 2 * largest)
    ticks = [10**power for power in range(0, len(str(largest)), 2 if largest > 9_999 else 1)]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("images")
    axes.set_xlabel("confidence: probability of the predicted class, %")
