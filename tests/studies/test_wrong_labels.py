"""The study of wrong labels: it runs, goes on where it was, and its table is that of its runs."""

import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from ltd_pipe.errors import BusyError, ParamsError
from ltd_pipe.labels.softmax import calibrated_temperature
from ltd_pipe.params import load_params
from ltd_pipe.publish import exclusive

STUDY = Path(__file__).parents[2] / "studies" / "wrong-labels"
DATA = ("digits", "cifar10")
MADE = ("table.md", "figure.svg", "runs.json")


def run(program, *words):
    command = [sys.executable, STUDY / program, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("data", DATA)
def test_parameters_are_those_of_the_commands(data, monkeypatch):
    """The file loads, with what --quick changes, too, and dvc.yaml runs it."""
    assert load_params(STUDY / data / "params.yaml").prepare.wrong_labels == 0
    monkeypatch.syspath_prepend(STUDY)
    study, table = map(importlib.import_module, ("study", "table"))
    changes = {name: str(value) for name, value in study.QUICK.items()}
    load_params(STUDY / data / "params.yaml", changes)
    assert {arm for pair in table.PAIRS for arm in pair} < study.ARMS.keys()
    stages = yaml.safe_load((STUDY / "dvc.yaml").read_text())["stages"]
    assert data in stages["runs"]["foreach"]
    assert data in stages["table"]["foreach"]


@pytest.mark.slow
def test_each_run_is_made_once(tmp_path):
    """From images to rows by the real commands; an arm that is there is not run again."""
    words = ("digits", "--quick", "--rows", tmp_path / "rows.jsonl", "--work", tmp_path / "work")
    target = "soft, calibrated; attack on the target"
    run("study.py", *words, "--arm", target)
    run("study.py", *words, "--arm", target, "--arm", "smoothed, entropy of calibrated")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == [target, "smoothed, entropy of calibrated"]
    for row in rows:
        assert abs(row["wrong"] - 0.2) < 0.04
        # Two epochs make it no good teacher; what is wrong it knows no better than by chance.
        assert row["teacher_as_given"] < row["teacher_right"]
        assert row["best"]["autoattack"] <= row["best"]["pgd"] <= row["best"]["clean"]
        assert row["hardware"]["threads"] == 1
    assert rows[0]["mean_entropy"] == rows[1]["mean_entropy"]
    assert not [*(tmp_path / "work").iterdir()]


@pytest.mark.parametrize("share", [0, 0.2])
def test_images_of_each_share_are_prepared(tmp_path, monkeypatch, share):
    """By the real command, which refuses options that would do nothing."""
    monkeypatch.syspath_prepend(STUDY)
    study, ran = importlib.import_module("study"), []

    def only_prepare(command, *words):
        ran.append(command)
        if command != "prepare":
            raise InterruptedError
        ltd_pipe(command, *words)

    ltd_pipe = study.ltd_pipe
    monkeypatch.setattr(study, "ltd_pipe", only_prepare)
    cell, rows = study.Cell(share), tmp_path / "rows.jsonl"
    with pytest.raises(InterruptedError):
        study.Job("digits", cell, 3, ("one-hot",), rows, tmp_path / "work", {}).run()
    assert ran == ["prepare", "teacher"]


def test_a_refused_temperature_is_a_row_and_no_other_error_is(tmp_path, monkeypatch):
    """Where the teacher has all validation images right; it is not tried again."""
    monkeypatch.syspath_prepend(STUDY)
    study = importlib.import_module("study")
    rows, tried = tmp_path / "rows.jsonl", []

    def refuse(job, folder, arm):
        tried.append(arm)
        right = np.eye(10, dtype=np.float16)[None] * 5
        calibrated_temperature(right, np.arange(10))

    job = study.Job("digits", study.CELLS[0], 0, ("soft, calibrated",), rows, tmp_path / "work", {})
    with monkeypatch.context() as during:
        during.setattr(study.Job, "_row", refuse)
        job.run()
        job.run()
    (found,) = map(json.loads, rows.read_text().splitlines())
    assert (found["arm"], found["share"], found["seed"]) == ("soft, calibrated", 0.2, 0)
    assert found["refused"] == "the least at 0.05, with 10 of 10 answers right"
    assert len(tried) == 1
    other = dataclasses.replace(job, arms=("one-hot",), changes={"teacher.epochs": -1})
    with pytest.raises(ParamsError):
        other.run()


def test_what_was_made_of_other_parameters_is_not_gone_on_with(tmp_path, monkeypatch):
    """A killed trial of tiny networks leaves a teacher that no result may be of."""
    monkeypatch.syspath_prepend(STUDY)
    study, folders = importlib.import_module("study"), []
    row = {"arm": "one-hot", "share": 0.2, "to": "uniform", "seed": 0}
    monkeypatch.setattr(study.Job, "_row", lambda _, folder, __: folders.append(folder) or row)
    for place, changes in enumerate([{}, study.QUICK, {}]):
        rows = tmp_path / f"{place}.jsonl"
        words = "digits", study.CELLS[0], 0, ("one-hot",), rows, tmp_path / "work", changes
        study.Job(*words).run()
    assert folders[0] == folders[2] != folders[1]
    # Somebody else's study is under way there.
    job = study.Job(*words[:4], tmp_path / "3.jsonl", *words[5:])
    folders[0].mkdir(parents=True)
    with exclusive(folders[0]), pytest.raises(BusyError):
        job.run()
    assert folders[0].exists()


def test_a_trial_makes_no_results(tmp_path):
    """It would count as done, and no later run be made."""
    command = [sys.executable, STUDY / "study.py", "digits", "--quick"]
    for words in ([], ["--rows", STUDY / "digits/rows.jsonl"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "--rows of its own" in done.stderr


def row(arm, seed, clean, robust, **more):
    best = {"n": 617, "clean": clean, "pgd": robust + 0.01, "autoattack": robust, "ece": 0.1}
    teacher = {"wrong": 0.2, "teacher_clean": 0.99, "teacher_right": 0.98, "teacher_as_given": 0.8}
    key = {"arm": arm, "share": 0.2, "to": "uniform", "seed": seed, "last": {"pgd": 0.5}}
    machine = {"hardware": {"cpu": "x"}, "software": {"torch": "1"}}
    return key | teacher | machine | {"best": best} | more


def test_the_table_pairs_runs_of_a_seed(tmp_path):
    """A run without its partner counts in the mean, and in no difference."""
    rows = [
        *(row("one-hot", seed, 0.9, 0.6) for seed in (0, 1)),
        *(row("soft, 0.9", seed, 0.95, robust, mean_top_probability=0.9)
          for seed, robust in ((2, 0.1), (0, 0.62), (1, 0.64))),
        row("smoothed, entropy of calibrated", 0, 0.9, 0.61, smoothing=0.2),
        row("soft, 0.99 (the default)", 0, 0.92, 0.6, mean_top_probability=0.99),
        {**row("soft, calibrated", 0, 0, 0), "refused": "100 of 100 answers right"},
    ]  # fmt: skip
    del rows[-1]["best"], rows[-1]["last"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("table.py", tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert re.search(r"\*\*20 % uniform\*\*: 20\.0 ± 0\.0 % .* right on 99\.0 ± 0\.0 % of", table)
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    assert lines[0][:5] == ["| one-hot", "2", "1.00", "90.0 ± 0.0", ""]
    # By hand: 2 and 4 points, Student's t of one degree of freedom is 12.706.
    soft = ["| soft, 0.9", "3", "0.90", "95.0 ± 0.0", "+5.0 (+5.0 to +5.0)", "45.3 ± 30.6"]
    assert lines[1][:8] == [*soft, "+3.0 (-9.7 to +15.7)", "+1.0"]
    assert lines[2][:3] == ["| soft, 0.99 (the default)", "1", "0.99"]
    assert lines[3][:3] == ["| smoothed, entropy of calibrated", "1", "0.82"]
    between = [line for line in lines[4:] if line[0].startswith("| soft, 0.9; less soft, 0.99 (")]
    assert [line[2] for line in between] == ["+3.0", "+2.0"]
    assert len(json.loads((tmp_path / "runs.json").read_text())["machines"]) == 1
    assert "20 % uniform: soft, 0.9" in (tmp_path / "figure.svg").read_text()
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    run("table.py", tmp_path)
    assert "points |" not in (tmp_path / "table.md").read_text()
    assert "Of 0 differences of AutoAttack" in table


def test_the_table_says_what_stands_when_all_differences_are_counted(tmp_path):
    """By hand: two of three are below 5 % each, and only the first is below 5 % / 3."""
    apart = {
        "soft, 0.9": (2, 2.2, 1.8),
        "soft, calibrated": (1, 1.4, 2),
        "soft, 0.6 (high temperature)": (1, -1, 0.5),
    }
    rows = [row("one-hot", seed, 0.9, 0.6) for seed in range(3)]
    for arm, points in apart.items():
        rows += [row(arm, seed, 0.9, 0.6 + each / 100) for seed, each in enumerate(points)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("table.py", tmp_path)
    told = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert told.startswith("Of 3 differences of AutoAttack")
    assert told.endswith("(paired t): 20 % uniform: soft, 0.9 (p = 0.0033).")


ONE = json.dumps(row("one-hot", 0, 0.9, 0.6)) + "\n"
OTHER = row("one-hot", 1, 0.9, 0.6)
NO_TABLE = {
    "no rows": ("", "There is no run"),
    "half a row": (f"{ONE}{ONE[:50]}", "line 2 is no whole run"),
    "a run twice": (ONE + ONE, "a run is there twice, ('one-hot', 0.2, 'uniform', 0)"),
    "other images": (
        ONE + json.dumps(OTHER | {"best": OTHER["best"] | {"n": 8}}) + "\n",
        "Runs of two kinds are no table: {'n': 617} and {'n': 8}",
    ),
}


@pytest.mark.parametrize(("text", "why"), NO_TABLE.values(), ids=NO_TABLE.keys())
def test_rows_that_make_no_table_leave_the_old_one(tmp_path, text, why):
    """One line says what is wrong; none of the three files is touched."""
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "runs.json").write_text("kept")
    command = [sys.executable, STUDY / "table.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs.json").read_text() == "kept"
    assert not (tmp_path / "table.md").exists()


def test_the_first_row_of_a_study_has_a_table(tmp_path):
    """Without a figure: there is nothing to compare it with."""
    (tmp_path / "rows.jsonl").write_text(ONE)
    run("table.py", tmp_path)
    assert "| one-hot | 1 |" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "figure.svg").exists()


@pytest.mark.parametrize("data", [data for data in DATA if (STUDY / data / "runs.json").exists()])
def test_table_and_figure_are_those_of_the_runs(tmp_path, data):
    """Nothing was edited by hand, and no run is there twice."""
    shutil.copy(STUDY / data / "runs.json", tmp_path)
    run("table.py", tmp_path, "--restore")
    for name in MADE:
        assert (tmp_path / name).read_text() == (STUDY / data / name).read_text()
