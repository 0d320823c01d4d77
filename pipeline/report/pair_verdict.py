"""Which of two runs is better, in a sentence that claims no more than the paired test allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.doubts import attack_fails
from pipeline.report.wording import eps_text, interval_text, norm_text, percent_text

if TYPE_CHECKING:
    from pipeline.compare.mcnemar import Paired
    from pipeline.report.pair import PairFacts

__all__ = ["PairVerdict", "judge_pair", "p_text", "points_text", "signed_text", "strongest"]

# Two questions, clean and robust, are asked at 5 % together (Bonferroni).
_LEVEL = 0.05 / 2
# The strongest first: a claim of robustness is made under one attack, chosen before looking.
_STRENGTH = ("autoattack", "all-attacks", "pgd")


@dataclass(frozen=True)
class PairVerdict:
    """What stands at the top of the page.

    Attributes
    ----------
    headline : str
    sentence : str
    scope : str
        What the test covers; empty where nothing was compared.
    caveats : tuple of str
        What weakens it.
    """

    headline: str
    sentence: str
    scope: str
    caveats: tuple[str, ...]


def strongest(facts: PairFacts) -> str | None:
    """The attack under which robustness is compared; None where there is none in common."""
    return next((name for name in _STRENGTH if name in facts.comparison.paired), None)


def judge_pair(facts: PairFacts) -> PairVerdict:
    """Compare B with A; a difference is claimed only where McNemar's test shows one."""
    paired, attack = facts.comparison.paired, strongest(facts)
    clean = _outcome(paired.get("clean"))
    robust = _outcome(paired[attack]) if attack is not None else None
    return PairVerdict(
        headline=_failing(facts) or _HEADLINES[robust, clean],
        sentence=_sentence(facts, attack),
        scope=_SCOPE if paired else "",
        caveats=tuple(_caveats(facts, attack)),
    )


def _failing(facts: PairFacts) -> str:
    """The headline where an attack does not work, whoever would be ahead."""
    failing = (s.letter for s in (facts.a, facts.b) if attack_fails(s.evaluated.measured.warnings))
    letter = next(failing, None)
    return f"{letter}'s robust accuracy cannot be believed: the attack fails" if letter else ""


_SCOPE = (
    "A difference is claimed where McNemar's exact test of the same images gives p < 0.025: two "
    "questions, clean and robust, at 5 % together. It compares these two checkpoints; whether one "
    "way of training is better, several seeds decide."
)


def _outcome(paired: Paired | None) -> int | None:
    """1 where B is better, -1 where A is, 0 where neither is shown to be; None: not compared."""
    if paired is None:
        return None
    sign = (paired.gained > paired.lost) - (paired.gained < paired.lost)
    return sign if paired.p < _LEVEL else 0


# By the outcome of the robust and of the clean accuracy; None: not compared.
_HEADLINES = {
    (1, 1): "B is ahead: more robust, and more accurate on clean images",
    (1, 0): "B is more robust; no difference is shown on clean images",
    (1, -1): "A trade-off: B is more robust, A more accurate on clean images",
    (0, 1): "B is more accurate on clean images; no difference in robustness is shown",
    (0, 0): "No difference is shown between A and B",
    (0, -1): "A is more accurate on clean images; no difference in robustness is shown",
    (-1, 1): "A trade-off: A is more robust, B more accurate on clean images",
    (-1, 0): "A is more robust; no difference is shown on clean images",
    (-1, -1): "A is ahead: more robust, and more accurate on clean images",
    (None, 1): "B is more accurate on clean images; robustness is not compared",
    (None, 0): "No difference is shown on clean images; robustness is not compared",
    (None, -1): "A is more accurate on clean images; robustness is not compared",
    (None, None): "The two runs cannot be compared image by image",
}


def _sentence(facts: PairFacts, attack: str | None) -> str:
    paired = facts.comparison.paired
    if "clean" not in paired:
        return f"Nothing is claimed: {'; '.join(facts.comparison.left_out)}."
    parts = [_part(facts, "clean", "on clean images")]
    if attack is not None:
        measured = facts.b.evaluated.measured
        norm = "" if measured.norm == "linf" else f" in {norm_text(measured.norm)}"
        radius = f"ε = {eps_text(measured.eps)}{norm}"
        parts.insert(0, _part(facts, attack, f"under {facts.b.attack_name(attack)} at {radius}"))
    return f"Of the same {paired['clean'].n:,} test images, B gets {'; '.join(parts)}."


def _part(facts: PairFacts, attack: str, where: str) -> str:
    paired = facts.comparison.paired[attack]
    a, b = (side.score(attack) for side in (facts.a, facts.b))
    shares = (
        f"{percent_text(b.value, b.n)} right {where} and A {percent_text(a.value, a.n)}"
        if a is not None and b is not None
        else where
    )
    return (
        f"{shares}, a difference of {points_text(paired)} (95 % interval "
        f"{signed_text(paired.low)} to {signed_text(paired.high)}, {p_text(paired.p)})"
    )


def points_text(paired: Paired) -> str:
    """The difference in percentage points, with its sign."""
    return f"{signed_text(paired.difference)} points"


def signed_text(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    # A true minus sign, and none before what is printed as 0.0.
    text = f"{100 * difference:+.1f}".replace("-", "\u2212")
    return "0.0" if text[1:] == "0.0" else text


def p_text(p: float) -> str:
    """A p value as `p = 0.04`."""
    return f"p = {p:.2g}" if p >= 0.0001 else "p < 0.0001"


def _smaller_bounds(facts: PairFacts, attack: str | None) -> list[str]:
    """Where other attacks broke what the one in the sentence did not."""
    found = []
    for side in (facts.a, facts.b):
        shown = None if attack is None else side.score(attack)
        together = side.score("all-attacks")
        if shown is not None and together is not None and together.hits < shown.hits:
            share = percent_text(together.value, together.n)
            bounds = interval_text(together.low, together.high, together.n)
            found.append(
                f"All attacks together leave {share} (95 % interval {bounds}) of {side.letter} "
                f"right, less than {side.attack_name(str(attack))} alone: the smaller number is "
                "the bound."
            )
    return found


def _caveats(facts: PairFacts, attack: str | None) -> list[str]:
    found = [f"Not compared: {line}." for line in facts.comparison.left_out]
    if attack != "autoattack":
        found.append(
            "Both were not measured with one AutoAttack: another attack alone is no claim of "
            "robustness."
        )
    for side in (facts.a, facts.b):
        found += side.evaluated.measured.warning_lines(side.letter)
    found += _smaller_bounds(facts, attack)
    if any(side.evaluated.measured.quick for side in (facts.a, facts.b)):
        found.append("A quick look: few images and a weak attack. It is not a result.")
    runs = [side.run for side in (facts.a, facts.b)]
    if runs[0] is not None and runs[1] is not None and runs[0].sha256 == runs[1].sha256:
        found.append("Both are the same checkpoint.")
    return found
