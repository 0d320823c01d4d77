"""The loss surface as a picture; `ltd-pipe audit` loads no more of the report than this."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ltd_pipe.evaluation.results import threat_text

if TYPE_CHECKING:
    from ltd_pipe.attacks import Ball
    from ltd_pipe.evaluation.results import LossSurface


def draw_surface(surface: LossSurface, ball: Ball) -> str:
    """Draw contours of the mean loss as an SVG file; equal arguments give equal text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # As text, so that it can be searched; the salt makes equal figures equal.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loss-surface"}):
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        axes = figure.subplots()
        paint_surface(axes, surface, ball.eps)
        axes.set_title(f"Loss around {surface.n} images ({threat_text(ball.norm, ball.eps)})")
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def paint_surface(axes: Any, surface: LossSurface, eps: float) -> None:
    """Paint the contours, their scale, and the ball's radius, on matplotlib's axes."""
    along, loss = np.array(surface.offsets) / eps, np.array(surface.loss)
    filled = axes.contourf(along, along, loss.T, levels=12, cmap="viridis")
    axes.figure.colorbar(filled, ax=axes, label="mean cross entropy")
    axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="white", linewidth=1)
    axes.plot(0, 0, "o", color="white", markersize=4)
    axes.set_xlabel("along the gradient, radii")
    axes.set_ylabel("along a random direction, radii")
