"""`ltd-pipe compare`: folders, files, revisions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_evaluations import write_evaluation

HASHES = list(range(40))
FIRST = {"clean": [1] * 39 + [0], "autoattack": [1] * 20 + [0] * 20}
SECOND = {"clean": [1] * 39 + [0], "autoattack": [1] * 30 + [0] * 10}


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    """A student and its baseline, as the stages leave them."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    write_evaluation(tmp_path / "data/baseline-metrics.json", HASHES, **FIRST)
    write_evaluation(tmp_path / "data/metrics.json", HASHES, **SECOND)
    return tmp_path


def test_a_table_and_what_differs(ltd_pipe, two_runs):
    """Both runs, then each attack: points, interval, images, p."""
    outcome = ltd_pipe("compare", "data/baseline-metrics.json", "data")
    assert outcome.code == 0, outcome.err
    head, first, second, title, clean, attacked, verdict, note = outcome.out.splitlines()
    assert head.split() == ["accuracy", "of", "images", "within", "clean", "autoattack"]
    assert first.split() == ["data/baseline-metrics.json", "40", "linf", "0.1", "97.50%", "50.00%"]
    assert second.split() == ["data", "40", "linf", "0.1", "97.50%", "75.00%"]
    assert title == "data against data/baseline-metrics.json"
    assert clean.startswith("  clean       +0.00 points")
    assert "+25.00 points (95 % interval +1" in attacked
    assert attacked.endswith("right alone on 10, wrong alone on 0 of 40  p = 0.002")
    assert verdict == "  data is more robust; no difference is shown on clean images"
    assert note.startswith("p: McNemar's exact test")


def test_a_failed_audit_beside_a_run_takes_its_verdict(ltd_pipe, two_runs):
    """As in the report: nobody is ahead by attacks that fail."""
    found = {"name": "live gradients", "count": 30, "n": 40, "limit": 0.05, "meaning": "x"}
    sha256 = json.loads(Path("data/metrics.json").read_text())["checkpoint_sha256"]
    Path("data/audit").mkdir()
    audit = {"passed": False, "n": 40, "eps": 0.1, "findings": [found], "checkpoint_sha256": sha256}
    Path("data/audit/audit.json").write_text(json.dumps(audit))
    outcome = ltd_pipe("compare", "data/baseline-metrics.json", "data")
    assert outcome.code == 0, outcome.err
    assert "data's robust accuracy cannot be believed: signs of gradient masking" in outcome.out


def test_json_has_the_same_numbers(ltd_pipe, two_runs):
    """For scripts."""
    found = json.loads(ltd_pipe("compare", "data/baseline-metrics.json", "data", "--json").out)
    assert [run["scores"]["autoattack"]["value"] for run in found["runs"]] == [0.5, 0.75]
    (comparison,) = found["comparisons"]
    paired = comparison["paired"]["autoattack"]
    assert (paired["gained"], paired["lost"], paired["difference"]) == (10, 0, 0.25)
    assert paired["p"] == pytest.approx(2 / 2**10)
    assert comparison["headline"].startswith("data is more robust")


def test_one_run_is_shown_alone(ltd_pipe, two_runs):
    """There is nothing to compare it with, and no p value."""
    outcome = ltd_pipe("compare", "data")
    assert (outcome.code, len(outcome.out.splitlines())) == (0, 2)


def test_what_is_neither_folder_nor_revision_is_refused(ltd_pipe, two_runs):
    """One line, that says where to look."""
    outcome = ltd_pipe("compare", "data", "nonsense")
    assert outcome.code == 1
    assert "nonsense: is no file or folder, and no revision with an evaluation" in outcome.err
    assert outcome.err.count("\n") == 1


def test_evaluations_of_the_pipeline_are_paired(ltd_pipe, project):
    """What evaluate writes is what compare reads: student and teacher on the same images."""
    files = ["--metrics", "data/teacher-metrics.json", "--out", "data/teacher-evaluation"]
    evaluated = ltd_pipe("evaluate", "data/teacher/model.safetensors", *files)
    assert evaluated.code == 0, evaluated.err
    outcome = ltd_pipe("compare", "data/teacher-metrics.json", "data", "--json")
    found = json.loads(outcome.out)
    (comparison,) = found["comparisons"]
    assert comparison["left_out"] == []
    teacher, student = (run["scores"] for run in found["runs"])
    assert {"clean", "pgd"} <= set(comparison["paired"])
    for attack, paired in comparison["paired"].items():
        key = attack.replace("-", "_")
        difference = student[key]["value"] - teacher[key]["value"]
        assert paired["difference"] == pytest.approx(difference)
        assert paired["n"] == 40


