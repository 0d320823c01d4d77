"""Reliability: how often a model is right that says it is so sure."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from ltd_pipe.evaluation.statistics import BINS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ltd_pipe.evaluation.statistics import ConfidenceBin


# --- Figures as SVG that takes its colours from the page, so that one file suits light and dark.


# Stand-ins that no default of matplotlib uses; each becomes the CSS variable of its name.
COLOURS = {
    "ink": "#010203",
    "muted": "#010204",
    "rule": "#010205",
    "student": "#010206",
    "baseline": "#010207",
    "teacher": "#010208",
    "A": "#010209",
    "B": "#01020b",
}
# Not by colour alone: each model, and each of two runs, has a line style and a marker of its own.
STYLES: dict[str, dict[str, Any]] = {
    "student": {"linestyle": "-", "marker": "o"},
    "baseline": {"linestyle": (0, (5, 2)), "marker": "s"},
    "teacher": {"linestyle": (0, (1, 1.5)), "marker": "^"},
    "A": {"linestyle": (0, (5, 2)), "marker": "s"},
    "B": {"linestyle": "-", "marker": "o"},
}
_SIZE = (5.2, 3.4)
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 12,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2,
    "lines.markersize": 4,
}


def draw(
    name: str,
    paint: Callable[..., None],
    *,
    heights: Sequence[float] = (1.0,),
    size: tuple[float, float] = _SIZE,
) -> str:
    """One figure.

    Parameters
    ----------
    name : str
        Unique on the page.
    paint : callable
        Given matplotlib's axes, one for each height. It draws numbers and words of ours alone.
    heights : sequence of float
        Of panels above each other that share the horizontal axis, in proportion.
    size : tuple of float
        Width and height; in proportion, since the page scales it.

    Returns
    -------
    str
        An `<svg>` element; the same arguments give the same text.
    """
    # Here and not at the top: importing matplotlib makes a folder in the user's home.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    settings: Any = _SETTINGS | {"svg.hashsalt": name}
    with mpl.rc_context():
        # The user's own settings would give other bytes.
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)
        paint(*panels[:, 0])
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """An SVG file as an element of the page: no prolog, ids of its own, colours by variable."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    for colour, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{colour})")
    # What it shows is said in the figure's caption.
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


# --- Reliability: how often a model is right that says it is so sure.


def draw_reliability(name: str, models: Mapping[str, Sequence[ConfidenceBin]]) -> str:
    """Accuracy by confidence with the diagonal, and below it the images in each bin.

    Parameters
    ----------
    name : str
        Of the figure, unique on the page.
    models : mapping of str to sequence of ConfidenceBin
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


def _points(axes: Any, model: str, bins: Sequence[ConfidenceBin]) -> None:
    x, y = ([100 * getattr(one, side) for one in bins] for side in ("confidence", "accuracy"))
    ends = [one.interval for one in bins]
    # Rounding may put a bound a hair beyond the share that it bounds.
    below = [max(100 * (one.accuracy - low), 0) for one, (low, _) in zip(bins, ends, strict=True)]
    above = [max(100 * (high - one.accuracy), 0) for one, (_, high) in zip(bins, ends, strict=True)]
    colour = COLOURS[model]
    axes.errorbar(x, y, [below, above], fmt="none", ecolor=colour, elinewidth=1, alpha=0.45)
    axes.plot(x, y, color=colour, label=model, **STYLES[model])


def _counts(axes: Any, model: str, bins: Sequence[ConfidenceBin], place: int, models: int) -> None:
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
