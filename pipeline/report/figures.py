"""Charts as SVG that takes its colours from the page, so that one suits light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ltd_pipe.evaluation.results import eps_text
from ltd_pipe.evaluation.statistics import BINS
from ltd_pipe.report.runs import number_text
from ltd_pipe.report.surface import paint_surface

if TYPE_CHECKING:
    from ltd_pipe.evaluation.results import LossSurface
    from ltd_pipe.evaluation.statistics import ConfidenceBin
    from ltd_pipe.report.runs import Evaluation, Run

# Behind by_eps.json and examples.npz, whatever evaluate.pgd_steps is.
CURVE_ATTACK = "PGD-20"
# Stand-ins that no default of matplotlib uses; each becomes the CSS variable of its name. The first
# three stand in figures.mplstyle, too.
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
_STYLES: dict[str, dict[str, Any]] = {
    "student": {"linestyle": "-", "marker": "o"},
    "baseline": {"linestyle": (0, (5, 2)), "marker": "s"},
    "teacher": {"linestyle": (0, (1, 1.5)), "marker": "^"},
    "A": {"linestyle": (0, (5, 2)), "marker": "s"},
    "B": {"linestyle": "-", "marker": "o"},
}


def draw(
    name: str,
    paint: Callable[..., None],
    *,
    heights: Sequence[float] = (1.0,),
    size: tuple[float, float] = (5.2, 3.4),
) -> Markup:
    """One figure as an `<svg>` element; the same arguments give the same text.

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
    """
    # Here and not at the top: importing matplotlib makes a folder in the user's home.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    with mpl.rc_context():
        # Beginning with matplotlib's defaults: the user's own settings would give other bytes.
        mpl.rc_file(Path(__file__).with_name("figures.mplstyle"))
        mpl.rcParams["svg.hashsalt"] = name
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)
        paint(*panels[:, 0])
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    # Drawn from numbers alone: no text of the user's is in a figure.
    return Markup(_inline(text.getvalue(), name))  # noqa: S704


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


def draw_curves(name: str, runs: Sequence[Run], measure: str, label: str) -> Markup:
    """A measure of training by epoch; of an accuracy, in percent, the kept epoch has a ring.

    Empty where no run has it.
    """
    percent, there = measure.endswith("accuracy"), [run for run in runs if measure in run.curves]

    def paint(axes: Any) -> None:
        for run in there:
            colour, curve = COLOURS[run.name], run.curves[measure]
            x, y = curve.epochs, (100 if percent else 1) * curve.values
            # A marker at each of many epochs hides the line.
            every = max(1, len(x) // 8)
            axes.plot(x, y, color=colour, label=run.name, markevery=every, **_STYLES[run.name])
            chosen = None if run.facts.epoch is None else run.facts.epoch + 1
            if percent and chosen in x:
                axes.plot([chosen], y[x == chosen], "o", ms=10, mfc="none", mec=colour, mew=1.6)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best")

    return draw(name, paint) if there else Markup()


def draw_eps(name: str, models: Mapping[str, Evaluation]) -> Markup:
    """Robust accuracy by eps with the band of its 95 % interval, and AutoAttack's diamond."""
    found = sorted({point.eps for one in models.values() for point in one.by_eps})
    # Labels of neighbours that are too close would overlap: about seven fit.
    apart, ticks = (found[-1] - found[0]) / 6, found[:1]
    for eps in found:
        if eps - ticks[-1] > 0.99 * apart:
            ticks.append(eps)
    strongest = {
        model: score for model, one in models.items() if (score := one.score("autoattack"))
    }

    def paint(axes: Any) -> None:
        for model, one in models.items():
            colour, x = COLOURS[model], [point.eps for point in one.by_eps]
            low, high = ([100 * getattr(p, side) for p in one.by_eps] for side in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            y = [100 * point.robust_accuracy for point in one.by_eps]
            axes.plot(x, y, color=colour, label=f"{model}, {CURVE_ATTACK}", **_STYLES[model])
        for number, (model, score) in enumerate(strongest.items()):
            # Side by side, since they often coincide.
            shift = 0.012 * found[-1] * (number - (len(strongest) - 1) / 2)
            x, y = [models[model].metrics.eps + shift], [100 * score.value]
            bars = [[y[0] - 100 * score.low], [100 * score.high - y[0]]]
            style = {"fmt": "D", "color": COLOURS[model], "ms": 6, "capsize": 3, "lw": 1.4}
            axes.errorbar(x, y, bars, label=f"{model}, AutoAttack", **style)
        axes.set_xticks(ticks, [eps_text(eps) if eps else "0" for eps in ticks])
        axes.set_xlabel("ε, radius of the attack in pixel units")
        axes.set_ylim(0, 100)
        axes.set_ylabel("robust accuracy, %")
        axes.legend(loc="best")

    return draw(name, paint)


def draw_histogram(name: str, counts: NDArray[np.int64], mean: float) -> Markup:
    """Share of the images by the top probability of their soft label, in equal parts of [0, 1]."""

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


def draw_reliability(name: str, models: Mapping[str, Sequence[ConfidenceBin]]) -> Markup:
    """Accuracy by confidence with the diagonal, and below it the images in each bin."""
    largest = max(one.count for bins in models.values() for one in bins)
    ticks = [10**power for power in range(0, len(str(largest)), 2 if largest > 9_999 else 1)]
    width = 100 / BINS
    part = 0.86 * width / len(models)

    def paint(upper: Any, lower: Any) -> None:
        upper.plot([0, 100], [0, 100], color=COLOURS["muted"], linewidth=1.2, linestyle=(0, (2, 2)))
        for place, (model, bins) in enumerate(models.items()):
            colour = COLOURS[model]
            x, y = ([100 * getattr(b, side) for b in bins] for side in ("confidence", "accuracy"))
            # Rounding may put a bound a hair beyond the share that it bounds.
            below = [max(100 * (b.accuracy - b.interval[0]), 0) for b in bins]
            above = [max(100 * (b.interval[1] - b.accuracy), 0) for b in bins]
            bars = {"fmt": "none", "ecolor": colour, "elinewidth": 1, "alpha": 0.45}
            upper.errorbar(x, y, [below, above], **bars)
            upper.plot(x, y, color=colour, label=model, **_STYLES[model])
            left = [b.number * width + 0.07 * width + place * part for b in bins]
            lower.bar(left, [b.count for b in bins], width=part, align="edge", color=colour)
        upper.set_xlim(0, 100)
        upper.set_ylim(0, 104)
        upper.set_yticks([0, 25, 50, 75, 100])
        upper.set_ylabel("accuracy, %")
        upper.legend(loc="lower right")
        # One image is still a bar, beside thousands.
        lower.set_yscale("log")
        lower.set_ylim(0.6, 2 * largest)
        lower.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        lower.minorticks_off()
        lower.grid(visible=False, axis="x")
        lower.set_ylabel("images")
        lower.set_xlabel("confidence: probability of the predicted class, %")

    return draw(name, paint, heights=(3, 1), size=(5.2, 4.4))


def draw_loss_surface(name: str, surface: LossSurface, eps: float) -> Markup:
    """The loss around images, within a ball of radius `eps`.

    loss_surface.svg beside audit.json shows the same. It is not taken from there: what is in the
    page is drawn from numbers, so that no text of a file's can come in.
    """

    def paint(axes: Any) -> None:
        paint_surface(axes, surface, eps)
        axes.grid(visible=False)

    return draw(name, paint)
