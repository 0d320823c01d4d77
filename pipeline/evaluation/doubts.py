"""What makes the numbers of an evaluation worthless, as its warnings say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ATTACK_FAILS", "attack_fails"]

# The end of that warning: metrics.json holds warnings as people read them.
ATTACK_FAILS = "it is the attack that fails, and none of these numbers can be believed"


def attack_fails(warnings: Iterable[str]) -> bool:
    """Whether one of the warnings says that the attack itself does not work."""
    return any(line.endswith(ATTACK_FAILS) for line in warnings)
