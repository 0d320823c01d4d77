"""What is read, what may be missing, and what does not belong together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from refusals import refused
from run_folders import PARAMS, edit_json, keep_attacks, measure, paths_in, save_model, write_audit

from ltd_pipe.errors import MissingError, ResultError
from ltd_pipe.evaluation.results import read_audit
from ltd_pipe.params import ReportParams
from ltd_pipe.provenance import sha256_file
from ltd_pipe.report.facts import gather_facts, judge_student, masking_text
from ltd_pipe.report.page import render_page


def remove(path):
    """A file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_whole_run_lacks_nothing(facts):
    """All pieces are there."""
    assert facts.missing == ()
    assert facts.baseline_evaluation is not None
    assert facts.labels.summary.mean_top_probability == pytest.approx(0.906, abs=0.01)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("baseline", "A baseline to compare with"),
        ("baseline-metrics.json", "The baseline's accuracy"),
        ("evaluation/by_eps.json", "Robust accuracy by ε"),
        ("evaluation/reliability.json", "Reliability diagrams"),
        ("evaluation/examples.npz", "Pictures of attacked images"),
        ("audit", "Checks for gradient masking"),
        ("teacher", "The teacher"),
        ("labels.zarr", "The soft labels"),
        ("train.beton", "Pictures of training images"),
        ("student/live", "Curves of training"),
    ],
)
def test_what_is_missing_is_said(runs, gather, name, message):
    """One line of its own for each piece, and the rest is there."""
    remove(runs / name)
    missing = gather(runs).missing
    assert len(missing) == 1
    assert missing[0].startswith(message)


def test_autoattack_that_was_not_run_is_said(runs, gather):
    """PGD alone is no claim."""
    keep_attacks(runs / "metrics.json", "clean", "pgd")
    assert any(text.startswith("AutoAttack") for text in gather(runs).missing)


@pytest.mark.parametrize("name", ["student/model.safetensors", "metrics.json"])
def test_the_student_and_its_metrics_must_be_there(runs, gather, name):
    """There is no page without them."""
    remove(runs / name)
    with refused(MissingError, where=runs / name, what="file", remedy="ltd-pipe"):
        gather(runs)


@pytest.mark.parametrize("prefix", ["", "baseline-"])
def test_metrics_of_another_checkpoint_are_refused(runs, gather, prefix):
    """A student that was trained anew needs a new evaluation."""
    measure(runs / f"{prefix}metrics.json", "f" * 64)
    with refused(
        ResultError,
        where=runs / f"{prefix}metrics.json",
        what="checkpoint",
        found="f" * 12,
        remedy="ltd-pipe evaluate",
    ):
        gather(runs)


def test_a_student_of_another_store_has_none_and_a_named_one_is_refused(runs):
    """The label statistics would be those of labels it never saw."""
    save_model(runs / "student", labels={"identity": "d" * 64, "temperature": 1.0})
    measure(runs / "metrics.json", sha256_file(runs / "student/model.safetensors"))
    (runs / "audit/audit.json").unlink()
    paths = paths_in(runs)
    facts = gather_facts(paths, ReportParams())
    assert facts.labels is None
    assert f"The soft labels ({paths.labels} is not of this student)." in facts.missing
    with refused(
        ResultError,
        where=runs / "student",
        what="store",
        found="d" * 12,
        remedy="--labels",
    ):
        gather_facts(replace(paths, named={"labels"}), ReportParams())


OF_IMAGES = {
    "teacher": "The teacher",
    "labels": "The soft labels",
    "data": "Pictures of training images",
}


@pytest.mark.parametrize("kind", ["onehot", "live"])
def test_what_is_of_other_images_is_not_the_students(runs, kind):
    """Left out where it is in its usual place, refused where it was named; nor is a teacher."""
    asked = {"teacher": {"sha256": "c" * 64}} if kind == "live" else {}
    params, data = PARAMS | {"label_kind": kind}, {"dataset": "animals", "fingerprint": "f" * 64}
    save_model(runs / "student", kind="student", params=params, data=data, epoch=3, **asked)
    checkpoint = sha256_file(runs / "student/model.safetensors")
    measure(runs / "metrics.json", checkpoint)
    edit_json(runs / "audit/audit.json", checkpoint_sha256=checkpoint)
    paths = paths_in(runs)
    facts = gather_facts(paths, ReportParams())
    assert facts.labels is facts.teacher is facts.manifest is None
    for name in ("teacher", "labels"):
        assert (
            f"{OF_IMAGES[name]} ({getattr(paths, name)} is not of this student)." in facts.missing
        )
    assert "<dt>training images</dt>" not in render_page(facts)
    for name in OF_IMAGES:
        with refused(ResultError, where=getattr(paths, name), remedy=f"--{name}"):
            gather_facts(replace(paths, named={name}), ReportParams())


def test_the_teacher_that_was_asked_in_the_run_is_the_students(runs, gather):
    """Whatever images it was trained on."""
    (runs / "labels.zarr").rename(runs / "other.zarr")
    save_model(runs / "teacher", kind="teacher", params={}, clean_accuracy=0.9, n=10)
    asked = {"teacher": {"sha256": sha256_file(runs / "teacher/model.safetensors")}}
    save_model(runs / "student", kind="student", params=PARAMS, epoch=3, **asked)
    checkpoint = sha256_file(runs / "student/model.safetensors")
    measure(runs / "metrics.json", checkpoint)
    edit_json(runs / "audit/audit.json", checkpoint_sha256=checkpoint)
    assert gather(runs).teacher is not None


