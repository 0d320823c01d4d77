"""The verdict claims no more than the intervals support."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_folders import scores_of

from pipeline.evaluation.doubts import ATTACK_FAILS
from pipeline.report.scores import AttackRow
from pipeline.report.verdict import differences, judge


def verdict_of(facts, student, baseline):
    """The verdict on two models with so many right answers of 1,000: (clean, AutoAttack)."""
    return judge(replace(facts, scores=scores_of(*student), baseline_scores=scores_of(*baseline)))


@pytest.mark.parametrize(
    ("student", "baseline", "headline"),
    [
        ((900, 600), (800, 500), "Soft labels are ahead: more robust, and more accurate"),
        ((900, 600), (900, 500), "Soft labels are ahead on robustness; no difference"),
        ((800, 600), (900, 500), "A trade-off: soft labels are more robust, but less accurate"),
        ((900, 500), (800, 500), "Soft labels are ahead on clean images; no difference"),
        ((900, 510), (895, 500), "No difference is shown between soft labels and the baseline"),
        ((800, 500), (900, 500), "The baseline is ahead on clean images; no difference"),
        ((900, 500), (800, 600), "A trade-off: the baseline is more robust, but less accurate"),
        ((900, 500), (900, 600), "The baseline is ahead on robustness; no difference"),
        ((800, 500), (900, 600), "The baseline is ahead: more robust, and more accurate"),
    ],
)
def test_the_headline_says_who_is_ahead_whoever_it_is(facts, student, baseline, headline):
    """All nine outcomes."""
    assert verdict_of(facts, student, baseline).headline.startswith(headline)


def test_a_difference_within_the_intervals_is_not_claimed(facts):
    """Three points of 1,000 images are not enough, and the sentence says so."""
    verdict = verdict_of(facts, (900, 530), (900, 500))
    assert "neither is shown to be better" in verdict.sentence
    assert "ahead" not in verdict.headline
    assert verdict.robust.outcome == 0


def test_the_sentence_has_both_accuracies_with_n_and_intervals(facts):
    """All that a reader needs to judge for himself."""
    sentence = judge(facts).sentence.replace("\u00a0", " ")
    for text in (
        "599 test images",
        "97.7 % (95 % interval 96.1 to 98.6 %)",
        "75.0 % (71.3 to 78.3 %)",
    ):
        assert text in sentence
    assert "trained on soft labels" in sentence
    assert "the baseline on one-hot labels gets 97.2 % (95.5 to 98.2 %) and 72.0 %" in sentence
    assert "under AutoAttack at ε = 0.15" in sentence
    assert sentence.count(". ") == 0


def test_a_mixed_outcome_names_which_is_which(facts):
    """The conclusion splits by measure."""
    sentence = verdict_of(facts, (800, 600), (900, 500)).sentence
    assert "the student is better in robust accuracy" in sentence
    assert "the baseline is better in clean accuracy" in sentence


def test_without_a_baseline_nothing_is_compared(facts):
    """The number stands alone and says so."""
    verdict = judge(replace(facts, baseline=None, baseline_scores=None))
    assert "nothing to compare it to" in verdict.headline
    assert "no baseline" in verdict.sentence
    assert verdict.robust.outcome is None
    assert verdict.scope == ""


def test_without_autoattack_pgd_is_compared_and_said_to_be_weaker(facts):
    """One model without it is enough: unequal attacks have no order."""
    verdict = verdict_of(facts, (900, None), (900, 480))
    assert "PGD" in verdict.robust.title
    assert "AutoAttack" not in verdict.sentence
    assert any("no claim of robustness" in caveat for caveat in verdict.caveats)


def test_models_attacked_at_different_eps_are_not_compared(facts):
    """A weaker attack would win."""
    other = scores_of(900, 900, eps=4 / 255)
    verdict = judge(replace(facts, scores=scores_of(900, 500), baseline_scores=other))
    assert verdict.robust.baseline is None
    assert any("another ε (4/255)" in caveat for caveat in verdict.caveats)


def test_warnings_of_autoattack_are_passed_on(facts):
    """They say that its verdict may be too kind."""
    flagged = scores_of(900, 500, flags=("zero gradients",))
    verdict = judge(replace(facts, scores=flagged, baseline_scores=scores_of(900, 500)))
    assert "AutoAttack warns of the student: zero gradients" in verdict.caveats


def test_a_baseline_that_was_trained_otherwise_is_a_caveat(facts):
    """Then the labels are not the only difference."""
    params = facts.baseline.facts.params | {"epochs": 60}
    unlike = replace(
        facts.baseline, facts=facts.baseline.facts.model_copy(update={"params": params})
    )
    assert differences(facts.student, facts.baseline) == []
    assert differences(facts.student, unlike) == ["epochs"]
    assert any(
        "differ in how they were trained: epochs" in c
        for c in judge(replace(facts, baseline=unlike)).caveats
    )


def attacked(scores, **changes):
    """The same scores with other metrics."""
    return replace(scores, metrics=scores.metrics.model_copy(update=changes))


def row(key, accuracy=0.5, n=1000, **decides):
    """A row of metrics.json."""
    measured = {"n": n, "accuracy": accuracy, "low": 0.0, "high": 1.0}
    return AttackRow(key=key, name=key, **measured, norm="linf", eps=8 / 255, **decides)


OURS = scores_of(900, 600, data_fingerprint="a" * 64)
PGD = scores_of(900, None)
AUTO = {"version": "standard", "package": "0.2"}
UNLIKE = {
    "other test images": (
        OURS,
        scores_of(800, 500, data_fingerprint="b" * 64),
        "was measured on other test images",
    ),
    "fewer images": (OURS, scores_of(160, 100, n=200), "another number of test images (200)"),
    "steps of PGD": (
        attacked(PGD, attacks=(row("pgd", steps=10, restarts=1),)),
        attacked(PGD, pgd_accuracy=0.1, attacks=(row("pgd", steps=50, restarts=5),)),
        "was attacked otherwise (PGD: other settings (steps, restarts))",
    ),
    "steps of older PGD": (
        scores_of(900, None, attacks=({"name": "PGD", "steps": 10},)),
        attacked(scores_of(800, None, attacks=({"name": "PGD", "steps": 50},)), pgd_accuracy=0.1),
        "was attacked otherwise (PGD-10: other settings)",
    ),
    "AutoAttack's version": (
        attacked(OURS, attacks=(row("autoattack", **AUTO),)),
        attacked(scores_of(800, 500), attacks=(row("autoattack", **AUTO | {"version": "rand"}),)),
        "was attacked otherwise (AutoAttack: other settings (version))",
    ),
    "a first look": (
        attacked(PGD, quick=True),
        attacked(PGD, pgd_accuracy=0.1),
        "one is a first look",
    ),
}


@pytest.mark.parametrize(("mine", "other", "reason"), UNLIKE.values(), ids=UNLIKE.keys())
def test_what_was_measured_otherwise_is_not_compared(facts, mine, other, reason):
    """A weaker attack makes no better model: no claim, and the reason."""
    verdict = judge(replace(facts, scores=mine, baseline_scores=other))
    assert verdict.headline.endswith("with nothing to compare it to")
    assert verdict.robust.outcome is verdict.clean.outcome is None
    assert "the baseline was measured otherwise and is not compared" in verdict.sentence
    (caveat,) = [text for text in verdict.caveats if "so it is not compared" in text]
    assert reason in caveat


def test_other_settings_of_an_attack_that_is_not_claimed_do_not_matter(facts):
    """Both were under one AutoAttack, whatever PGD was."""
    mine, other = (
        attacked(scores, attacks=(row("pgd", steps=steps), row("autoattack", **AUTO)))
        for scores, steps in ((scores_of(900, 600), 10), (scores_of(800, 500), 50))
    )
    assert judge(replace(facts, scores=mine, baseline_scores=other)).robust.outcome == 1


@pytest.mark.parametrize("auto", [500, None], ids=["AutoAttack", "PGD alone"])
def test_a_smaller_bound_than_the_headlines_is_said(facts, auto):
    """One image that only another attack broke is enough, and none is not."""
    scores = scores_of(900, auto)
    bound = attacked(scores, attacks=(row("all-attacks", 0.499),))
    equal = attacked(scores, attacks=(row("all-attacks", 0.5),))
    (caveat,) = [
        text
        for text in judge(replace(facts, scores=bound, baseline_scores=equal)).caveats
        if "All attacks together" in text
    ]
    assert "leave 49.9\u00a0% (0.0 to 100.0\u00a0%) of the student right, less than" in caveat


def test_what_the_intervals_leave_out_is_said(facts):
    """One seed is one seed."""
    assert "another seed" in judge(facts).scope


def test_the_axis_holds_all_intervals(facts):
    """In whole steps of 5 %, never beyond 0 and 1."""
    contest = verdict_of(facts, (999, 3), (990, 0)).clean
    low, high = contest.axis
    assert low <= contest.baseline.low
    assert high == 1
    assert low * 20 == pytest.approx(round(low * 20))
    assert verdict_of(facts, (999, 3), (990, 0)).robust.axis[0] == 0


def test_a_quick_look_is_no_result(facts):
    """Whichever model was looked at so."""
    scores = scores_of(900, None, eps=facts.scores.metrics.eps)
    quick = replace(scores, metrics=scores.metrics.model_copy(update={"quick": True}))
    for changes in ({"scores": quick}, {"baseline_scores": quick}):
        assert any("quick look" in caveat for caveat in judge(replace(facts, **changes)).caveats)
    assert not any("quick look" in caveat for caveat in judge(facts).caveats)


def test_different_norms_are_not_compared(facts):
    """A radius of one says nothing of the other; the norm that is not usual is named."""
    scores = scores_of(900, 500, eps=0.5)
    metrics = scores.metrics.model_copy(update={"norm": "l2"})
    found = replace(facts, scores=replace(scores, metrics=metrics), baseline_scores=scores)
    verdict = judge(found)
    assert verdict.robust.baseline is None
    assert verdict.robust.title == "under AutoAttack at ε = 0.5 in L2"
    assert (
        "The baseline was attacked in another norm (L∞), so it is not compared." in verdict.caveats
    )


FAILS = f"3 of 9 images stand although every pixel may take any value: {ATTACK_FAILS}"
SCALE = "the pixels may be on another scale"


@pytest.mark.parametrize("name", ["student", "baseline"])
def test_an_attack_that_fails_takes_the_headline(facts, name):
    """Whoever's it is, and whoever would be ahead."""
    sides = {"student": scores_of(900, 600), "baseline": scores_of(900, 500)}
    sides[name] = attacked(sides[name], warnings=(FAILS,))
    found = replace(facts, scores=sides["student"], baseline_scores=sides["baseline"])
    verdict = judge(found)
    assert verdict.headline == f"The {name}'s robust accuracy cannot be believed: the attack fails"
    assert f"The evaluation warns of the {name}: {FAILS}" in verdict.caveats


def test_every_warning_of_an_evaluation_is_a_caveat_once(facts):
    """AutoAttack's are in settings.json, too."""
    scores = scores_of(900, 600, flags=("zero gradients",))
    warned = attacked(scores, warnings=(SCALE, "AutoAttack: zero gradients"))
    verdict = judge(replace(facts, scores=warned, baseline_scores=scores_of(900, 500)))
    assert "ahead on robustness" in verdict.headline
    assert [text for text in verdict.caveats if " warns of " in text] == [
        "AutoAttack warns of the student: zero gradients",
        f"The evaluation warns of the student: {SCALE}",
    ]
