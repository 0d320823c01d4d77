"""Image sizes that grow while training goes on: small first, when detail is not learned yet."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Sizes"]

# Networks halve an image five times.
_STEP = 32


@dataclass(frozen=True)
class Sizes:
    """A side in pixels for each epoch, a function of the epoch alone.

    Attributes
    ----------
    start, end : int
        Multiples of 32, not descending.
    begin, finish : float
        Fractions of the run: up to the first the images have the size `start`, from the second
        on `end`, and between them it grows evenly, in multiples of 32.
    epochs : int
        Of the run.

    Raises
    ------
    ValueError
        For numbers that are out of range.
    """

    start: int
    end: int
    begin: float
    finish: float
    epochs: int

    def __post_init__(self) -> None:
        if self.start % _STEP or self.end % _STEP or not 0 < self.start <= self.end:
            raise ValueError(
                "progressive_resize: expected two multiples of 32, the larger one last, "
                f"found {self.start} and {self.end}"
            )
        if not 0 <= self.begin <= self.finish <= 1:
            raise ValueError(
                "progressive_between: expected two fractions of the run in order, "
                f"found {self.begin:g} and {self.finish:g}"
            )

    def at(self, epoch: int) -> tuple[int, int]:
        """Height and width in an epoch, counted from 0."""
        done = epoch / self.epochs
        if done >= self.finish:
            return self.end, self.end
        if done <= self.begin:
            return self.start, self.start
        grown = (done - self.begin) / (self.finish - self.begin)
        # From below: never larger than the line from start to end. Tenths are not exact in binary.
        steps = int(grown * (self.end - self.start) / _STEP + 1e-9)
        side = self.start + _STEP * steps
        return side, side

    def all(self) -> list[tuple[int, int]]:
        """Every size of the run, ascending."""
        return sorted({self.at(epoch) for epoch in range(self.epochs)})