def test_a_teacher_of_another_store_is_left_out_and_a_named_one_refused(runs):
    """Its accuracy says nothing about these labels."""
    save_model(runs / "teacher", kind="teacher", seed=5)
    paths = paths_in(runs)
    facts = gather_facts(paths, ReportParams())
    assert facts.labels is not facts.teacher is None
    with refused(ResultError, where=runs / "teacher", what="labels.zarr"):
        gather_facts(replace(paths, named={"teacher"}), ReportParams())


def test_no_examples_are_wanted(runs, gather):
    """report.examples 0."""
    assert gather(runs, examples=0).examples is None


def test_no_more_examples_are_shown_than_wanted(whole_runs, gather):
    """report.examples 3."""
    assert len(gather(whole_runs, examples=3).examples) == 3


STUDENT = "student/model.safetensors"


def test_a_passed_audit_stands_in_the_verdict(facts, page):
    """With the number of checks and of images; the headline is of the accuracies."""
    verdict = judge_student(facts)
    assert masking_text(facts.audit) == "passed (all 3, on 599 images)"
    assert verdict.headline.startswith("No difference is shown")
    assert page.index("passed (all 3, on 599 images)") < page.index('id="results"')


def test_a_failed_audit_takes_the_headline(runs, gather):
    """Whoever is ahead: no claim of robustness stands above a failed check."""
    write_audit(runs / "audit", runs / STUDENT, failing=["live gradients"])
    facts = gather(runs)
    verdict = judge_student(facts)
    assert masking_text(facts.audit) == "1 of 3 failed"
    assert verdict.headline.startswith("The student's robust accuracy cannot be believed")
    page = render_page(facts)
    assert page.count("✗ FAIL") == 1
    assert page.count("✓ pass<") == 2


def test_without_an_audit_the_verdict_says_so(facts):
    """Silence would pass for a passed audit."""
    bare = replace(facts, audit=None)
    assert "Gradient-masking checks: not run" in render_page(bare)


def test_the_table_has_check_share_limit_and_meaning(page):
    """Names are the user's: a path may hold anything."""
    assert "white box beats transfer from &lt;b&gt;.pt" in page
    assert "Broken only by 5 restarts: no convergence" in page
    assert "<b>3.2\u00a0%</b>" in page
    assert "2.0 to 4.9\u00a0%" in page


def test_what_could_not_be_audited_is_said(runs, gather):
    """A model no better than chance: not passed, not failed."""
    reason = "model: is not clearly better than chance on the clean images"
    changes = {"passed": False, "refused": reason, "findings": [], "loss_surface": None}
    write_audit(runs / "audit", runs / STUDENT, **changes)
    facts = gather(runs)
    assert masking_text(facts.audit) == "not possible"
    assert "cannot be believed: it could not be checked" in judge_student(facts).headline
    assert any(reason in caveat for caveat in judge_student(facts).caveats)
    assert reason in render_page(facts)


def test_an_audit_of_another_threat_is_a_caveat(runs, gather):
    """What holds at one radius need not hold at another."""
    write_audit(runs / "audit", runs / STUDENT, eps=0.5)
    assert any(
        "of another threat (ε = 0.5 in L∞)" in text for text in judge_student(gather(runs)).caveats
    )


def test_an_audit_of_another_checkpoint_is_refused(runs, gather):
    """One clear line; the teacher's audit is not the student's."""
    write_audit(runs / "audit", runs / "teacher/model.safetensors")
    with refused(
        ResultError,
        where=runs / "audit/audit.json",
        what="checkpoint",
        remedy="ltd-pipe audit",
    ):
        gather(runs)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"passed": False}, {"what": "passed"}),
        ({"findings": []}, {"what": "findings"}),
        ({"checkpoint_sha256": None}, {"what": "checkpoint_sha256"}),
        ({"eps": 0}, {"what": "eps", "found": "0"}),
        (
            {"zero_accuracy_at_eps": "<script>"},
            {"what": "zero_accuracy_at_eps", "found": "'<script>'"},
        ),
    ],
)
def test_a_damaged_audit_is_refused(runs, changes, fields):
    """Nothing of it reaches the page."""
    edit_json(runs / "audit/audit.json", **changes)
    sha256 = sha256_file(runs / "student/model.safetensors")
    with refused(ResultError, where=runs / "audit/audit.json", **fields):
        read_audit(runs / "audit/audit.json", sha256)


def test_a_verdict_that_its_numbers_contradict_is_refused(runs, gather):
    """A `passed` that was edited by hand."""
    content = json.loads((runs / "audit/audit.json").read_text())
    content["findings"][0]["count"] = 599
    (runs / "audit/audit.json").write_text(json.dumps(content))
    with refused(ResultError, where=runs / "audit/audit.json", what="live"):
        gather(runs)


@pytest.mark.parametrize(
    "loss", [[[0.0]], [[0.0] * 9] * 8, [["<svg>"] * 9] * 9], ids=["small", "short", "text"]
)
def test_a_surface_that_is_no_grid_of_numbers_is_refused(runs, gather, loss):
    """The picture is drawn from the numbers: nothing else can come in."""
    content = json.loads((runs / "audit/audit.json").read_text())
    content["loss_surface"]["loss"] = loss
    (runs / "audit/audit.json").write_text(json.dumps(content))
    with refused(ResultError, where=runs / "audit/audit.json", what="loss_surface"):
        gather(runs)


def test_an_audit_that_was_named_must_be_there(tmp_path):
    """The remedy is to run one."""
    with refused(MissingError, where=tmp_path / "audit.json", what="file", remedy="ltd-pipe audit"):
        read_audit(tmp_path / "audit.json", "0" * 64)
