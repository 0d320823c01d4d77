"""`ltd-pipe report --compare`: two runs on one page, and no more claimed than their test allows."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_evaluations import make_row, write_evaluation
from page_reader import read
from pair_folders import HASHES, N, gather, right, write_pair
from run_folders import edit_json, measure, write_audit, write_json

from ltd_pipe.errors import MissingError, WriteError
from ltd_pipe.evaluation.results import ATTACK_FAILS, read_metrics
from ltd_pipe.provenance import sha256_file
from ltd_pipe.report.facts import gather_pair, judge_pair
from ltd_pipe.report.page import paired_rows, render_pair, unequal_settings
from ltd_pipe.stages.report import report


@pytest.fixture(scope="module")
def whole_pair(tmp_path_factory):
    """Two runs, not to be changed."""
    folder = tmp_path_factory.mktemp("pair")
    write_pair(folder)
    return folder


@pytest.fixture
def pair(whole_pair, tmp_path):
    """A copy to be changed at will."""
    return shutil.copytree(whole_pair, tmp_path / "pair")


def evaluate_b_anew(pair, clean, robust, hashes=HASHES):
    """Give the second run other answers."""
    metrics = pair / "b/data/metrics.json"
    sha256 = json.loads(metrics.read_text())["checkpoint_sha256"]
    shutil.rmtree(pair / "b/data/evaluation")
    answers = {"clean": clean, "autoattack": robust}
    write_evaluation(metrics, hashes, checkpoint_sha256=sha256, **answers)


@pytest.mark.parametrize(
    ("clean", "robust", "headline"),
    [
        (right(195), right(130), "B is more robust; no difference is shown on clean images"),
        (right(100), right(130), "A trade-off: B is more robust, A more accurate on clean"),
        (right(195), right(60), "A is more robust; no difference"),
        (right(195), right(104), "No difference is shown between A and B"),
        (right(100), right(100), "A is more accurate on clean images; no difference in robust"),
        # Seven against none gives p = 0.016, six 0.031: more than 0.025.
        (right(195), right(107), "B is more robust; no difference"),
        (right(195), right(106), "B may be more robust (p = 0.031); no difference is shown on"),
    ],
)
def test_a_difference_is_claimed_where_the_paired_test_shows_one(pair, clean, robust, headline):
    """By McNemar's p, whatever the accuracies."""
    evaluate_b_anew(pair, clean, robust)
    assert judge_pair(gather(pair)).headline.startswith(headline)


def test_a_failed_audit_beside_a_run_takes_the_headline(pair):
    """As on the page of one student; one of another checkpoint is none."""
    write_audit(
        pair / "b/data/audit", pair / "b/data/student/model.safetensors", ["live gradients"]
    )
    told = judge_pair(gather(pair)).headline
    assert told.startswith("B's robust accuracy cannot be believed")
    edit_json(pair / "b/data/audit/audit.json", checkpoint_sha256="0" * 64)
    assert judge_pair(gather(pair)).headline.startswith("B is more robust")


def test_curves_of_two_norms_share_no_axis(pair):
    """The second is left out, and the page says so."""
    edit_json(pair / "b/data/metrics.json", norm="l2")
    facts = gather(pair)
    assert "Robust accuracy by ε of B (in another norm than A's)." in facts.missing
    assert "A, PGD-20" in (page := render_pair(facts))
    assert "B, PGD-20" not in page


def test_many_discordant_images_that_cancel_out_show_nothing(pair):
    """Right on others, but on as many: p is 1."""
    evaluate_b_anew(pair, right(195), right(100, first=80))
    facts = gather(pair)
    assert judge_pair(facts).headline == "No difference is shown between A and B"
    paired = paired_rows(facts, judge_pair(facts))[1].paired
    assert (paired.gained, paired.lost) == (80, 80)


def test_the_sentence_has_points_interval_and_p(whole_pair):
    """And the scope says that two checkpoints are no two methods."""
    verdict = judge_pair(gather(whole_pair))
    sentence = verdict.sentence.replace("\u00a0", " ")
    assert sentence.startswith("Of the same 200 test images, B gets 65.0 % right under AutoAttack")
    assert "and A 50.0 %, a difference of +15.0 points (95 % interval +9." in sentence
    assert "p < 0.0001" in sentence
    assert "a difference of 0.0 points (95 % interval −1.7 to +1.7, p = 1)" in sentence
    assert "several seeds decide" in verdict.scope


def test_other_test_images_are_not_compared(pair):
    """Nothing is claimed, and the table has no p."""
    evaluate_b_anew(pair, right(9), right(3), [one + 1 for one in HASHES])
    facts = gather(pair)
    assert judge_pair(facts).headline == "B and A cannot be compared image by image"
    assert "other test images" in judge_pair(facts).sentence
    assert not any(row.paired for row in paired_rows(facts, judge_pair(facts)))
    assert render_pair(facts).count("not compared</span>") == 2


def test_another_radius_leaves_robustness_out(pair):
    """Clean accuracy is compared all the same."""
    edit_json(pair / "b/data/metrics.json", eps=0.3)
    verdict = judge_pair(gather(pair))
    assert verdict.headline.endswith("robustness is not compared")
    assert any("linf 0.3 against linf 0.1" in caveat for caveat in verdict.caveats)


