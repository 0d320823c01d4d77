"""What makes the numbers of an evaluation worthless, as its warnings say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.evaluation.finding import SLACK, Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ATTACK_FAILS", "attack_fails", "unbroken"]

# The end of that warning: metrics.json holds warnings as people read them.
ATTACK_FAILS = "it is the attack that fails, and none of these numbers can be believed"


def attack_fails(warnings: Iterable[str]) -> bool:
    """Whether one of the warnings says that the attack itself does not work."""
    return any(line.endswith(ATTACK_FAILS) for line in warnings)


def unbroken(left: int, n: int) -> str | None:
    """What to tell of images that stand where every pixel may take any value.

    Parameters
    ----------
    left, n : int
        So many of so many images; one start of PGD may miss as many as the audit allows it.
    """
    if not left:
        return None
    seen = f"{left} of {n} images stand although every pixel may take any value"
    if Finding("", left, n, SLACK, "").passed:
        return f"{seen}: PGD from one start may miss {SLACK:.0%}, and finds no end of the curve"
    return f"{seen}: {ATTACK_FAILS}"
