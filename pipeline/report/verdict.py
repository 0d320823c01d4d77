"""Which of two models is better, in words that claim no more than the paired test allows.

The report, the page of two runs, `ltd-pipe compare` and the card say it with these functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltd_pipe.evaluation.results import eps_text, worthless
from ltd_pipe.report.facts import masking_line
from ltd_pipe.report.runs import (
    Measured,
    interval_text,
    measured_of,
    norm_text,
    percent_text,
    phrase,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ltd_pipe.evaluation.results import Audit, Score
    from ltd_pipe.evaluation.statistics import Paired
    from ltd_pipe.report.compare import Comparison
    from ltd_pipe.report.facts import Facts
    from ltd_pipe.report.pair import PairFacts
    from ltd_pipe.report.runs import Run

__all__ = [
    "Contest",
    "Judged",
    "StudentVerdict",
    "Verdict",
    "differences",
    "judge",
    "judge_pair",
    "judge_student",
    "outcome",
    "p_text",
    "points_text",
    "signed_text",
    "unbelievable",
]

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
# They say which labels a student is given, so they differ between student and baseline.
_LABEL_KEYS = frozenset({"label_kind", "smoothing", "soft_weight", "rectify"})


@dataclass(frozen=True)
class Judged:
    """A model: what it is called, its evaluation, and where it is known its audit and labels."""

    name: str
    measured: Measured
    audit: Audit | None = None
    labels: str = ""

    @property
    def described(self) -> str:
        """With what it was trained on."""
        return f"{self.name} on {self.labels}" if self.labels else self.name

    def attack_name(self, attack: str) -> str:
        """What people call it, where the evaluation says so."""
        return self.measured.names.get(attack.replace("-", "_"), attack)

    def where(self, attack: str) -> str:
        """On what its accuracy is measured: `under PGD-20 at ε = 8/255`."""
        if attack == "clean":
            return "on clean images"
        norm = "" if self.measured.norm == "linf" else f" in {norm_text(self.measured.norm)}"
        return f"under {self.attack_name(attack)} at ε = {eps_text(self.measured.eps)}{norm}"


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
    """

    headline: str
    sentence: str
    scope: str
    caveats: tuple[str, ...]


def judge(
    this: Judged, other: Judged | None = None, comparison: Comparison | None = None
) -> Verdict:
    """Judge a model, or compare it with another.

    Parameters
    ----------
    this : Judged
    other : Judged, optional
    comparison : Comparison, optional
        Of `this` with `other`. A difference is claimed only where McNemar's test shows one.
    """
    paired = comparison.paired if comparison else {}
    attack, sides = _strongest(this, paired), (this,) if other is None else (other, this)
    failing = ((one, unbelievable(one.measured.warnings, one.audit)) for one in sides[::-1])
    doubts = [
        f"{one.name}'s robust accuracy cannot be believed: {why}" for one, why in failing if why
    ]
    headline = doubts[0] if doubts else _headline(this, other, attack, paired)
    return Verdict(
        headline=headline[0].upper() + headline[1:],
        sentence=_sentence(this, other, attack, comparison),
        scope=_SCOPE if paired else "",
        caveats=tuple(_caveats(sides, attack, comparison)),
    )


def unbelievable(warnings: Iterable[str], audit: Audit | None) -> str:
    """Why a robust accuracy measures nothing, whoever would be ahead; empty where it does."""
    if why := worthless(warnings):
        return why
    if audit is None or audit.passed:
        return ""
    refused = "it could not be checked for gradient masking"
    return "signs of gradient masking" if audit.failed else refused


def outcome(paired: Paired | None) -> int | None:
    """1 where this model is better, -1 the other, 0 where neither is shown to be; or None."""
    if paired is None:
        return None
    return _sign(paired) if paired.p < _LEVEL else 0


def _sign(paired: Paired) -> int:
    return (paired.gained > paired.lost) - (paired.gained < paired.lost)


def _strongest(this: Judged, paired: Mapping[str, Paired]) -> str:
    """The attack under which robustness is compared, or of which it is told where none can be."""
    there = [name for name in _STRENGTH if name.replace("-", "_") in this.measured.scores]
    return next((name for name in _STRENGTH if name in paired), there[0] if there else "pgd")


