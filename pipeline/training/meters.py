"""What an epoch adds up, on the device: reading it is what makes the host wait, so it is rare."""

from __future__ import annotations

import torch

from pipeline.errors import ModelError
from pipeline.training.target_softness import TARGET_SUMS

__all__ = ["Meters"]

_NEVER = 2**62
# Of a step's tally, in its order; one without a teacher in the run has the first two.
_NAMES = ("loss", "hits", *TARGET_SUMS)


class Meters:
    """Sums over the steps of an epoch, and the first step whose loss was not finite.

    Parameters
    ----------
    device : torch.device
        Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_NAMES), dtype=torch.float64, device=device)
        self._broken = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self._images, self._summed = 0, 2

    def add(self, tally: torch.Tensor, images: int, step: int) -> None:
        """Add a step.

        Parameters
        ----------
        tally : Tensor of shape (2,) or (5,), dtype float32
            Sum of the losses over its images, how many were classified right, and where a
            teacher gave the targets their `target_sums`.
        images : int
            Of the step.
        step : int
            Its number, for the error.
        """
        self._summed = len(tally)
        self._sums[: self._summed] += tally
        self._images += images
        finite = torch.isfinite(tally[0])
        self._broken = torch.where(finite, self._broken, self._broken.clamp(max=step))

    def read(self) -> dict[str, float]:
        """The sums so far; waits for the device.

        Returns
        -------
        dict
            `images`, `loss` and `hits`, and the TARGET_SUMS where tallies had them; empty
            before the first step.

        Raises
        ------
        ModelError
            When a loss was not finite.
        """
        if not self._images:
            return {}
        broken = int(self._broken)
        if broken != _NEVER:
            raise ModelError(
                f"training step {broken}",
                "the loss is not finite",
                remedy="Lower learning_rate, or set precision: float32.",
            )
        sums = dict(zip(_NAMES, self._sums.tolist(), strict=True))
        return {"images": float(self._images)} | {n: sums[n] for n in _NAMES[: self._summed]}

    def restore(self, sums: dict[str, float]) -> None:
        """Go on from what `read` said."""
        self._sums = self._sums.new_tensor([sums.get(name, 0.0) for name in _NAMES])
        self._summed = len(_NAMES) if TARGET_SUMS[0] in sums else 2
        self._images = int(sums.get("images", 0))
