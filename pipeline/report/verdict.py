"""What came out, in a sentence that claims no more than the intervals allow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.doubts import attack_fails
from pipeline.report.audit import masking_line
from pipeline.report.conditions import unlike
from pipeline.report.wording import eps_text, interval_text, norm_text, percent_text, phrase

if TYPE_CHECKING:
    from pipeline.report.facts import Facts
    from pipeline.report.runs import Run
    from pipeline.report.scores import Score, Scores

__all__ = ["Contest", "Verdict", "differences", "judge"]

# They say which labels a student is given, so they differ between student and baseline.
_LABEL_KEYS = frozenset({"label_kind", "smoothing", "soft_weight", "rectify"})


@dataclass(frozen=True)
class Contest:
    """One accuracy of student and baseline.

    Attributes
    ----------
    title : str
        Which accuracy.
    student : Score
    baseline : Score or None
    """

    title: str
    student: Score
    baseline: Score | None

    @property
    def axis(self) -> tuple[float, float]:
        """Ends of an axis that holds all intervals: fractions, whole steps of 5 %."""
        scores = [score for score in (self.student, self.baseline) if score is not None]
        low = math.floor(20 * min(score.low for score in scores) - 0.2) / 20
        high = math.ceil(20 * max(score.high for score in scores) + 0.2) / 20
        return max(low, 0.0), min(high, 1.0)

    @property
    def outcome(self) -> int | None:
        """1, -1 or 0 as `Score.compared_with`; None without a baseline."""
        return None if self.baseline is None else self.student.compared_with(self.baseline)


@dataclass(frozen=True)
class Verdict:
    """What stands at the top of the page.

    Attributes
    ----------
    headline : str
    sentence : str
        With both accuracies, their intervals and n.
    scope : str
        What the intervals cover; empty where nothing is compared.
    caveats : tuple of str
        What weakens it.
    clean, robust : Contest
    masking : str
        What the checks for gradient masking came to.
    masking_passed : bool or None
        None where they were not run.
    """

    headline: str
    sentence: str
    scope: str
    caveats: tuple[str, ...]
    clean: Contest
    robust: Contest
    masking: str
    masking_passed: bool | None


def judge(facts: Facts) -> Verdict:
    """Compare student and baseline; a difference is claimed only where intervals are disjoint."""
    scores, other = facts.scores, facts.baseline_scores
    # Accuracies under attacks of different strength, or of other images, have no order.
    unequal = "" if other is None else _unlike(scores, other)
    if unequal:
        other = None
    attack = _strongest_attack(scores, other)
    norm = "" if scores.metrics.norm == "linf" else f" in {norm_text(scores.metrics.norm)}"
    radius = f"ε = {eps_text(scores.metrics.eps)}{norm}"
    robust_title = f"under {_attack_title(attack, scores)} at {radius}"
    clean = _contest("on clean images", "clean_accuracy", scores, other)
    robust = _contest(robust_title, attack, scores, other)
    return Verdict(
        headline=_headline(facts, other, clean, robust),
        sentence=_sentence(facts, clean, robust),
        scope=_SCOPE if other is not None else "",
        caveats=tuple(_caveats(facts, other, attack, unequal)),
        clean=clean,
        robust=robust,
        masking=masking_line(facts.audit),
        masking_passed=None if facts.audit is None else facts.audit.passed,
    )


def _unlike(scores: Scores, other: Scores) -> str:
    """Why the baseline cannot be compared, said of it, or nothing."""
    mine, theirs = scores.metrics, other.metrics
    if mine.norm != theirs.norm:
        return f"was attacked in another norm ({norm_text(theirs.norm)})"
    if mine.eps != theirs.eps:
        return f"was attacked with another ε ({eps_text(theirs.eps)})"
    prints = [one.settings.data_fingerprint for one in (scores, other)]
    if None not in prints and prints[0] != prints[1]:
        return "was measured on other test images"
    if mine.n != theirs.n:
        return f"was measured on another number of test images ({theirs.n:,})"
    attack = _strongest_attack(scores, other)
    key = attack.removesuffix("_accuracy")
    found = unlike(key, scores.conditions, other.conditions)
    return f"was attacked otherwise ({_attack_title(attack, scores)}: {found})" if found else ""


def _strongest_attack(scores: Scores, other: Scores | None) -> str:
    measured = [one.metrics.autoattack_accuracy for one in (scores, other) if one is not None]
    return "pgd_accuracy" if None in measured else "autoattack_accuracy"


def _attack_title(attack: str, scores: Scores) -> str:
    return "AutoAttack" if attack == "autoattack_accuracy" else scores.pgd_name


def _contest(title: str, name: str, scores: Scores, other: Scores | None) -> Contest:
    student = scores.score(name)
    if student is None:
        raise AssertionError(f"{name} was chosen without being there")
    return Contest(title, student, other.score(name) if other else None)


# By the outcome of the robust and of the clean accuracy; {} is the student.
_HEADLINES = {
    (1, 1): "{} are ahead: more robust, and more accurate on clean images",
    (1, 0): "{} are ahead on robustness; no difference is shown on clean images",
    (1, -1): "A trade-off: {} are more robust, but less accurate on clean images",
    (0, 1): "{} are ahead on clean images; no difference in robustness is shown",
    (0, 0): "No difference is shown between {} and the baseline",
    (0, -1): "The baseline is ahead on clean images; no difference in robustness is shown",
    (-1, 1): "A trade-off: the baseline is more robust, but less accurate on clean images",
    (-1, 0): "The baseline is ahead on robustness; no difference is shown on clean images",
    (-1, -1): "The baseline is ahead: more robust, and more accurate on clean images",
}
_SCOPE = (
    "The intervals cover the choice of test images alone. Each model was trained once: what "
    "another seed would have given is not in them."
)


def _headline(facts: Facts, other: Scores | None, clean: Contest, robust: Contest) -> str:
    for name, scores in (("student", facts.scores), ("baseline", other)):
        if scores is not None and attack_fails(scores.metrics.warnings):
            return f"The {name}'s robust accuracy cannot be believed: the attack fails"
    if facts.audit is not None and not facts.audit.passed:
        # Whoever is ahead: attacks that cannot find their way measure nothing.
        refused = "it could not be checked for gradient masking"
        why = "signs of gradient masking" if facts.audit.failed else refused
        return f"The student's robust accuracy cannot be believed: {why}"
    if clean.outcome is None or robust.outcome is None:
        share = percent_text(robust.student.value, robust.student.n)
        return f"{share} robust accuracy, with nothing to compare it to"
    headline = _HEADLINES[robust.outcome, clean.outcome].format(facts.student.label_name)
    return headline[0].upper() + headline[1:]


def _sentence(facts: Facts, clean: Contest, robust: Contest) -> str:
    n = f"{clean.student.n:,}"
    student = (
        f"Of {n} test images, the student trained on {facts.student.label_name} gets "
        f"{_measured(clean.student, first=True)} right {clean.title} and "
        f"{_measured(robust.student)} {robust.title}"
    )
    if facts.baseline is None or clean.baseline is None or robust.baseline is None:
        there = facts.baseline is not None and facts.baseline_scores is not None
        why = "the baseline was measured otherwise and is not compared"
        return f"{student}; {why if there else 'there is no baseline to compare it with'}."
    return (
        f"{student}; the baseline on {facts.baseline.label_name} gets "
        f"{_measured(clean.baseline)} and {_measured(robust.baseline)}: "
        f"{_conclusion(clean, robust)}."
    )


def _measured(score: Score, *, first: bool = False) -> str:
    bounds = interval_text(score.low, score.high, score.n)
    return f"{percent_text(score.value, score.n)} ({'95 % interval ' if first else ''}{bounds})"


def _conclusion(clean: Contest, robust: Contest) -> str:
    contests = {"clean accuracy": clean.outcome, "robust accuracy": robust.outcome}
    won = [name for name, outcome in contests.items() if outcome == 1]
    lost = [name for name, outcome in contests.items() if outcome == -1]
    open_ = [name for name, outcome in contests.items() if outcome == 0]
    parts = [f"the student is better in {phrase(won)}"] if won else []
    parts += [f"the baseline is better in {phrase(lost)}"] if lost else []
    if len(open_) == 2:
        return "both pairs of intervals overlap, so neither is shown to be better"
    parts += [f"the intervals of {phrase(open_)} overlap, which shows no difference"] * bool(open_)
    return ", and ".join(parts)


def _caveats(facts: Facts, other: Scores | None, attack: str, unequal: str) -> list[str]:
    found = [f"The baseline {unequal}, so it is not compared."] if unequal else []
    if attack == "pgd_accuracy":
        found.append("AutoAttack was not run on all models: PGD alone is no claim of robustness.")
    if any(one is not None and one.metrics.quick for one in (facts.scores, facts.baseline_scores)):
        found.append("A quick look: few images and a weak attack. It is not a result.")
    for run, scores in ((facts.student, facts.scores), (facts.baseline, facts.baseline_scores)):
        if scores is not None and run is not None:
            found += scores.warnings(f"the {run.name}")
    found += _smaller_bounds(facts.scores, other, attack)
    found += _audit_caveats(facts)
    if facts.baseline is not None and other is not None:
        found += _comparison_caveats(facts.student, facts.baseline)
    return found


def _smaller_bounds(scores: Scores, other: Scores | None, attack: str) -> list[str]:
    """Where other attacks broke what the one in the sentence did not."""
    found = []
    for name, one in (("student", scores), ("baseline", other)):
        shown = None if one is None else one.score(attack)
        together = None if one is None else one.attack("all-attacks")
        if one is None or shown is None or together is None or together.hits >= shown.hits:
            continue
        found.append(
            f"All attacks together leave {_measured(together)} of the {name} right, less than "
            f"{_attack_title(attack, one)} alone: the smaller number is the bound."
        )
    return found


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


def _comparison_caveats(student: Run, baseline: Run) -> list[str]:
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
