"""What an epoch adds up, on the device: reading it is what makes the host wait, so it is rare."""

from __future__ import annotations

import torch

from pipeline.errors import ModelError

__all__ = ["Meters"]

_NEVER = 2**62


class Meters:
    """Sums over the steps of an epoch, and the first step whose loss was not finite.

    Parameters
    ----------
    device : torch.device
        Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._broken = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self._images = 0

    def add(self, tally: torch.Tensor, images: int, step: int) -> None:
        """Add a step.

        Parameters
        ----------
        tally : Tensor of shape (2,), dtype float32
            Sum of the losses over its images, and how many were classified right.
        images : int
            Of the step.
        step : int
            Its number, for the error.
        """
        self._sums += tally
        self._images += images
        finite = torch.isfinite(tally[0])
        self._broken = torch.where(finite, self._broken, self._broken.clamp(max=step))

    def read(self) -> dict[str, float]:
        """The sums so far; waits for the device.

        Returns
        -------
        dict
            `images`, `loss` and `hits`; empty before the first step.

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
        loss, hits = self._sums.tolist()
        return {"images": float(self._images), "loss": loss, "hits": hits}

    def restore(self, sums: dict[str, float]) -> None:
        """Go on from what `read` said."""
        self._sums = self._sums.new_tensor([sums.get("loss", 0.0), sums.get("hits", 0.0)])
        self._images = int(sums.get("images", 0))
