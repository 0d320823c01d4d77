"""Which of two models is better, in words that claim no more than the paired test allows.

The report, the page of two runs, `ltd-pipe compare` and the card say it with these functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltd_pipe.evaluation.results import eps_text, worthless
from ltd_pipe.evaluation.statistics import Paired, pair
from ltd_pipe.report.runs import interval_text, norm_text, percent_text, phrase

if TYPE_CHECKING:
    from ltd_pipe.evaluation.results import Audit, Score
    from ltd_pipe.report.runs import Evaluation

# Two questions, clean and robust, are asked at 5 % together (Bonferroni).
_LEVEL, _LEANS = 0.05 / 2, 0.05
# The strongest first: a claim of robustness is made under one attack, chosen before looking.
_STRENGTH = ("autoattack", "all-attacks", "pgd")
_SCOPE = (
    "A difference is claimed where McNemar's exact test of the same images gives p < 0.025: two "
    "questions, clean and robust, at 5 % together; a model “may be” better up to p < 0.05. The "
    "test compares these two checkpoints; whether one way of training is better, several seeds "
    "decide."
)


@dataclass(frozen=True)
class Model:
    """A model to be judged."""

    name: str  # in sentences: `the student`, `A`, or as the user named it
    evaluation: Evaluation
    audit: Audit | None = None
    labels: str = ""  # what it was trained on, where that is known

    @property
    def described(self) -> str:
        """Its name, with what it was trained on."""
        return f"{self.name} on {self.labels}" if self.labels else self.name

    def conditions(self, attack: str) -> str:
        """On what an accuracy is measured: `under PGD-20 at ε = 8/255`."""
        if attack == "clean":
            return "on clean images"
        metrics = self.evaluation.metrics
        norm = "" if metrics.norm == "linf" else f" in {norm_text(metrics.norm)}"
        name = self.evaluation.attack_name(attack)
        return f"under {name} at ε = {eps_text(metrics.eps)}{norm}"


@dataclass(frozen=True)
class Comparison:
    """A model against another, on the same images; `left_out` says what was not compared, why."""

    # By attack, those that both were measured under in the same way.
    paired: dict[str, Paired]
    left_out: tuple[str, ...] = ()


def compare(this: Model, other: Model) -> Comparison:
    """Compare two models image by image, wherever they were measured alike."""
    mine, theirs = this.evaluation.samples, other.evaluation.samples
    if mine is None or theirs is None:
        lacking = [one.name for one in (other, this) if one.evaluation.samples is None]
        return Comparison({}, (f"no results by image of {' and '.join(lacking)}",))
    if not mine.of_the_same_images(theirs):
        return Comparison({}, ("other test images",))
    paired, left_out = {}, []
    for attack in mine.correct:
        if attack not in theirs.correct:
            left_out.append(f"{attack}: not measured of {other.name}")
        elif reason := this.evaluation.unlike(other.evaluation, attack):
            left_out.append(f"{attack}: {reason}")
        else:
            paired[attack] = pair(mine.correct[attack], theirs.correct[attack])
    return Comparison(paired, tuple(left_out))


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes
    ----------
    headline : str
    sentence : str
        With accuracies, differences, intervals and n.
    scope : str
        What the test covers; empty where nothing was compared.
    caveats : tuple of str
        What weakens it.
    attack : str
        Key of the attack under which robustness is compared, or told.
    comparison : Comparison
        With the other model; empty where there is none.
    """

    headline: str
    sentence: str
    scope: str
    caveats: tuple[str, ...]
    attack: str
    comparison: Comparison


def judge(this: Model, other: Model | None = None) -> Verdict:
    """Judge a model, or compare it with another.

    A difference is claimed only where McNemar's test shows one.
    """
    comparison = compare(this, other) if other else Comparison({})
    paired, sides = comparison.paired, (other, this) if other else (this,)
    there = [name for name in _STRENGTH if this.evaluation.score(name)]
    attack = next((name for name in _STRENGTH if name in paired), there[0] if there else "pgd")
    failing = ((one, unbelievable(one.evaluation, one.audit)) for one in reversed(sides))
    doubts = [
        f"{one.name}'s robust accuracy cannot be believed: {why}" for one, why in failing if why
    ]
    headline = doubts[0] if doubts else _headline(this, other, attack, paired)
    # Names that a user has given, such as a path, are not written with a capital.
    given = tuple(one.name for one in sides if not one.name.startswith("the "))
    return Verdict(
        headline=headline if headline.startswith(given) else headline[0].upper() + headline[1:],
        sentence=_sentence(this, other, attack, comparison),
        scope=_SCOPE if paired else "",
        caveats=tuple(_caveats(sides, attack, comparison)),
        attack=attack,
        comparison=comparison,
    )


def unbelievable(evaluation: Evaluation, audit: Audit | None) -> str:
    """Why a robust accuracy measures nothing, whoever would be ahead; empty where it does."""
    if why := worthless(evaluation.metrics.warnings):
        return why
    if audit is None or audit.passed:
        return ""
    refused = "it could not be checked for gradient masking"
    return "signs of gradient masking" if audit.failed else refused


