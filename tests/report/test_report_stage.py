"""`ltd-pipe report`."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from run_folders import edit_json, write_audit

from ltd_pipe.errors import MissingError, ResultError, WriteError
from ltd_pipe.stages.report import report


@pytest.fixture
def run(runs, monkeypatch):
    """Run the command where the run's data/ is."""
    monkeypatch.chdir(runs.parent)

    def run_report(*arguments):
        return CliRunner().invoke(report, list(arguments), catch_exceptions=True)

    return run_report


def test_the_defaults_are_the_names_of_the_pipeline(run, runs):
    """No option is needed after `dvc repro`."""
    result = run()
    assert result.exit_code == 0, result.output
    assert "No difference is shown" in result.stdout
    assert "not in it" not in result.stderr
    assert (runs / "report.html").read_text().startswith("<!doctype html>")


def test_json_has_the_verdict(run):
    """For a script."""
    content = json.loads(run("--json", "--title", "Mine").stdout)
    assert content["headline"].startswith("No difference")
    assert content["missing"] == []
    assert content["gradient_masking"].startswith("passed (all 3")
    assert content["bytes"] > 10_000


@pytest.mark.parametrize("named", ["data/other/audit.json", "data/other"])
def test_an_audit_of_another_checkpoint_is_one_line(run, runs, named):
    """With --audit, of its folder, too; nothing is written."""
    write_audit(runs / "other", runs / "baseline/model.safetensors")
    result = run("--audit", named)
    assert isinstance(result.exception, ResultError)
    assert "data/other/audit.json: is not of this checkpoint" in str(result.exception)
    assert not (runs / "report.html").exists()


def test_parameters_reach_the_page(run, runs):
    """Title and number of examples."""
    assert run("--title", "My <model>", "--examples", "2").exit_code == 0
    page = (runs / "report.html").read_text()
    assert "<h1>My &lt;model&gt;</h1>" in page
    assert page.count("data:image/png") == 6 + 10 + 3 * 2


def test_what_is_missing_is_told_on_stderr(run, runs):
    """Results are on stdout."""
    (runs / "baseline-metrics.json").unlink()
    result = run()
    assert result.exit_code == 0
    assert "not in it: The baseline's accuracy" in result.stderr


def test_a_page_is_not_overwritten_without_force(run):
    """With it, it is."""
    assert run().exit_code == 0
    assert isinstance(run().exception, WriteError)
    assert run("--force").exit_code == 0


def test_a_folder_that_was_named_must_be_there(run):
    """What is left out by default is an error when it was asked for."""
    result = run("--baseline", "nowhere")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("--student", "nowhere"), MissingError), (("--metrics", "nowhere.json"), MissingError)],
)
def test_a_refusal_writes_nothing(run, runs, arguments, error):
    """The error is one of ours, for the one line that the command line prints."""
    assert isinstance(run(*arguments).exception, error)
    assert not (runs / "report.html").exists()


def test_a_damaged_file_writes_nothing(run, runs):
    """A percentage where a fraction should be."""
    edit_json(runs / "metrics.json", expected_calibration_error=12.7)
    assert isinstance(run().exception, ResultError)
    assert not (runs / "report.html").exists()


def test_help_has_an_example():
    """And the defaults."""
    text = CliRunner().invoke(report, ["--help"]).stdout
    assert "ltd-pipe report --student" in text
    assert "baseline beside --metrics, where it is" in " ".join(text.split())


def test_another_run_is_not_mixed_with_data(run, runs):
    """The help's own example: what is not beside its metrics is left out, not refused."""
    shutil.copytree(runs / "baseline", "runs/7")
    shutil.copy(runs / "baseline-metrics.json", "runs/7/metrics.json")
    shutil.copytree(runs / "baseline-evaluation", "runs/7/evaluation")
    result = run("--student", "runs/7", "--metrics", "runs/7/metrics.json", "--json")
    assert result.exit_code == 0, result.exception
    content = json.loads(result.stdout)
    folder = run("--student", "runs/7", "--metrics", "runs/7", "--json", "--force")
    assert json.loads(folder.stdout) == content
    assert "no baseline to compare it with" in content["sentence"]
    assert "A baseline to compare with (no runs/7/baseline)." in content["missing"]
    assert "Checks for gradient masking (no runs/7/audit/audit.json)." in content["missing"]
    assert not any("Robust accuracy by" in text for text in content["missing"])


def test_a_named_baseline_has_its_metrics_beside_it_or_in_it(run, runs):
    """NAME-metrics.json with NAME-evaluation, or all in one folder."""
    shutil.copytree(runs / "baseline", "runs/7")
    shutil.copy(runs / "baseline-metrics.json", "runs/7/metrics.json")
    shutil.copytree(runs / "baseline-evaluation", "runs/7/evaluation")
    for number, folder in enumerate(("runs/7", "data/baseline")):
        result = run("--baseline", folder, "--json", "--out", f"{number}.html")
        assert result.exit_code == 0, result.exception
        sentence = json.loads(result.stdout)["sentence"].replace("\u00a0", " ")
        assert "the baseline on one-hot labels 72.0 %, a difference of +3.0 points" in sentence
