"""Under what an accuracy was measured, and why two of them cannot be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.differences import differences

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Conditions", "unlike"]

_TOGETHER = "all_attacks"


@dataclass(frozen=True)
class Conditions:
    """What decides the accuracies of an evaluation.

    Attributes
    ----------
    norm : str
    eps : float
        Pixel units.
    quick : bool
        It was a first look.
    decides : mapping of str to dict
        What decides each attack's number, by its key with `_` for `-`; plain values. Evaluations
        of before have none.
    attacks : tuple
        What they say once for all attacks but AutoAttack.
    autoattack_version : str or None
    """

    norm: str
    eps: float
    quick: bool
    decides: Mapping[str, dict[str, Any]]
    attacks: tuple[Any, ...]
    autoattack_version: str | None


def unlike(attack: str, mine: Conditions, theirs: Conditions) -> str:
    """Why two accuracies under one attack cannot be compared, or nothing.

    Parameters
    ----------
    attack : str
        Its key; `clean` is none, and always alike.
    mine, theirs : Conditions
        On the same test images.
    """
    if attack == "clean":
        return ""
    if (mine.norm, mine.eps) != (theirs.norm, theirs.eps):
        return f"{mine.norm} {mine.eps:.4g} against {theirs.norm} {theirs.eps:.4g}"
    if mine.quick != theirs.quick:
        return "one is a first look"
    key = attack.replace("-", "_")
    if key == _TOGETHER:
        return _unlike_sets(mine.decides, theirs.decides)
    return _unlike_attacks(key, mine, theirs)


def _unlike_sets(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    # The number is of the images that stood under every attack of the list: its own row says no
    # more than the threat.
    if not mine or not theirs:
        return "the attacks behind it are not recorded"
    keys = [key for key in {**mine, **theirs} if key != _TOGETHER]
    unequal = [key for key in keys if mine.get(key) != theirs.get(key)]
    return f"other attacks ({', '.join(unequal)})" if unequal else ""


def _unlike_attacks(key: str, mine: Conditions, theirs: Conditions) -> str:
    if key in mine.decides and key in theirs.decides:
        found = differences(theirs.decides[key], mine.decides[key])
        unequal = [name for name, _, _ in found]
        return f"other settings ({', '.join(unequal)})" if unequal else ""
    # Evaluations of before say it once for all attacks.
    if key == "autoattack":
        same = mine.autoattack_version == theirs.autoattack_version
        return "" if same else "another version of AutoAttack"
    return "" if mine.attacks == theirs.attacks else "other settings"
