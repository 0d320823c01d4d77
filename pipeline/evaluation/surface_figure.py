"""The loss surface as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.radius import threat_text

if TYPE_CHECKING:
    from pipeline.attacks import Ball
    from pipeline.evaluation.surface import Surface

__all__ = ["draw_surface"]


def draw_surface(surface: Surface, ball: Ball) -> str:
    """Contours of the mean loss over both directions, and the ball's radius along each.

    Parameters
    ----------
    surface : Surface
    ball : Ball

    Returns
    -------
    str
        An SVG file; equal arguments give equal text.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # As text, so that it can be searched; the salt makes equal figures equal.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loss-surface"}):
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        axes = figure.subplots()
        along, loss = np.array(surface.offsets) / ball.eps, np.array(surface.loss)
        filled = axes.contourf(along, along, loss.T, levels=12, cmap="viridis")
        figure.colorbar(filled, label="mean cross entropy")
        axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="white", linewidth=1)
        axes.plot(0, 0, "o", color="white", markersize=4)
        axes.set_xlabel("along the gradient, radii")
        axes.set_ylabel("along a random direction, radii")
        axes.set_title(f"Loss around {surface.n} images ({threat_text(ball.norm, ball.eps)})")
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()
