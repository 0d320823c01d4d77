"""How numbers are put into words, the same everywhere on the page."""

from __future__ import annotations

from pipeline.evaluation.radius import eps_text

__all__ = [
    "duration_text",
    "eps_text",
    "interval_text",
    "norm_text",
    "number_text",
    "percent_text",
    "phrase",
]

_NBSP = "\u00a0"
# With fewer images the second decimal of a percentage is finer than one image.
_FINE = 5_000


def percent_text(share: float, n: int) -> str:
    """A share of n images as a percentage, no finer than n allows.

    Parameters
    ----------
    share : float
        In [0, 1].
    n : int
        Number of images.
    """
    return f"{_digits(share, n)}{_NBSP}%"


def interval_text(low: float, high: float, n: int) -> str:
    """The bounds of a share of n images, as `71.2 to 74.9 %`."""
    return f"{_digits(low, n)} to {percent_text(high, n)}"


def _digits(share: float, n: int) -> str:
    return f"{100 * share:.{2 if n >= _FINE else 1}f}"


def norm_text(norm: str) -> str:
    """A norm of metrics.json."""
    return {"linf": "L∞", "l2": "L2"}[norm]


def number_text(value: float) -> str:
    """A number with at most four significant digits and no trailing zeros."""
    return f"{value:.4g}"


def duration_text(seconds: float) -> str:
    """Seconds as `48 s`, `3 min 5 s` or `2 h 14 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}{_NBSP}s" if seconds < 10 else f"{whole}{_NBSP}s"
    if whole < 3600:
        return f"{whole // 60}{_NBSP}min {whole % 60}{_NBSP}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{_NBSP}h {minutes % 60}{_NBSP}min"


def phrase(items: list[str]) -> str:
    """Join items as in a sentence: `a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
