"""Which gradient attacks an evaluation runs, by the names that people write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.params.evaluate import split_attack

__all__ = ["GradientAttack", "parse_attack"]

_LOSSES = {"cross entropy": "PGD", "margin": "CW-PGD"}


@dataclass(frozen=True)
class GradientAttack:
    """One attack on the model's own gradient.

    Attributes
    ----------
    key : str
        How results are filed: letters, digits and `-`.
    loss : {"cross entropy", "margin"}
        What is maximised; margin is max_{k≠y} z_k - z_y (Carlini and Wagner 2017).
    steps, restarts : int
    single_step : bool
        FGSM: one step of the ball's radius from the image itself (Goodfellow et al. 2015). The
        others begin at random points and step by 2.5 · eps / steps.
    """

    key: str
    loss: Literal["cross entropy", "margin"] = "cross entropy"
    steps: int = 1
    restarts: int = 1
    single_step: bool = False

    @property
    def title(self) -> str:
        """What people call it, such as `CW-PGD-100 x 5`."""
        if self.single_step:
            return "FGSM"
        restarts = f" x {self.restarts}" if self.restarts > 1 else ""
        return f"{_LOSSES[self.loss]}-{self.steps}{restarts}"

    def step_size(self, eps: float) -> float:
        """Of each step, in the ball's norm: with it any start reaches the surface and turns."""
        return eps if self.single_step else 2.5 * eps / self.steps

    def facts(self, eps: float) -> dict[str, Any]:
        """Its settings as plain values."""
        return {
            "loss": self.loss,
            "steps": self.steps,
            "restarts": self.restarts,
            "step_size": self.step_size(eps),
        }


def parse_attack(name: str) -> GradientAttack:
    """The attack that a name of `evaluate.attacks` means, such as `pgd-100x5`.

    Raises
    ------
    ValueError
        When it is no such name.
    """
    kind, steps, restarts = split_attack(name)
    if kind == "fgsm":
        return GradientAttack(name, single_step=True)
    return GradientAttack(name, "margin" if kind == "cw" else "cross entropy", steps, restarts)
