"""The study of label kinds: its arms are what they say, and it runs from nothing to its table."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from common import matching_smoothing, smoothed_entropy

from ltd_pipe.params import load_params

STUDY = Path(__file__).parents[2] / "studies" / "label-kinds"
FOLDERS = sorted(path.parent for path in STUDY.glob("*/arms.yaml"))


def test_there_are_three_studies():
    assert [folder.name for folder in FOLDERS] == ["cifar10", "cifar10-small", "digits"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_arms_fit_each_other(folder):
    """One pipeline for all; parameters load; stores and teachers that arms name are made."""
    assert (folder / "dvc.yaml").read_text() == (STUDY / "study.yaml").read_text()
    load_params(folder / "params.yaml")
    arms = yaml.safe_load((folder / "arms.yaml").read_text())
    assert len(arms["seeds"]) >= 3
    names = [arm["name"] for arm in arms["arms"]]
    assert len(set(names)) == len(names)
    assert set(arms["dropped"]) <= set(names)
    stores = {f"{store['teacher']}-{store['top']}" for store in arms["stores"]}
    assert {arm["store"] for arm in arms["arms"]} == stores
    assert {store["teacher"] for store in arms["stores"]} == {t["name"] for t in arms["teachers"]}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_arms_are_options_of_train(folder):
    """Parameters of `train`, with values that they take; and its store where it is read."""
    for arm in yaml.safe_load((folder / "arms.yaml").read_text())["arms"]:
        options = re.sub(r"\$\(.*?\)", "0.5", arm["options"])
        pairs = re.findall(r"--([a-z-]+)(?: ([^-]\S*))?", options)
        given = {f"train.{name.replace('-', '_')}": value or "true" for name, value in pairs}
        labels = given.pop("train.labels", None)
        section = load_params(folder / "params.yaml", given).train
        assert labels == ("$store" if section.reads_store else None)


def test_smoothing_has_the_entropy_that_was_asked_for():
    """Of two classes with probabilities 0.9 and 0.1: alpha is 0.2, the entropy 0.325 nats."""
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert smoothed_entropy(0.2, 2) == pytest.approx(entropy)
    assert matching_smoothing(entropy, 2) == pytest.approx(0.2)
    assert smoothed_entropy(0, 10) == 0
    assert smoothed_entropy(1, 10) == pytest.approx(math.log(10))


SMALL = {
    "teacher": {"epochs": 1, "architecture": "small-cnn-w8"},
    "train": {"epochs": 1, "architecture": "small-cnn-w8", "attack_steps": 1},
    "evaluate": {"images": 8, "autoattack": "standard", "pgd_steps": 20},
}
ARMS = {"smooth-0.94", "equal-temperatures"}


@pytest.fixture
def digits(tmp_path):
    """The digits study with two arms, one seed and one epoch, in a repository of its own."""
    folder = tmp_path / "study"
    shutil.copy(STUDY.parent / "common.py", tmp_path)
    shutil.copytree(STUDY, folder, symlinks=True, ignore=shutil.ignore_patterns(*GENERATED))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    params = yaml.safe_load((folder / "digits/params.yaml").read_text())
    for section, changes in SMALL.items():
        params[section] |= changes
    (folder / "digits/params.yaml").write_text(yaml.safe_dump(params))
    arms = yaml.safe_load((folder / "digits/arms.yaml").read_text())
    arms["arms"] = [arm for arm in arms["arms"] if arm["name"] in ARMS]
    arms |= {"seeds": [0], "stores": [{"teacher": "good", "top": 0.94}]}
    arms["teachers"] = [{"name": "good", "options": "--epochs 2"}]
    (folder / "digits/arms.yaml").write_text(yaml.safe_dump(arms))
    config = "[core]\n    no_scm = true\n"
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc/config").write_text(config)
    return folder / "digits"


GENERATED = ("data", "labels", "results", "students", "teachers", "tmp", "cache",
             "dvc.lock", "table.md", "figure.svg", "runs.json", "images")  # fmt: skip


@pytest.mark.slow
@pytest.mark.nightly
def test_the_study_runs_from_nothing_to_its_table(digits):
    """Real stages under DVC, several at a time; a second time nothing is run."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    settings = {"env": environment, "capture_output": True, "text": True}
    subprocess.run(["bash", str(digits.parent / "run.sh"), "digits"], check=True, **settings)
    table = (digits / "table.md").read_text()
    assert table.count("\n| ") == 2 + len(ARMS) + 1  # head, rule, arms, the dropped one
    assert "nan" not in table
    found = json.loads((digits / "runs.json").read_text())["arms"]
    soft, smooth = found["equal-temperatures"], found["smooth-0.94"]
    # The store's mean is over all images, the student's over those it is trained on.
    assert soft["top"] == pytest.approx(0.94, abs=0.02)
    assert smooth["entropy"] == pytest.approx(soft["entropy"], rel=0.1)
    # Dividing by a temperature changes no prediction.
    dropped = found["equal-temperatures-dropped"]
    assert dropped["best"]["clean"] == soft["best"]["clean"]
    assert dropped["best"]["ece"] != soft["best"]["ece"]
    assert (digits / "figure.svg").read_text().startswith("<?xml")
    again = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=digits, check=True, **settings
    )
    assert "Data and pipelines are up to date." in again.stdout
