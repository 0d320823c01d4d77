"""`ltd-pipe card`: writes a card, and never over anything else."""

import json
import shutil

import pytest

from pipeline.provenance import sha256_file

STUDENT = "data/student/model.safetensors"


def test_a_card_of_the_finished_pipeline(ltd_pipe, project):
    """Its evaluation's numbers, from where the stages leave them."""
    outcome = ltd_pipe("card", STUDENT, "--metrics", "data/metrics.json", "--out", "card.md")
    assert outcome.code == 0, outcome.err
    assert outcome.err == "not in it: gradient masking\n"
    text = (project / "card.md").read_text()
    metrics = json.loads((project / "data/metrics.json").read_text())
    assert f"| clean | {100 * metrics['clean_accuracy']:.1f}\u00a0% |" in text
    assert "Without it a robust accuracy is a first look" in text


def test_numbers_of_the_teacher_are_none_of_the_student(ltd_pipe, project):
    """One line, and no card."""
    teacher = "data/teacher/model.safetensors"
    outcome = ltd_pipe("card", teacher, "--metrics", "data/metrics.json", "--out", "card.md")
    assert outcome.code == 1
    assert "is not of this checkpoint" in outcome.err
    assert not (project / "card.md").exists()


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["asked", "forced"])
def test_a_projects_own_page_is_never_replaced(ltd_pipe, project, force):
    """README.md is the default name, and that of many a page."""
    (project / "README.md").write_text("# My project\n")
    outcome = ltd_pipe("card", STUDENT, *force)
    assert outcome.code == 1
    assert ("is no model card" if force else "exists already") in outcome.err
    assert (project / "README.md").read_text() == "# My project\n"


def test_a_card_is_replaced_with_force_only(ltd_pipe, project):
    """By the same bytes, since the model is the same."""
    assert ltd_pipe("card", STUDENT).code == 0
    first = (project / "README.md").read_bytes()
    assert ltd_pipe("card", STUDENT).code == 1
    assert ltd_pipe("card", STUDENT, "--force").code == 0
    assert (project / "README.md").read_bytes() == first


def test_the_evaluation_of_other_metrics_is_the_one_beside_them(ltd_pipe, project):
    """NAME-evaluation beside NAME-metrics.json: no card shows another model's numbers."""
    teacher = "data/teacher/model.safetensors"
    metrics = "data/teacher-metrics.json"
    (project / metrics).write_bytes((project / "data/metrics.json").read_bytes())
    shutil.copytree(project / "data/evaluation", project / "data/teacher-evaluation")
    for path in (metrics, "data/teacher-evaluation/settings.json"):
        content = json.loads((project / path).read_text())
        content["checkpoint_sha256"] = sha256_file(project / teacher)
        (project / path).write_text(json.dumps(content))
    refused = ltd_pipe("card", STUDENT, "--metrics", metrics, "--out", "card.md")
    assert refused.code == 1
    assert "teacher-metrics.json: is not of this checkpoint" in refused.err
    mixed = ["--metrics", metrics, "--evaluation", "data/evaluation", "--out", "card.md"]
    assert "is of another evaluation than the metrics" in ltd_pipe("card", STUDENT, *mixed).err
    assert ltd_pipe("card", teacher, "--metrics", metrics, "--out", "card.md").code == 0
