"""`ltd-pipe card`: writes a card, and never over anything else."""

import json
import shutil
import subprocess
import sys

import pytest

from ltd_pipe.provenance import sha256_file

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


def write_audit(folder, checkpoint):
    """An audit of a checkpoint that passed."""
    finding = {"name": "live gradients", "count": 0, "n": 40, "limit": 0.05, "meaning": "dead"}
    content = {
        "checkpoint_sha256": sha256_file(checkpoint),
        "passed": True,
        "n": 40,
        "eps": 0.1,
        "findings": [finding | {"passed": True}],
    }
    folder.mkdir()
    (folder / "audit.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("model", "lacks"), [("student", ""), ("teacher", "not in it: gradient masking\n")]
)
def test_the_audit_beside_the_metrics_is_taken_where_it_is_of_the_model(
    ltd_pipe, project, model, lacks
):
    """As the report does; another model's was not asked for, and is left out."""
    write_audit(project / "data/audit", project / f"data/{model}/model.safetensors")
    outcome = ltd_pipe("card", STUDENT, "--metrics", "data/metrics.json", "--out", "card.md")
    assert (outcome.code, outcome.err) == (0, lacks)
    assert ("All 1 checks passed" in (project / "card.md").read_text()) == (not lacks)


def test_no_attack_is_listed_twice(ltd_pipe, project):
    """Neither the main PGD, where the list has it, too, nor AutoAttack that was not run."""
    asked = ["--attacks", "fgsm,pgd-5", "--images", "10", "--force"]
    assert ltd_pipe("evaluate", STUDENT, *asked).code == 0
    (run,) = json.loads(ltd_pipe("compare", "data", "--json").out)["runs"]
    assert list(run["scores"]) == ["clean", "fgsm", "pgd", "all_attacks"]
    outcome = ltd_pipe("card", STUDENT, "--metrics", "data/metrics.json", "--out", "card.md")
    assert outcome.code == 0, outcome.err
    text = (project / "card.md").read_text()
    assert text.count("| `PGD-5` |") == 1
    lacks = text.partition("## Not measured")[2]
    assert lacks.count("AutoAttack") == 1


_WITHOUT_TORCH = """
import sys
from ltd_pipe.stages.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
sys.exit("torch was loaded" if "torch" in sys.modules else 0)
"""


@pytest.mark.parametrize(
    "words",
    [("card", STUDENT, "--metrics", "data/metrics.json"), ("compare", "data", "data")],
    ids=["card", "compare"],
)
def test_results_are_read_without_torch(project, words):
    """It takes seconds to load."""
    subprocess.run([sys.executable, "-c", _WITHOUT_TORCH, *words], check=True, cwd=project)
