"""What studies share: rows of results, differences between arms, tables, a figure, the commands.

Each study has a link to this file, so that its programs find it wherever they are started.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from scipy import stats
from scipy.optimize import brentq

from ltd_pipe.provenance import hardware, software
from ltd_pipe.stages.cli import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Difference",
    "Line",
    "alike",
    "append_row",
    "difference",
    "draw",
    "ltd_pipe",
    "matching_smoothing",
    "read_rows",
    "read_runs",
    "settings",
    "smoothed_entropy",
    "spread",
    "svg",
    "table",
    "write_runs",
]


def ltd_pipe(*words: object) -> None:
    """Run a command of ltd-pipe in this process: `ltd_pipe("label", "--out", path)`."""
    cli.main([str(word) for word in words], prog_name="ltd-pipe", standalone_mode=False)


def settings(changes: Mapping[str, object]) -> list[str]:
    """Changes of params.yaml as options of such a command: `-S NAME=VALUE` for each."""
    return [word for name, value in changes.items() for word in ("-S", f"{name}={value}")]


# --- Smoothing that is as soft as a teacher's labels.


def smoothed_entropy(alpha: float, num_classes: int) -> float:
    """Entropy in nats of a label of which `alpha` is spread evenly over all classes."""
    probs = np.full(num_classes, alpha / num_classes)
    probs[0] += 1 - alpha
    return float(-(probs[probs > 0] * np.log(probs[probs > 0])).sum())


def matching_smoothing(entropy: float, num_classes: int) -> float:
    """The alpha in [0, 1] at which smoothed labels have this entropy, in nats."""
    return float(brentq(lambda alpha: smoothed_entropy(alpha, num_classes) - entropy, 0, 1))


# --- Rows of results: a line of JSON for each run, which is there as a whole or not at all.


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The runs so far; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            said = f"{path}: line {number} is no whole run. Remove it, and the run is made again."
            raise click.ClickException(said) from error
    return rows


def alike(rows: Iterable[Mapping[str, Any]], *names: str) -> dict[str, Any]:
    """What all rows have under these names; refused where they are not runs of one study."""
    found = [{name: row[name] for name in names} for row in rows]
    if not found:
        raise click.ClickException("There is no run that could be shown.")
    if other := next((each for each in found if each != found[0]), None):
        raise click.ClickException(f"Runs of two kinds are no table: {found[0]} and {other}.")
    return found[0]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a run, with the hardware and software of this process."""
    content = {**row, "hardware": hardware(), "software": software()}
    with path.open("ab", buffering=0) as file:
        # One write, so that processes can share the file and none leaves half a line.
        file.write((json.dumps(content) + "\n").encode())


def write_runs(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write runs as JSON, one a line; what several were made on and by stands there once."""
    machines: list[Any] = []
    runs = []
    for row in rows:
        machine = {name: row[name] for name in ("hardware", "software")}
        if machine not in machines:
            machines.append(machine)
        kept = {name: value for name, value in row.items() if name not in machine}
        runs.append(json.dumps(kept | {"machine": machines.index(machine)}))
    text = ",\n  ".join(runs)
    path.write_text(f'{{"machines": {json.dumps(machines)},\n "runs": [\n  {text}\n]}}\n')


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The rows of which `write_runs` made the file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [run | content["machines"][run.pop("machine")] for run in content["runs"]]


# --- Differences between arms.


@dataclass(frozen=True)
class Difference:
    """A mean over seeds of an arm less that of another, with its 95 % interval.

    By Student's t on the differences within each seed: both arms began at the same weights, saw
    the same order and were tested on the same images.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percent; of one seed there is no interval."""
        interval = f" ({100 * self.low:+.1f} to {100 * self.high:+.1f})"
        return f"{100 * self.mean:+.1f}{interval if math.isfinite(self.low) else ''}"


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Compare two arms, seed by seed."""
    apart = np.subtract(ours, theirs)
    mean = float(apart.mean())
    if len(apart) < 2:
        return Difference(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / math.sqrt(len(apart)))
    return Difference(mean, mean - half, mean + half)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation in percent; a dash for no values."""
    if not values:
        return "–"
    deviation = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dedad2",
}
_OF_LINES: dict[str, Any] = {
    "axes.spines.left": False,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "ytick.major.size": 0,
}


def svg(
    paint: Callable[[Figure], None],
    size: tuple[float, float],
    salt: str,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """What is painted on a figure of this size in inches: an SVG file, the same each time.

    `salt` is a word that tells the ids of this figure from those of others; `settings` are
    matplotlib's, beside those that all figures have.
    """
    text = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS | {"svg.hashsalt": salt} | dict(settings or {}))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None})
    return text.getvalue()


_TITLE = "Less one-hot labels of the same seed: mean, 95 % interval, each seed"


@dataclass(frozen=True)
class Line:
    """A line of the figure: an arm, and for each panel its values and those it is compared with.

    Attributes
    ----------
    label : str
    soft : bool
        Labels of a teacher, which are drawn otherwise than smoothed ones.
    panels : dict of str to tuple of two sequences of float
        By the panel's title: ours and theirs, one value a seed.
    """

    label: str
    soft: bool
    panels: dict[str, tuple[Sequence[float], Sequence[float]]]


def draw(lines: Sequence[Line], salt: str) -> str:
    """Differences of each arm to what it is compared with; an SVG file as of `svg`."""

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(lines[0].panels), sharey=True)
        for axes, title in zip(np.atleast_1d(panels), lines[0].panels, strict=True):
            for row, line in enumerate(lines):
                _paint(axes, row, *line.panels[title], soft=line.soft)
            axes.axvline(0, color="#5f5b54", linewidth=1)
            axes.set_xlabel(f"{title}, points")
        first = np.atleast_1d(panels)[0]
        first.set_yticks(range(len(lines)), [line.label for line in lines])
        figure.suptitle(_TITLE, fontsize=10)
        first.set_ylim(len(lines) - 0.5, -0.5)

    return svg(paint, (10, 1.3 + 0.3 * len(lines)), salt, _OF_LINES)


def _paint(
    axes: Any, row: int, ours: Sequence[float], theirs: Sequence[float], *, soft: bool
) -> None:
    colour, marker = ("#1f5fbf", "o") if soft else ("#b4520a", "s")
    apart = difference(ours, theirs)
    if len(ours) > 1:
        axes.plot([100 * apart.low, 100 * apart.high], [row, row], color=colour, linewidth=1.4)
    seeds = 100 * np.subtract(ours, theirs)
    axes.plot(seeds, [row] * len(seeds), "|", color=colour, markersize=9)
    axes.plot([100 * apart.mean], [row], marker, color=colour, markersize=6)