def _run(*words):
    subprocess.run(words, check=True, capture_output=True)


def test_metrics_apart_from_their_folder_say_where_it_is_looked_for(ltd_pipe, two_runs):
    """As after `evaluate --metrics b.json --out elsewhere`."""
    (two_runs / "data/metrics.json").rename("b.json")
    outcome = ltd_pipe("compare", "b.json")
    assert outcome.code == 1
    assert outcome.err.startswith("ltd-pipe: b/settings.json: no such file, and it holds the rest")
    assert "'ltd-pipe evaluate --metrics b.json --out b', or rename" in outcome.err


def test_a_mistyped_file_is_refused_before_the_first_commit(ltd_pipe, two_runs):
    """As in a project that `ltd-pipe init` has just begun."""
    for words in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(words, check=True)
    outcome = ltd_pipe("compare", "data", "data/metric.json")
    assert outcome.code == 1
    assert outcome.err.startswith("ltd-pipe: data/metric.json: is no file or folder, and no rev")


@pytest.mark.slow
def test_revisions_come_out_of_dvcs_cache(ltd_pipe, two_runs, monkeypatch):
    """The first commit's evaluation beside that of the working folder, whose files changed."""
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    dvc = [sys.executable, "-m", "dvc"]
    point = {"robust_accuracy": 0.5, "low": 0.3, "high": 0.7}
    by_eps = [point | {"eps": eps} for eps in (0.0, 0.1)]
    (two_runs / "data/evaluation/by_eps.json").write_text(json.dumps(by_eps))
    _run("git", "init", "-q")
    _run(*dvc, "init", "-q")
    _run(*dvc, "config", "core.analytics", "false")
    _run(*dvc, "add", "-q", "data/metrics.json", "data/evaluation")
    _run("git", "add", ".")
    _run("git", *identity, "commit", "-qm", "first")
    _run("git", "tag", "first")
    write_evaluation(two_runs / "new/metrics.json", HASHES, **FIRST)
    found = json.loads(ltd_pipe("compare", "first", "new", "--json").out)
    (comparison,) = found["comparisons"]
    assert (comparison["against"], comparison["run"]) == ("first", "new")
    assert comparison["paired"]["autoattack"]["lost"] == 10
    page = ltd_pipe("report", "--compare", "first", "new")
    assert page.code == 0, page.err
    assert 'id="curves"' in (two_runs / "data/comparison.html").read_text()
    assert "Training curves and settings of A" in page.err
    # A project inside it is another one, whose paths begin where it is.
    write_evaluation(two_runs / "inner/data/metrics.json", HASHES, **SECOND)
    _run("git", "add", "inner")
    _run("git", *identity, "commit", "-qm", "inner")
    monkeypatch.chdir(two_runs / "inner")
    (comparison,) = json.loads(ltd_pipe("compare", "HEAD", "data", "--json").out)["comparisons"]
    assert comparison["paired"]["autoattack"]["lost"] == 0
    outcome = ltd_pipe("compare", "first", "data")
    assert (outcome.code, outcome.err.count("first: is no file or folder")) == (1, 1)


def test_quick_looks_are_marked(ltd_pipe, two_runs):
    """Two of them are paired, but are no result; in JSON, too."""
    for name in ("baseline-metrics.json", "metrics.json"):
        path = two_runs / "data" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quick": True}))
    lines = ltd_pipe("compare", "data/baseline-metrics.json", "data").out.splitlines()
    first = "data/baseline-metrics.json: few images and a weak attack. Not a result."
    assert lines[3] == f"QUICK LOOK: {first}"
    assert lines[4].startswith("QUICK LOOK: data:")
    runs = json.loads(ltd_pipe("compare", "data", "--json").out)["runs"]
    assert runs[0]["quick"] is True


def test_warnings_stand_below_the_table(ltd_pipe, two_runs):
    """With the run's name, and in JSON."""
    path = two_runs / "data/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"warnings": ["wrong scale"]}))
    lines = ltd_pipe("compare", "data/baseline-metrics.json", "data").out.splitlines()
    assert lines[3] == "WARNING: The evaluation warns of data: wrong scale"
    runs = json.loads(ltd_pipe("compare", "data", "--json").out)["runs"]
    assert runs[0]["warnings"] == ["The evaluation warns of data: wrong scale"]