def test_the_page_has_both_runs_and_is_a_page_of_one_file(whole_pair):
    """Well-formed, escaped, the same twice, and nothing is loaded."""
    page = render_pair(gather(whole_pair, ("<b>first</b>", "second")))
    parsed = read(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "<b>first" not in page
    assert "Two &lt;runs&gt;" in page
    assert page == render_pair(gather(whole_pair, ("<b>first</b>", "second")))
    addresses = [a for _, attributes in parsed.tags for k, a in attributes.items() if k == "src"]
    assert addresses == []
    assert len(page.encode()) < 500_000
    assert "Not in this report" not in page
    assert page.count('class="drawing"') == 4


def test_settings_that_differ_are_shown_and_no_others(whole_pair, pair):
    """The kind of labels here; between a run and itself none."""
    assert [row.name for row in unequal_settings(gather(whole_pair))] == ["label_kind"]
    shutil.rmtree(pair / "b/data")
    shutil.copytree(pair / "a", pair / "b/data")
    same = gather(pair)
    assert unequal_settings(same) == []
    assert "Both are the same checkpoint." in judge_pair(same).caveats
    assert "None: both were trained with the same settings" in render_pair(same)


def test_without_checkpoints_the_evaluations_are_compared(pair):
    """And the page says what it lacks."""
    (pair / "a/model.safetensors").unlink()
    (pair / "a/evaluation/by_eps.json").unlink()
    facts = gather(pair)
    assert facts.a.run is None
    assert unequal_settings(facts) is None
    assert [text.split(" (")[0] for text in facts.missing] == [
        "Training curves and settings of A",
        "Robust accuracy by ε of A",
    ]
    read(render_pair(facts))


def test_a_checkpoint_beside_metrics_that_are_not_its_own_is_left_out(pair):
    """Nobody named it, and its curves would be of another model than the accuracies."""
    measure(pair / "a/metrics.json", "f" * 64)
    facts = gather(pair)
    assert facts.a.run is None
    assert any(text.startswith("Training curves and settings of A") for text in facts.missing)


def test_weights_that_do_not_say_what_they_are_have_no_run(pair):
    """Which evaluate measured with --arch."""
    torch.save({}, pair / "a/model.safetensors")
    measure(pair / "a/metrics.json", sha256_file(pair / "a/model.safetensors"))
    assert gather(pair).a.run is None


def test_a_run_of_another_name_beside_its_metrics_is_found(pair):
    """baseline-metrics.json is of the folder baseline."""
    place = pair / "b/data"
    (place / "metrics.json").rename(place / "baseline-metrics.json")
    (place / "evaluation").rename(place / "baseline-evaluation")
    (place / "student").rename(place / "baseline")
    first = ("a", pair / "a/metrics.json")
    found = gather_pair("x", first, ("b", place / "baseline-metrics.json"))
    assert found.b.run is not None
    np.testing.assert_array_equal(found.b.run.curves["train/loss"].epochs, np.arange(1, 31))


@pytest.fixture
def run(pair, monkeypatch):
    """Run the command beside both."""
    monkeypatch.chdir(pair)
    return lambda *words: CliRunner().invoke(report, list(words))


def test_the_command_writes_a_page_of_its_own(run, pair):
    """Not the pipeline's data/report.html; not twice without --force; JSON has the verdict."""
    outcome = run("--compare", "a", "b")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.startswith("data/comparison.html: ")
    assert "B is more robust" in outcome.stdout
    assert isinstance(run("--compare", "a", "b").exception, WriteError)
    content = json.loads(run("--compare", "a", "b", "--force", "--json").stdout)
    assert content["headline"].startswith("B is more robust")
    assert not (pair / "data/report.html").exists()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("--compare", "a", "b", "--student", "a"), 2, SystemExit),
        (("--compare", "a"), 2, SystemExit),
        (("--compare", "a", "nowhere"), 1, MissingError),
    ],
    ids=["a student, too", "one run", "no such run"],
)
def test_a_refused_comparison_writes_nothing(run, pair, words, code, error):
    """Usage errors are those of the command line."""
    outcome = run(*words)
    assert (outcome.exit_code, type(outcome.exception)) == (code, error)
    assert not list((pair).rglob("*.html"))


def test_a_smaller_bound_than_that_of_the_sentence_is_said(pair):
    """B's transfer attack broke one image that AutoAttack did not; A's all together no more."""
    for place, left in (("a", 100), ("b/data", 129)):
        metrics = pair / place / "metrics.json"
        found = read_metrics(metrics)
        attacks = (*found.attacks, make_row("all-attacks", left, N))
        write_json(metrics, found.model_copy(update={"attacks": attacks}).dump())
    (caveat,) = [text for text in judge_pair(gather(pair)).caveats if "together" in text]
    assert "leave 64.5\u00a0% (95 % interval 57.7 to 70.8\u00a0%) of B right, less than" in caveat


def test_warnings_of_an_evaluation_reach_the_page_of_two(pair):
    """An attack that fails takes the headline."""
    edit_json(pair / "a/metrics.json", warnings=["the scale is wrong"])
    verdict = judge_pair(gather(pair))
    assert "The evaluation warns of A: the scale is wrong" in verdict.caveats
    assert verdict.headline.startswith("B is more robust")
    edit_json(pair / "b/data/metrics.json", warnings=[f"2 of 9 stand: {ATTACK_FAILS}"])
    headline = judge_pair(gather(pair)).headline
    assert headline == "B's robust accuracy cannot be believed: the attack fails"
