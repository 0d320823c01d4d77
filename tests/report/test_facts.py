"""What is read, what may be missing, and what does not belong together."""

from __future__ import annotations

import shutil

import pytest
from run_folders import edit_json, save_model

from ltd_pipe.errors import MissingError, ResultError


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
    edit_json(runs / "metrics.json", autoattack_accuracy=None, intervals=None)
    assert any(text.startswith("AutoAttack") for text in gather(runs).missing)


@pytest.mark.parametrize("name", ["student/model.safetensors", "metrics.json"])
def test_the_student_and_its_metrics_must_be_there(runs, gather, name):
    """There is no page without them."""
    remove(runs / name)
    with pytest.raises(MissingError, match=f"{name.rpartition('/')[2]}: no such file.*ltd-pipe"):
        gather(runs)


@pytest.mark.parametrize("prefix", ["", "baseline-"])
def test_metrics_of_another_checkpoint_are_refused(runs, gather, prefix):
    """A student that was trained anew needs a new evaluation."""
    edit_json(runs / f"{prefix}evaluation" / "settings.json", checkpoint_sha256="f" * 64)
    with pytest.raises(
        ResultError, match=f"{prefix}metrics.json: is not of this .*ffffff.*evaluate"
    ):
        gather(runs)


def test_a_student_of_another_store_is_refused(runs, gather):
    """The label statistics would be those of labels it never saw."""
    save_model(runs / "student", labels={"identity": "d" * 64, "temperature": 1.0})
    remove(runs / "evaluation" / "settings.json")
    with pytest.raises(ResultError, match="trained on another store.*found dddd.*--labels"):
        gather(runs)


def test_a_teacher_of_another_store_is_refused(runs, gather):
    """Its accuracy says nothing about these labels."""
    save_model(runs / "teacher", kind="teacher", seed=5)
    with pytest.raises(ResultError, match="teacher: is not the teacher that .*labels.zarr"):
        gather(runs)


def test_no_examples_are_wanted(runs, gather):
    """report.examples 0."""
    assert gather(runs, examples=0).examples is None


def test_no_more_examples_are_shown_than_wanted(whole_runs, gather):
    """report.examples 3."""
    assert len(gather(whole_runs, examples=3).examples) == 3
