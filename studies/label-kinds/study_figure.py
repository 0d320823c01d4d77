"""Every arm less the first of its group, in clean and in robust accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from study_runs import Arm

__all__ = ["draw"]

_TITLES = {"clean": "clean accuracy", "autoattack": "AutoAttack accuracy", "cw": "CW-PGD-50"}


def draw(arms: Sequence[Arm]) -> str:
    """Differences to each group's first arm, as an SVG file; see `common.draw`."""
    measures = ("clean", arms[0].strongest)
    lines = [
        common.Line(
            f"{arm.group}: {arm.title.split(' (')[0]}",
            bool(arm.teacher),
            {_TITLES[measure]: (arm.best[measure], first.best[measure]) for measure in measures},
        )
        for arm, first in _pairs(arms)
    ]
    return common.draw(lines, "label-kinds")


def _pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Arms by group, each with the first one of its group."""
    firsts: dict[str, Arm] = {}
    for arm in arms:
        firsts.setdefault(arm.group, arm)
    pairs = [(arm, firsts[arm.group]) for arm in arms if arm is not firsts[arm.group]]
    return sorted(pairs, key=lambda pair: list(firsts).index(pair[0].group))
