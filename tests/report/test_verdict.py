"""The verdict claims no more than the intervals support."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_evaluations import make_row
from run_folders import attacked, right, scores_of, with_answers

from ltd_pipe.errors import ResultError
from ltd_pipe.evaluation.results import ATTACK_FAILS
from ltd_pipe.report.facts import judge_student, unequal_params
from ltd_pipe.report.page import contests
from ltd_pipe.report.verdict import Model, judge, points_text


def verdict_of(facts, student, baseline):
    """The verdict on two models with so many right answers of 1,000: (clean, AutoAttack).

    As far as possible they are right on the same images.
    """
    answers = zip(*(map(right, side) for side in (student, baseline)), strict=True)
    answers = dict(zip(("clean", "autoattack"), answers, strict=True))
    scores = (scores_of(*side) for side in (student, baseline))
    return judge_student(with_answers(facts, *scores, **answers))


def robust_of(facts):
    """How robustness stands at the top of the page."""
    return contests(facts, judge_student(facts))["Robust"]


@pytest.mark.parametrize(
    ("student", "baseline", "headline"),
    [
        ((900, 600), (800, 500), "The student is ahead: more robust, and more accurate on clean"),
        ((900, 600), (900, 500), "The student is more robust; no difference is shown on clean"),
        ((800, 600), (900, 500), "A trade-off: the student is more robust, the baseline more acc"),
        ((900, 500), (800, 500), "The student is more accurate on clean images; no difference in"),
        ((900, 503), (900, 500), "No difference is shown between the baseline and the student"),
        ((800, 500), (900, 500), "The baseline is more accurate on clean images; no difference"),
        ((900, 500), (800, 600), "A trade-off: the baseline is more robust, the student more acc"),
        ((900, 500), (900, 600), "The baseline is more robust; no difference is shown on clean"),
        ((800, 500), (900, 600), "The baseline is ahead: more robust, and more accurate"),
        # Six images that only one has right: p = 0.031, seven: 0.016.
        ((900, 500), (900, 506), "The baseline may be more robust (p = 0.031); no difference"),
        ((900, 500), (906, 507), "The baseline is more robust; the baseline may be more accurate"),
    ],
)
def test_the_headline_says_who_is_ahead_whoever_it_is(facts, student, baseline, headline):
    """As far as the paired test shows it, whatever the intervals of the accuracies."""
    assert verdict_of(facts, student, baseline).headline.startswith(headline)


def test_overlapping_intervals_are_no_test(facts):
    """7.5 points less of 200 images at p = 0.049: the intervals overlap far, and it is no tie."""
    autoattack = (right(97, 200) & ~right(33, 200), right(79, 200))
    scores = (scores_of(180, int(a.sum()), n=200) for a in autoattack)
    clean = (right(180, 200),) * 2
    found = with_answers(facts, *scores, clean=clean, autoattack=autoattack)
    verdict = judge_student(found)
    assert robust_of(found).student.high > robust_of(found).baseline.low
    assert verdict.headline.startswith("The baseline may be more robust (p = 0.049); no")
    assert "a difference of \u22127.5 points" in verdict.sentence


def test_the_report_says_what_compare_and_the_page_of_two_say(facts):
    """One way to a verdict: but for the names, the same words."""
    found = with_answers(
        facts,
        scores_of(900, 600),
        scores_of(880, 560),
        clean=(right(900), right(880, last=True)),
        autoattack=(right(600), right(560)),
    )
    report = judge_student(found)
    sides = [
        Model("the student", found.evaluation),
        Model("the baseline", found.baseline_evaluation),
    ]
    assert judge(*sides).headline == report.headline
    assert report.headline.startswith("The student is more robust; no difference is shown on")
    named = [Model("data/metrics.json", found.evaluation), Model("main", found.baseline_evaluation)]
    assert judge(*named).headline.startswith("data/metrics.json is more robust;")


def test_the_sentence_has_accuracies_and_their_difference(facts):
    """All that a reader needs to judge for himself."""
    verdict = judge_student(facts)
    sentence = verdict.sentence.replace("\u00a0", " ")
    start = (
        "Of the same 599 test images, the student on soft labels gets 75.0 % right under "
        "AutoAttack at ε = 0.15 and the baseline on one-hot labels 72.0 %, a difference of +3.0 "
        "points (95 % interval \u2212"
    )
    assert sentence.startswith(start)
    assert "97.7 % right on clean images and the baseline 97.2 %, a difference of +0.5" in sentence
    assert sentence.count(". ") == 0
    assert (robust_of(facts).outcome, points_text(robust_of(facts).paired)) == (0, "+3.0 points")


def test_without_a_baseline_nothing_is_compared(facts):
    """The number stands alone with its interval, and says so."""
    alone = replace(facts, baseline=None, baseline_evaluation=None)
    verdict = judge_student(alone)
    assert "nothing to compare it to" in verdict.headline
    assert "no baseline" in verdict.sentence
    assert "75.0 % (95 % interval 71.3 to 78.3 %)" in verdict.sentence.replace("\u00a0", " ")
    assert (robust_of(alone).outcome, verdict.scope) == (None, "")


def test_without_answers_by_image_nothing_is_claimed(runs, gather):
    """Both numbers are in the table."""
    (runs / "baseline-evaluation/per_sample.npz").unlink()
    facts = gather(runs)
    verdict = judge_student(facts)
    assert verdict.headline == "The student and the baseline cannot be compared image by image"
    assert "is not compared: no results by image of the baseline." in verdict.sentence
    assert robust_of(facts).baseline is None


def test_answers_of_another_evaluation_are_refused(runs, gather):
    """They would be paired under numbers that they are not of."""
    path = runs / "evaluation/per_sample.npz"
    with np.load(path) as content:
        arrays = dict(content)
    np.savez(path, **arrays | {"correct_clean": np.ones_like(arrays["correct_clean"])})
    with pytest.raises(ResultError) as caught:
        gather(runs)
    assert (caught.value.where, caught.value.found) == (str(path), "1.0000")


def test_without_autoattack_pgd_is_compared_and_said_to_be_weaker(facts):
    """One model without it is enough: unequal attacks have no order."""
    answers = {"clean": (right(900), right(900)), "pgd": (right(500), right(480))}
    sides = scores_of(900, None), scores_of(900, 470, pgd=480)
    found = with_answers(facts, *sides, **answers)
    verdict = judge_student(found)
    assert "PGD" in robust_of(found).title
    assert "AutoAttack" not in verdict.sentence
    assert any("no claim of robustness" in caveat for caveat in verdict.caveats)


def test_models_attacked_at_different_eps_are_not_compared(facts):
    """A weaker attack would win; on clean images they are."""
    answers = {"clean": (right(900),) * 2, "autoattack": (right(500), right(900))}
    sides = scores_of(900, 500), scores_of(900, 900, eps=4 / 255)
    found = with_answers(facts, *sides, **answers)
    verdict = judge_student(found)
    assert robust_of(found).baseline is None
    assert verdict.headline.endswith("on clean images; robustness is not compared")
    assert any("linf 0.03137 against linf 0.01569" in caveat for caveat in verdict.caveats)


def test_warnings_of_autoattack_are_passed_on(facts):
    """They say that its verdict may be too kind."""
    flagged = scores_of(900, 500, warnings=("AutoAttack: zero gradients",))
    verdict = judge_student(replace(facts, evaluation=flagged))
    assert "AutoAttack warns of the student: zero gradients" in verdict.caveats


def test_a_baseline_that_was_trained_otherwise_is_a_caveat(facts):
    """Then the labels are not the only difference."""
    # The store's logits may be read at another temperature, which one-hot labels have not.
    params = facts.baseline.facts.params | {"epochs": 60, "label_temperature": 2.0}
    unlike = replace(
        facts.baseline, facts=facts.baseline.facts.model_copy(update={"params": params})
    )
    assert unequal_params(facts.student, facts.baseline) == []
    assert unequal_params(facts.student, unlike) == ["epochs"]
    assert any(
        "differ in how they were trained: epochs" in c
        for c in judge_student(replace(facts, baseline=unlike)).caveats
    )


OURS = scores_of(900, 600)
PGD = scores_of(900, None)
WEAK = scores_of(900, None, pgd=100)
UNLIKE = {
    "steps of PGD": (
        attacked(PGD, make_row("pgd", 500, 1000, steps=10, restarts=1)),
        WEAK,
        "pgd: other settings (steps, restarts)",
    ),
    "AutoAttack's version": (
        OURS,
        attacked(scores_of(800, 500), make_row("autoattack", 500, 1000, version="rand")),
        "autoattack: other settings (version)",
    ),
    "a first look": (attacked(PGD, quick=True), WEAK, "pgd: one is a first look"),
}


@pytest.mark.parametrize(("mine", "other", "reason"), UNLIKE.values(), ids=UNLIKE.keys())
def test_what_was_measured_otherwise_is_not_compared(facts, mine, other, reason):
    """A weaker attack makes no better model: no claim, and the reason."""
    attack = reason.partition(":")[0]
    answers = {"clean": (right(900),) * 2, attack: (right(500), right(100))}
    found = with_answers(facts, mine, other, **answers)
    verdict = judge_student(found)
    assert verdict.headline.endswith("robustness is not compared")
    assert robust_of(found).paired is None
    assert f"Not compared: {reason}." in verdict.caveats


def test_other_settings_of_an_attack_that_is_not_claimed_do_not_matter(facts):
    """Both were under one AutoAttack, whatever PGD was."""
    mine, other = (
        attacked(scores, make_row("pgd", 500, 1000, steps=steps))
        for scores, steps in ((scores_of(900, 600), 10), (scores_of(800, 500), 50))
    )
    both = {"clean": (right(900), right(800)), "autoattack": (right(600), right(500))}
    verdict = judge_student(with_answers(facts, mine, other, **both))
    assert verdict.headline.startswith("The student is ahead")


def test_a_smaller_bound_than_the_headlines_is_said(facts):
    """One image that only another attack broke is enough, and none is not."""
    scores = scores_of(900, 500)
    bound = attacked(scores, make_row("all-attacks", 499, 1000))
    equal = attacked(scores, make_row("all-attacks", 500, 1000))
    found = judge_student(replace(facts, evaluation=bound, baseline_evaluation=equal))
    (caveat,) = [text for text in found.caveats if "All attacks together" in text]
    assert "leave 49.9\u00a0% (95 % interval 46.8 to 53.0\u00a0%) of the student" in caveat


def test_without_autoattack_all_attacks_together_are_the_bound(facts):
    """PGD alone leaves more."""
    bound = attacked(scores_of(900, None), make_row("all-attacks", 400, 1000))
    alone = replace(facts, evaluation=bound, baseline=None, baseline_evaluation=None)
    assert judge_student(alone).headline.startswith("40.0\u00a0% robust accuracy")


def test_what_the_intervals_leave_out_is_said(facts):
    """One seed is one seed."""
    assert "several seeds decide" in judge_student(facts).scope


def test_the_axis_holds_all_intervals(facts):
    """In whole steps of 5 %, never beyond 0 and 1."""
    every = {"clean": (right(999), right(990)), "autoattack": (right(3), right(0))}
    found = with_answers(facts, scores_of(999, 3), scores_of(990, 0), **every)
    contest = contests(found, judge_student(found))["Clean"]
    low, high = contest.axis
    assert low <= contest.baseline.low
    assert high == 1
    assert low * 20 == pytest.approx(round(low * 20))
    assert robust_of(found).axis[0] == 0


def test_a_quick_look_is_no_result(facts):
    """Whichever model was looked at so."""
    scores = scores_of(900, None, eps=facts.evaluation.metrics.eps)
    quick = attacked(scores, quick=True)
    for changes in ({"evaluation": quick}, {"baseline_evaluation": quick}):
        found = judge_student(replace(facts, **changes))
        assert any("quick look" in caveat for caveat in found.caveats)
    assert not any("quick look" in caveat for caveat in judge_student(facts).caveats)


def test_a_norm_that_is_not_usual_is_named(facts):
    """A radius of one says nothing of the other."""
    scores = attacked(scores_of(900, 500, eps=0.5), norm="l2")
    assert robust_of(replace(facts, evaluation=scores)).title == "under AutoAttack at ε = 0.5 in L2"


FAILS = f"3 of 9 images stand although every pixel may take any value: {ATTACK_FAILS}"
SCALE = "the pixels may be on another scale"


@pytest.mark.parametrize("name", ["student", "baseline"])
def test_an_attack_that_fails_takes_the_headline(facts, name):
    """Whoever's it is, and whoever would be ahead."""
    sides = {"student": scores_of(900, 600), "baseline": scores_of(900, 500)}
    sides[name] = attacked(sides[name], warnings=(FAILS,))
    found = replace(facts, evaluation=sides["student"], baseline_evaluation=sides["baseline"])
    verdict = judge_student(found)
    assert verdict.headline == f"The {name}'s robust accuracy cannot be believed: the attack fails"
    assert f"The evaluation warns of the {name}: {FAILS}" in verdict.caveats


def test_every_warning_of_an_evaluation_is_a_caveat(facts):
    """AutoAttack's own are said to be its."""
    warned = scores_of(900, 600, warnings=(SCALE, "AutoAttack: zero gradients"))
    verdict = judge_student(
        replace(facts, evaluation=warned, baseline_evaluation=scores_of(900, 500))
    )
    assert "cannot be believed" not in verdict.headline
    assert [text for text in verdict.caveats if " warns of " in text] == [
        "AutoAttack warns of the student: zero gradients",
        f"The evaluation warns of the student: {SCALE}",
    ]
