"""Figures as SVG that takes its colours from the page, so that one file suits light and dark."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["COLOURS", "STYLES", "draw"]

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
