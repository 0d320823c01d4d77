"""Two models on the same images: McNemar's exact test, and an interval of the difference.

Images on which both are right, or both wrong, say nothing of which is better; the others are
fair coins if neither is (McNemar 1947, in the exact form of a binomial test).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Paired:
    """How one model does against another on the same images.

    Attributes
    ----------
    n : int
        Images.
    gained, lost : int
        Right by this model and not by the other, and the reverse.
    low, high : float
        95 % interval of the difference.
    p : float
        Of McNemar's exact test, two-sided.
    """

    n: int
    gained: int
    lost: int
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        """Accuracy of this model less that of the other; a fraction."""
        return (self.gained - self.lost) / self.n


def mcnemar_p(gained: int, lost: int) -> float:
    """The two-sided p value of McNemar's exact test.

    Parameters
    ----------
    gained, lost : int
        Images on which only the one, and only the other, is right.

    Returns
    -------
    float
        1 where they differ on no image.
    """
    coins, fewer = gained + lost, min(gained, lost)
    # Exact in integers, however many images: binom(coins, k) from the one before.
    ways = total = 1
    for k in range(fewer):
        ways = ways * (coins - k) // (k + 1)
        total += ways
    # Both tails; when they meet, everything is at least as extreme.
    return min(1.0, _quotient(2 * total, coins))


def _quotient(ways: int, coins: int) -> float:
    # Of integers too large for a float each: their leading bits, and the rest as an exponent.
    shift = max(ways.bit_length() - 64, 0)
    return math.ldexp(ways >> shift, shift - coins)


def pair(this: NDArray[np.bool_], other: NDArray[np.bool_], z: float = 1.959963984540054) -> Paired:
    """Compare two models image by image.

    Parameters
    ----------
    this, other : ndarray of shape (n,), dtype bool
        Which images each is right on, in the same order; n is 1 or more.
    z : float
        Normal quantile; the default gives 95 %.

    Returns
    -------
    Paired
        The interval is the adjusted Wald interval for matched pairs (Agresti and Min 2005,
        half an image added to each of the four cells).
    """
    n = len(this)
    gained, lost = int((this & ~other).sum()), int((~this & other).sum())
    adjusted = n + 2
    centre = (gained - lost) / adjusted
    variance = (gained + lost + 1) / adjusted - centre**2
    spread = z * math.sqrt(variance / adjusted)
    low, high = max(centre - spread, -1.0), min(centre + spread, 1.0)
    return Paired(n, gained, lost, low, high, mcnemar_p(gained, lost))