def _headline(this: Judged, other: Judged | None, attack: str, paired: Mapping[str, Paired]) -> str:
    if other is None:
        alone = this.measured.scores.get(attack.replace("-", "_"))
        share = f"{_share(alone)} robust accuracy" if alone else "One model"
        return f"{share}, with nothing to compare it to"
    robust, clean = paired.get(attack), paired.get("clean")
    if robust is None and clean is None:
        return f"{this.name} and {other.name} cannot be compared image by image"
    r, c = outcome(robust), outcome(clean)
    names = {1: this.name, -1: other.name}
    if r and r == c:
        return f"{names[r]} is ahead: more robust, and more accurate on clean images"
    if r and c:
        ahead = f"{names[r]} is more robust, {names[c]} more accurate on clean images"
        return f"A trade-off: {ahead}"
    parts = [
        _claim(robust, names, "more robust", "in robustness", "robustness is not compared"),
        _claim(clean, names, "more accurate on clean images", "on clean images", ""),
    ]
    if [rank for rank, _ in parts] == [2, 2]:
        return f"no difference is shown between {other.name} and {this.name}"
    # What is shown stands first.
    return "; ".join(text for _, text in sorted(parts, key=lambda part: part[0]))


def _claim(
    paired: Paired | None, names: Mapping[int, str], better: str, what: str, absent: str
) -> tuple[int, str]:
    if paired is None:
        return 3, absent
    sign = _sign(paired)
    if paired.p < _LEANS:
        shown = paired.p < _LEVEL
        text = f"{names[sign]} {'is' if shown else 'may be'} {better}"
        return (0, text) if shown else (1, f"{text} ({p_text(paired.p)})")
    if what.startswith("on"):
        return 2, f"no difference is shown {what}"
    return 2, f"no difference {what} is shown"


def _sentence(
    this: Judged, other: Judged | None, attack: str, comparison: Comparison | None
) -> str:
    paired = comparison.paired if comparison else {}
    parts = []
    for name in (attack, "clean"):
        mine = this.measured.scores.get(name.replace("-", "_"))
        theirs = other.measured.scores.get(name.replace("-", "_")) if other else None
        if mine is None:
            continue
        where, share = this.where(name), percent_text(mine.value, mine.n)
        if other is None or theirs is None or name not in paired:
            parts.append(f"{share} (95 % interval {_bounds(mine)}) right {where}")
            continue
        against = f"{other.described if not parts else other.name} {_share(theirs)}"
        parts.append(f"{share} right {where} and {against}, {_difference(paired[name])}")
    n, told = f"{this.measured.n:,} test images", "; ".join(parts)
    if paired:
        return f"Of the same {n}, {this.described} gets {told}."
    why = "there is no baseline to compare it with"
    if other is not None and comparison is not None:
        why = f"{other.described} is not compared: {phrase(list(comparison.left_out))}"
    return f"Of {n}, {this.described} gets {told}; {why}."


def _share(score: Score) -> str:
    return percent_text(score.value, score.n)


def _bounds(score: Score) -> str:
    return interval_text(score.low, score.high, score.n)


def _difference(paired: Paired) -> str:
    bounds = f"{signed_text(paired.low)} to {signed_text(paired.high)}"
    return f"a difference of {points_text(paired)} (95 % interval {bounds}, {p_text(paired.p)})"


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


def _caveats(sides: tuple[Judged, ...], attack: str, comparison: Comparison | None) -> list[str]:
    found = [f"Not compared: {line}." for line in comparison.left_out] if comparison else []
    if attack != "autoattack":
        run = "was not run" if len(sides) == 1 else "was not run alike on both models"
        found.append(f"AutoAttack {run}: another attack alone is no claim of robustness.")
    for one in sides:
        found += one.measured.warning_lines(one.name)
        found += _smaller_bound(one, attack)
    if any(one.measured.quick for one in sides):
        found.append("A quick look: few images and a weak attack. It is not a result.")
    return found


def _smaller_bound(one: Judged, attack: str) -> list[str]:
    """Where other attacks broke what the one in the sentence did not."""
    scores = one.measured.scores
    shown, together = scores.get(attack.replace("-", "_")), scores.get("all_attacks")
    if shown is None or together is None or together.hits >= shown.hits:
        return []
    text = (
        f"All attacks together leave {_share(together)} (95 % interval {_bounds(together)}) of "
        f"{one.name} right, less than {one.attack_name(attack)} alone: the smaller number is "
        "the bound."
    )
    return [text]


# ---------------------------------------------------------------- the page of two runs


