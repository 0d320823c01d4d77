"""Robust accuracy by eps, from 0 to where nothing stands.

A ball holds all smaller ones: an image that was broken at some radius is broken at every larger
one, and is not attacked there again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from pipeline.attacks import Ball
from pipeline.evaluation.accuracy import wilson_interval
from pipeline.evaluation.pgd import survivors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.attacks import Norm
    from pipeline.evaluation.bench import Bench

__all__ = ["CURVE_STEPS", "Curve", "automatic_curve", "curve_at", "largest_radius"]

# Of the attack behind the curve: one start, 20 steps, as most papers draw it.
CURVE_STEPS = 20
# The automatic curve: radii at most, the largest fall between two neighbours, and how well the
# radius at which nothing stands is known, as a share of it.
_MOST_RADII = 16
_LARGEST_FALL = 0.1
_ZERO_WITHIN = 0.1


@dataclass(frozen=True)
class Curve:
    """What stands at each radius.

    Attributes
    ----------
    radii : tuple of float
        Ascending.
    standing : tuple of Tensor of shape (n,), dtype bool
        At each of them; none holds an image that the one before does not.
    """

    radii: tuple[float, ...]
    standing: tuple[torch.Tensor, ...]

    @property
    def points(self) -> list[dict[str, Any]]:
        """Plain values: `eps`, `robust_accuracy`, its interval `low`, `high`, and `n`."""
        points = []
        for eps, standing in zip(self.radii, self.standing, strict=True):
            hits, n = int(standing.sum()), len(standing)
            low, high = wilson_interval(hits, n)
            point = {"eps": eps, "robust_accuracy": hits / n, "low": low, "high": high, "n": n}
            points.append(point)
        return points

    @property
    def broken_at(self) -> torch.Tensor:
        """The smallest radius at which each image was broken: shape (n,), float32; else inf."""
        found = torch.full((len(self.standing[0]),), torch.inf)
        for eps, standing in zip(reversed(self.radii), reversed(self.standing), strict=True):
            found[~standing] = eps
        return found

    @property
    def zero_at(self) -> float | None:
        """The smallest radius at which nothing stands, or None."""
        zero = (eps for eps, left in zip(self.radii, self.standing, strict=True) if not left.any())
        return next(zero, None)


def largest_radius(norm: Norm, shape: tuple[int, int, int]) -> float:
    """The radius from which on the ball holds every image: all of [0, 1]."""
    return 1.0 if norm == "linf" else math.sqrt(math.prod(shape))


class _Measured:
    """Radii that were attacked, and what stood."""

    def __init__(self, bench: Bench, norm: Norm, right: torch.Tensor) -> None:
        self._bench, self._norm = bench, norm
        self.standing = {0.0: right}

    def at(self, eps: float) -> int:
        """Attack what stands at the next smaller radius; the number of images left."""
        if eps not in self.standing:
            before = self.standing[max(radius for radius in self.standing if radius < eps)]
            self.standing[eps] = survivors(
                self._bench,
                f"curve-{eps!r}",
                before,
                ball=Ball(self._norm, eps),
                steps=CURVE_STEPS,
                title=f"PGD-{CURVE_STEPS} at eps {eps:.3g}",
            )
        return int(self.standing[eps].sum())

    def curve(self, radii: Sequence[float]) -> Curve:
        """What stands at some of the radii; a smaller radius that was attacked later counts."""
        left, found = torch.ones_like(self.standing[0.0]), {}
        for eps in sorted(self.standing):
            left = left & self.standing[eps]
            found[eps] = left
        return Curve(tuple(radii), tuple(found[eps] for eps in radii))


def curve_at(bench: Bench, norm: Norm, right: torch.Tensor, radii: Sequence[float]) -> Curve:
    """The curve at given radii.

    Parameters
    ----------
    bench : Bench
    norm : {"linf", "l2"}
    right : Tensor of shape (n,), dtype bool
        Right when clean: what stands at 0.
    radii : sequence of float
        In any order.
    """
    measured, ascending = _Measured(bench, norm, right), sorted({float(eps) for eps in radii})
    for eps in ascending:
        measured.at(eps)
    return measured.curve(ascending)


def automatic_curve(bench: Bench, norm: Norm, right: torch.Tensor, eps: float) -> Curve:
    """The curve from 0 to where nothing stands, at radii that are found on the way.

    A quarter of `eps` is doubled until nothing stands or the ball holds everything. Then the
    widest gaps are halved: around the radius at which nothing stands any more until it is known
    to a tenth, and wherever more than a tenth of the images fall between two neighbours.

    Parameters
    ----------
    bench, norm, right
        See `curve_at`.
    eps : float
        The radius of the other attacks; one of the curve's.
    """
    measured, largest = _Measured(bench, norm, right), largest_radius(norm, bench.model.shape)
    radius = eps / 4
    while measured.at(min(radius, largest)) and radius < largest:
        radius *= 2
    measured.at(eps)
    while len(measured.standing) < _MOST_RADII:
        middle = _gap(measured)
        if middle is None:
            break
        measured.at(middle)
    return measured.curve(sorted(measured.standing))


def _gap(measured: _Measured) -> float | None:
    """Where to look next: the middle of the gap that says least."""
    curve = measured.curve(sorted(measured.standing))
    left = [int(standing.sum()) for standing in curve.standing]
    n = len(curve.standing[0])
    for (low, high), (before, after) in zip(pairwise(curve.radii), pairwise(left), strict=True):
        if before and not after and high - low > _ZERO_WITHIN * high:
            return (low + high) / 2
    falls = [before - after for before, after in pairwise(left)]
    widest = max(range(len(falls)), key=lambda i: falls[i])
    if falls[widest] <= _LARGEST_FALL * n:
        return None
    return (curve.radii[widest] + curve.radii[widest + 1]) / 2
