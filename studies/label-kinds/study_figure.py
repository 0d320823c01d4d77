"""Every arm less the first of its group, in clean and in robust accuracy."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from study_runs import Arm, difference

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["draw"]

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "label-kinds",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": "#dedad2",
    "ytick.major.size": 0,
}
_TITLES = {"clean": "clean accuracy", "autoattack": "AutoAttack accuracy", "cw": "CW-PGD-50"}
_TITLE = "Less one-hot labels of the same seed: mean, 95 % interval, each seed"
_SMOOTHED, _SOFT = "#b4520a", "#1f5fbf"


def draw(arms: Sequence[Arm]) -> str:
    """Differences to each group's first arm: mean, 95 % interval, and each seed.

    Parameters
    ----------
    arms : sequence of Arm
        The first of each group is what its others are compared with.

    Returns
    -------
    str
        An SVG file, the same for the same arms.
    """
    pairs = _pairs(arms)
    text = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = _SETTINGS
        mpl.rcParams.update(settings)
        figure = Figure(figsize=(10, 1.3 + 0.3 * len(pairs)), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, measure in zip(panels, ("clean", arms[0].strongest), strict=True):
            for row, (arm, first) in enumerate(pairs):
                _paint(axes, row, arm, first, measure)
            axes.axvline(0, color="#5f5b54", linewidth=1)
            axes.set_xlabel(f"{_TITLES[measure]}, points")
        panels[0].set_yticks(
            range(len(pairs)), [f"{arm.group}: {arm.title.split(' (')[0]}" for arm, _ in pairs]
        )
        figure.suptitle(_TITLE, fontsize=10)
        panels[0].set_ylim(len(pairs) - 0.5, -0.5)
        figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None})
    return text.getvalue()


def _pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Arms by group, each with the first one of its group."""
    firsts: dict[str, Arm] = {}
    for arm in arms:
        firsts.setdefault(arm.group, arm)
    pairs = [(arm, firsts[arm.group]) for arm in arms if arm is not firsts[arm.group]]
    return sorted(pairs, key=lambda pair: list(firsts).index(pair[0].group))


def _paint(axes: Any, row: int, arm: Arm, first: Arm, measure: str) -> None:
    colour, marker = (_SOFT, "o") if arm.teacher else (_SMOOTHED, "s")
    ours, theirs = arm.best[measure], first.best[measure]
    apart = difference(ours, theirs)
    if len(ours) > 1:
        axes.plot([100 * apart.low, 100 * apart.high], [row, row], color=colour, linewidth=1.4)
    seeds = 100 * np.subtract(ours, theirs)
    axes.plot(seeds, [row] * len(seeds), "|", color=colour, markersize=9)
    axes.plot([100 * apart.mean], [row], marker, color=colour, markersize=6)
