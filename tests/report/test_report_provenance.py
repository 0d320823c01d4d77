"""Provenance."""

from __future__ import annotations

from dataclasses import replace

import pytest
from page_reader import sources
from run_folders import SOFTWARE

from ltd_pipe.evaluation.results import AttackSettings
from ltd_pipe.models.facts import CollapseFacts
from ltd_pipe.report.page import parameter_table, render_page, version_table
from ltd_pipe.report.runs import Timing


def entries(facts, title):
    """One source's terms and values."""
    return sources(render_page(facts))[title]


def test_every_source_is_named(page):
    """In the order of the pipeline."""
    assert list(sources(page)) == [
        "Data",
        "Soft labels",
        "Teacher",
        "Student",
        "Baseline",
        "Evaluation of the student",
        "Evaluation of the baseline",
        "Audit of the student",
    ]


def test_hashes_are_in_full(facts, page):
    """A prefix proves nothing."""
    found = sources(page)
    assert found["Soft labels"]["identity of the store"] == facts.labels.identity
    assert found["Teacher"]["SHA-256 of model.safetensors"] == facts.teacher.sha256
    assert found["Soft labels"]["teacher small-cnn-w4"] == facts.teacher.sha256
    data = found["Data"]
    assert data["fingerprint of the training images"] == facts.manifest.fingerprint
    assert data["fingerprint of the test images"] == "e" * 64


def test_seed_hardware_and_times_are_there(page):
    """What someone needs who wants the same numbers."""
    student = sources(page)["Student"]
    assert student["seed"] == "0"
    assert student["hardware"] == "A & B processor, 2 threads"
    assert student["time of training"].replace("\u00a0", " ") == "1 min 11 s"
    assert student["epoch of the checkpoint"] == "27 of 30"


def test_of_an_interrupted_run_no_time_of_the_last_part_is_shown(facts):
    """It would be taken for the whole; of no step there is no speed either."""
    student = replace(facts.student, timing=Timing(images_per_second=0))
    found = entries(replace(facts, student=student), "Student")
    assert found["time of training"] == "not recorded (it was interrupted)"
    assert found["training speed"] == "not recorded"


def test_a_collapse_of_training_is_said(facts, page):
    """Where there was one, and nowhere else; epochs as people count them."""
    assert "catastrophic overfitting" not in sources(page)["Student"]
    collapse = CollapseFacts(epoch=8, robust_accuracy=0.01, attack_accuracy=0.7)
    told = facts.student.facts.model_copy(update={"catastrophic_overfitting": collapse})
    collapsed = replace(facts, student=replace(facts.student, facts=told))
    told_text = entries(collapsed, "Student")["catastrophic overfitting"]
    assert told_text == "at epoch 9: PGD left 1.0% right"


def test_what_was_not_recorded_is_said(facts):
    """Silence would look like an oversight of the reader."""
    bare = facts.student.facts.model_copy(update={"seed": None, "data": None, "hardware": {}})
    alone = replace(facts, student=replace(facts.student, facts=bare), labels=None)
    found = sources(render_page(alone))
    assert found["Student"]["seed"] == found["Student"]["hardware"] == "not recorded"
    assert found["Data"]["data set"] == "not recorded"
    assert "Soft labels" not in found


def test_parameters_that_differ_are_marked(facts):
    """Only the labels do: the teacher's epochs are its own affair."""
    names, rows = parameter_table(facts)
    assert names == ["student", "baseline", "teacher"]
    marked = [row.name for row in rows if row.differs]
    assert marked == ["label_kind"]


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        (
            AttackSettings(name="PGD", steps=50, restarts=5, step_size=0.01),
            "50 steps, 5 restarts, step 0.01",
        ),
        (AttackSettings(name="PGD", steps=1, restarts=1), "1 step, 1 restart"),
        (AttackSettings(name="PGD", steps=20), "20 steps"),
    ],
)
def test_an_attack_is_described_as_far_as_it_is_known(facts, attack, text):
    """Steps, restarts and step size."""
    settings = facts.evaluation.settings.model_copy(update={"attacks": (attack,)})
    measured = replace(facts, evaluation=replace(facts.evaluation, settings=settings))
    assert entries(measured, "Evaluation of the student")["PGD"] == text


@pytest.mark.parametrize(
    ("name", "text"),
    [("eps", "0.15"), ("nesterov", "no"), ("mean", "none"), ("milestones", "0.5, 0.75")],
)
def test_parameters_are_written_for_people(facts, name, text):
    """Not as Python would."""
    row = next(row for row in parameter_table(facts)[1] if row.name == name)
    assert row.values == (text, text, "")


def test_equal_versions_are_one_column(facts):
    """One machine ran everything."""
    names, rows = version_table(facts)
    assert names == ["teacher, labels, student, baseline, evaluation"]
    assert {row.name: row.values[0] for row in rows} == SOFTWARE


def test_unequal_versions_are_told_apart(facts):
    """A column for each, and the difference marked."""
    other = facts.baseline.facts.model_copy(update={"software": SOFTWARE | {"torch": "2.6.0"}})
    names, rows = version_table(replace(facts, baseline=replace(facts.baseline, facts=other)))
    assert len(names) == 5
    assert [row.name for row in rows if row.differs] == ["torch"]