def outcome(paired: Paired) -> int:
    """1 where the first model is better, -1 the other, 0 where neither is shown to be."""
    return _sign(paired) if paired.p < _LEVEL else 0


def _sign(paired: Paired) -> int:
    return (paired.gained > paired.lost) - (paired.gained < paired.lost)


def _headline(this: Model, other: Model | None, attack: str, paired: Mapping[str, Paired]) -> str:
    if other is None:
        alone = this.evaluation.score(attack)
        share = f"{share_text(alone)} robust accuracy" if alone else "One model"
        return f"{share}, with nothing to compare it to"
    robust, clean = paired.get(attack), paired.get("clean")
    if robust is None and clean is None:
        return f"{this.name} and {other.name} cannot be compared image by image"
    r, c = (outcome(one) if one else 0 for one in (robust, clean))
    names = {1: this.name, -1: other.name}
    if r and r == c:
        return f"{names[r]} is ahead: more robust, and more accurate on clean images"
    if r and c:
        ahead = f"{names[r]} is more robust, {names[c]} more accurate on clean images"
        return f"A trade-off: {ahead}"
    both = zip((robust, clean), _CLAIMS, strict=True)
    claims = [_claim(one, names, *words) for one, words in both]
    if [rank for rank, _ in claims] == [2, 2]:
        return f"no difference is shown between {other.name} and {this.name}"
    # What is shown stands first.
    return "; ".join(text for _, text in sorted(claims, key=lambda claim: claim[0]) if text)


# Of robustness and clean accuracy: who is better, that nobody is, and that they are not compared.
_CLAIMS = (
    ("more robust", "no difference in robustness is shown", "robustness is not compared"),
    ("more accurate on clean images", "no difference is shown on clean images", ""),
)


def _claim(
    paired: Paired | None, names: Mapping[int, str], better: str, equal: str, absent: str
) -> tuple[int, str]:
    """How firm a claim is, 0 the firmest, and its words."""
    if paired is None:
        return 3, absent
    name = names.get(_sign(paired), "")
    if paired.p < _LEVEL:
        return 0, f"{name} is {better}"
    if paired.p < _LEANS:
        return 1, f"{name} may be {better} ({p_text(paired.p)})"
    return 2, equal


def _sentence(this: Model, other: Model | None, attack: str, comparison: Comparison) -> str:
    paired, parts = comparison.paired, list[str]()
    for name in (attack, "clean"):
        mine = this.evaluation.score(name)
        theirs = other.evaluation.score(name) if other else None
        if mine is None:
            continue
        where = this.conditions(name)
        if other is None or theirs is None or name not in paired:
            told = f"{share_text(mine)} (95 % interval {bounds_text(mine)}) right {where}"
        else:
            against = f"{other.name if parts else other.described} {share_text(theirs)}"
            told = f"{share_text(mine)} right {where} and {against}, {_difference(paired[name])}"
        parts.append(told)
    n, told = f"{this.evaluation.metrics.n:,} test images", "; ".join(parts)
    if paired:
        return f"Of the same {n}, {this.described} gets {told}."
    why = "there is no baseline to compare it with"
    if other is not None:
        why = f"{other.described} is not compared: {phrase(list(comparison.left_out))}"
    return f"Of {n}, {this.described} gets {told}; {why}."


def _difference(paired: Paired) -> str:
    bounds = f"{signed_text(paired.low)} to {signed_text(paired.high)}"
    return f"a difference of {points_text(paired)} (95 % interval {bounds}, {p_text(paired.p)})"


def _caveats(sides: tuple[Model, ...], attack: str, comparison: Comparison) -> list[str]:
    found = [f"Not compared: {line}." for line in comparison.left_out]
    if attack != "autoattack":
        run = "was not run" if len(sides) == 1 else "was not run alike on both models"
        found.append(f"AutoAttack {run}: another attack alone is no claim of robustness.")
    for one in sides:
        found += one.evaluation.warnings_of(one.name)
        # Where other attacks broke what the one in the sentence did not.
        shown, together = (one.evaluation.score(name) for name in (attack, "all-attacks"))
        if shown and together and together.hits < shown.hits:
            found.append(
                f"All attacks together leave {share_text(together)} (95 % interval "
                f"{bounds_text(together)}) of {one.name} right, less than "
                f"{one.evaluation.attack_name(attack)} alone: the smaller number is the bound."
            )
    if any(one.evaluation.metrics.quick for one in sides):
        found.append("A quick look: few images and a weak attack. It is not a result.")
    return found


# ---------------------------------------------------------------- numbers in words


def share_text(score: Score) -> str:
    """An accuracy as a percentage, no finer than its images allow."""
    return percent_text(score.value, score.n)


def bounds_text(score: Score) -> str:
    """An accuracy's 95 % interval."""
    return interval_text(score.low, score.high, score.n)


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
