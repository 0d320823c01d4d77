"""Curves, robust accuracy by eps, and the histogram of the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.surface_figure import paint_surface
from pipeline.report.drawing import COLOURS, STYLES, draw
from pipeline.report.scores import CURVE_ATTACK
from pipeline.report.wording import eps_text, number_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.report.audit import SurfaceFacts
    from pipeline.report.runs import Curve
    from pipeline.report.scores import EpsPoint, Score

__all__ = [
    "EpsSeries",
    "Series",
    "draw_curves",
    "draw_eps",
    "draw_histogram",
    "draw_loss_surface",
]


@dataclass(frozen=True)
class Series:
    """One model's line.

    Attributes
    ----------
    run : str
        `student`, `baseline`, `teacher`, `A` or `B`: decides colour and line.
    curve : Curve
    chosen : int or None
        Epoch of the checkpoint that was kept.
    """

    run: str
    curve: Curve
    chosen: int | None = None


@dataclass(frozen=True)
class EpsSeries:
    """One model's robust accuracy by eps.

    Attributes
    ----------
    run : str
    points : sequence of EpsPoint
    eps : float
        Where the strongest attack was run.
    strongest : Score or None
        What AutoAttack left there.
    """

    run: str
    points: Sequence[EpsPoint]
    eps: float
    strongest: Score | None


def draw_curves(name: str, series: Sequence[Series], *, label: str, percent: bool) -> str:
    """A measure by epoch.

    Parameters
    ----------
    name : str
        Of the figure, unique on the page.
    series : sequence of Series
    label : str
        Of the vertical axis.
    percent : bool
        The values are fractions, shown as percentages.

    Returns
    -------
    str
        An `<svg>` element; the same arguments give the same text.
    """

    def paint(axes: Any) -> None:
        scale = 100 if percent else 1
        for one in series:
            colour, style = COLOURS[one.run], STYLES[one.run]
            x, y = one.curve.epochs, scale * one.curve.values
            # A marker at each of many epochs hides the line.
            every = max(1, len(x) // 8)
            axes.plot(x, y, color=colour, label=one.run, markevery=every, **style)
            if one.chosen is not None and one.chosen in x:
                at = y[x == one.chosen]
                axes.plot([one.chosen], at, "o", ms=10, mfc="none", mec=colour, mew=1.6)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best")

    return draw(name, paint)


def draw_eps(name: str, series: Sequence[EpsSeries]) -> str:
    """Robust accuracy by eps with the band of its 95 % interval; see `draw_curves`."""

    def paint(axes: Any) -> None:
        for one in series:
            colour, style = COLOURS[one.run], STYLES[one.run]
            x = [point.eps for point in one.points]
            low, high = ([100 * getattr(p, side) for p in one.points] for side in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            y = [100 * point.robust_accuracy for point in one.points]
            axes.plot(x, y, color=colour, label=f"{one.run}, {CURVE_ATTACK}", **style)
        _mark_strongest(axes, series)
        _eps_axis(axes, series)
        axes.set_ylim(0, 100)
        axes.set_ylabel("robust accuracy, %")
        axes.legend(loc="best")

    return draw(name, paint)


def _mark_strongest(axes: Any, series: Sequence[EpsSeries]) -> None:
    measured = [one for one in series if one.strongest is not None]
    width = max((point.eps for one in series for point in one.points), default=1.0)
    for number, one in enumerate(measured):
        score = one.strongest
        if score is None:
            continue
        # Side by side, since they often coincide.
        x = one.eps + 0.012 * width * (number - (len(measured) - 1) / 2)
        y = 100 * score.value
        bars = [[y - 100 * score.low], [100 * score.high - y]]
        colour = COLOURS[one.run]
        label = f"{one.run}, AutoAttack"
        axes.errorbar([x], [y], bars, fmt="D", color=colour, ms=6, capsize=3, lw=1.4, label=label)


def _eps_axis(axes: Any, series: Sequence[EpsSeries]) -> None:
    found = sorted({point.eps for one in series for point in one.points})
    # Labels of neighbours that are too close would overlap: about seven fit.
    apart = (found[-1] - found[0]) / 6
    ticks: list[float] = []
    for eps in found:
        if not ticks or eps - ticks[-1] > 0.99 * apart:
            ticks.append(eps)
    axes.set_xticks(ticks, [eps_text(eps) if eps else "0" for eps in ticks])
    axes.set_xlabel("ε, radius of the attack in pixel units")


def draw_histogram(name: str, counts: NDArray[np.int64], mean: float) -> str:
    """Share of the images by the top probability of their soft label; see `draw_curves`.

    Parameters
    ----------
    name : str
    counts : ndarray of shape (B,), dtype int64
        Images in B equal parts of [0, 1].
    mean : float
        Mean top probability.
    """

    def paint(axes: Any) -> None:
        width = 1 / len(counts)
        left = np.arange(len(counts)) * width
        share = 100 * counts / max(int(counts.sum()), 1)
        axes.bar(left, share, width=0.86 * width, align="edge", color=COLOURS["teacher"])
        axes.axvline(mean, color=COLOURS["ink"], linewidth=1.4, linestyle=(0, (4, 2)))
        axes.annotate(
            f"mean {number_text(round(mean, 3))}",
            (mean, 1),
            xycoords=("data", "axes fraction"),
            # Above the axes, where no bar can be behind it.
            xytext=(0, 4),
            textcoords="offset points",
            ha="right" if mean > 0.85 else "left" if mean < 0.15 else "center",
            va="bottom",
        )
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("largest probability of a soft label")
        axes.set_ylabel("images, %")

    return draw(name, paint)


def draw_loss_surface(name: str, surface: SurfaceFacts, eps: float) -> str:
    """The loss around images, from audit.json's numbers; see `draw_curves`.

    loss_surface.svg beside it shows the same. It is not taken from there: what is in the page
    is drawn here, so that no text of a file's can come in.

    Parameters
    ----------
    name : str
    surface : SurfaceFacts
    eps : float
        Radius of the ball.
    """

    def paint(axes: Any) -> None:
        paint_surface(axes, surface.offsets, surface.loss, eps)
        axes.grid(visible=False)

    return draw(name, paint)
