"""The loss surface as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ltd_pipe.evaluation.results import threat_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ltd_pipe.attacks import Ball
    from ltd_pipe.evaluation.results import LossSurface


def draw_surface(surface: LossSurface, ball: Ball) -> str:
    """Contours of the mean loss over both directions, and the ball's radius along each.

    Parameters
    ----------
    surface : LossSurface
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
        paint_surface(axes, surface.offsets, surface.loss, ball.eps)
        axes.set_title(f"Loss around {surface.n} images ({threat_text(ball.norm, ball.eps)})")
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def paint_surface(
    axes: Any, offsets: Sequence[float], loss: Sequence[Sequence[float]], eps: float
) -> None:
    """Paint the contours and their scale.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Of a figure that lays itself out.
    offsets, loss : sequence of float, and of sequences of float
        As in `LossSurface`.
    eps : float
        Radius of the ball.
    """
    along, values = np.array(offsets) / eps, np.array(loss)
    filled = axes.contourf(along, along, values.T, levels=12, cmap="viridis")
    axes.figure.colorbar(filled, ax=axes, label="mean cross entropy")
    axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="white", linewidth=1)
    axes.plot(0, 0, "o", color="white", markersize=4)
    axes.set_xlabel("along the gradient, radii")
    axes.set_ylabel("along a random direction, radii")
