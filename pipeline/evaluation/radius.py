"""How a threat model is written for people."""

from __future__ import annotations

import math

__all__ = ["NORMS", "eps_text", "threat_text"]

# As RobustBench writes them.
NORMS = {"linf": "Linf", "l2": "L2"}


def eps_text(eps: float) -> str:
    """A radius in pixel units: `8/255` where it is a whole number of grey levels.

    0.2 is one too, but whoever writes 0.2 does not mean 51/255: short decimals stay.
    """
    levels = round(eps * 255)
    if math.isclose(eps, round(eps, 2), abs_tol=1e-9):
        return f"{round(eps, 2):.4g}"
    if levels and math.isclose(eps * 255, levels, rel_tol=1e-6):
        return f"{levels}/255"
    return f"{eps:.4g}"


def threat_text(norm: str, eps: float) -> str:
    """Norm and radius, such as `Linf 8/255`."""
    return f"{NORMS[norm]} {eps_text(eps)}"
