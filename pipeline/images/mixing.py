"""How many training images are mixed with each other, and by which of two ways."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PAIR", "Mixing"]

# Neighbours of the epoch's order that are mixed with each other, and so stay together.
PAIR = 2


@dataclass(frozen=True)
class Mixing:
    """How many images are mixed with another, and how.

    Attributes
    ----------
    cutmix_probability, mixup_probability : float
        Shares of the images that get a rectangle of the partner, or a weighted mean with it;
        together at most 1.
    cutmix_alpha, mixup_alpha : float
        Of the symmetric Beta distribution that the image's own share is drawn from: 1 is the
        uniform one, smaller ones leave most images nearly whole.

    Raises
    ------
    ValueError
        For numbers that are out of range.
    """

    cutmix_probability: float = 0.0
    mixup_probability: float = 0.0
    cutmix_alpha: float = 1.0
    mixup_alpha: float = 0.2

    def __post_init__(self) -> None:
        chances = self.cutmix_probability, self.mixup_probability
        if not (min(chances) >= 0 and sum(chances) <= 1):
            raise ValueError(
                "cutmix_probability and mixup_probability: expected shares of the images that "
                f"are together at most 1, found {chances[0]:g} and {chances[1]:g}"
            )
        for name in ("cutmix_alpha", "mixup_alpha"):
            alpha = getattr(self, name)
            if not 0.01 <= alpha <= 100:
                raise ValueError(f"{name}: expected 0.01 to 100, found {alpha:g}")

    @property
    def is_none(self) -> bool:
        """Whether images stay as they are."""
        return not (self.cutmix_probability or self.mixup_probability)