def judge_pair(facts: PairFacts) -> Verdict:
    """Compare B with A."""
    a, b = (Judged(side.letter, side.evaluated.measured) for side in (facts.a, facts.b))
    verdict, runs = judge(b, a, facts.comparison), [side.run for side in (facts.a, facts.b)]
    if runs[0] is None or runs[1] is None or runs[0].sha256 != runs[1].sha256:
        return verdict
    same = "Both are the same checkpoint."
    return Verdict(**vars(verdict) | {"caveats": (*verdict.caveats, same)})


# ---------------------------------------------------------------- the report of a student


@dataclass(frozen=True)
class Contest:
    """One accuracy of student and baseline.

    Attributes
    ----------
    title : str
        Which accuracy.
    student : Score
    baseline : Score or None
    paired : Paired or None
        Student against baseline; None where they were not compared.
    """

    title: str
    student: Score
    baseline: Score | None = None
    paired: Paired | None = None

    @property
    def axis(self) -> tuple[float, float]:
        """Ends of an axis that holds all intervals: fractions, whole steps of 5 %."""
        scores = [score for score in (self.student, self.baseline) if score is not None]
        low = math.floor(20 * min(score.low for score in scores) - 0.2) / 20
        high = math.ceil(20 * max(score.high for score in scores) + 0.2) / 20
        return max(low, 0.0), min(high, 1.0)

    @property
    def outcome(self) -> str:
        """What the paired test says, in a line; empty without a baseline."""
        if self.paired is None:
            return ""
        tested = f"{points_text(self.paired)}, {p_text(self.paired.p)}"
        found = {1: "▲ Student higher", 0: "= No difference shown", -1: "▼ Student lower"}
        return f"{found[outcome(self.paired) or 0]}: {tested}"


@dataclass(frozen=True)
class StudentVerdict(Verdict):
    """What stands at the top of the report.

    Attributes
    ----------
    clean, robust : Contest
    masking : str
        What the checks for gradient masking came to.
    masking_passed : bool or None
        None where they were not run.
    """

    clean: Contest
    robust: Contest
    masking: str
    masking_passed: bool | None


def judge_student(facts: Facts) -> StudentVerdict:
    """Judge the student, against the baseline where there is one."""
    student = Judged(
        "the student", measured_of(facts.scores), facts.audit, facts.student.label_name
    )
    baseline = None
    if facts.baseline is not None and facts.baseline_scores is not None:
        measured = measured_of(facts.baseline_scores)
        baseline = Judged("the baseline", measured, labels=facts.baseline.label_name)
    verdict = judge(student, baseline, facts.comparison)
    paired = facts.comparison.paired if facts.comparison else {}
    more = _audit_caveats(facts)
    if facts.baseline is not None and paired:
        more += _training_caveats(facts.student, facts.baseline)
    return StudentVerdict(
        **vars(verdict) | {"caveats": (*verdict.caveats, *more)},
        clean=_contest(student, baseline, "clean", paired),
        robust=_contest(student, baseline, _strongest(student, paired), paired),
        masking=masking_line(facts.audit),
        masking_passed=None if facts.audit is None else facts.audit.passed,
    )


def _contest(
    student: Judged, baseline: Judged | None, attack: str, paired: Mapping[str, Paired]
) -> Contest:
    key, title = attack.replace("-", "_"), student.where(attack)
    if baseline is None or attack not in paired:
        return Contest(title, student.measured.scores[key])
    theirs = baseline.measured.scores[key]
    return Contest(title, student.measured.scores[key], theirs, paired[attack])


def _audit_caveats(facts: Facts) -> list[str]:
    audit, metrics = facts.audit, facts.scores.metrics
    if audit is None:
        return []
    found = []
    if audit.refused is not None:
        found.append(f"Gradient masking could not be looked for: {audit.refused}")
    if (audit.norm, audit.eps) != (metrics.norm, metrics.eps):
        radius = f"ε = {eps_text(audit.eps)} in {norm_text(audit.norm)}"
        found.append(f"The checks for gradient masking are of another threat ({radius}).")
    return found


def _training_caveats(student: Run, baseline: Run) -> list[str]:
    found = []
    if student.facts.data != baseline.facts.data:
        found.append("The two were trained on different images.")
    unequal = differences(student, baseline)
    if unequal:
        found.append(f"The two also differ in how they were trained: {phrase(unequal)}.")
    return found


def differences(student: Run, baseline: Run) -> list[str]:
    """Names of the parameters in which two runs differ, other than their labels."""
    mine, theirs = ({"seed": run.facts.seed} | run.facts.params for run in (student, baseline))
    names = sorted((mine.keys() | theirs.keys()) - _LABEL_KEYS)
    return [name for name in names if mine.get(name) != theirs.get(name)]
