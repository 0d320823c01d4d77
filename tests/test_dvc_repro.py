"""Each recipe goes through the whole of `dvc repro`, which sees what users bring."""

import json
import os
import re
import shutil
import subprocess

import dvc_projects
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from ltd_pipe.params import load_params
from ltd_pipe.params.file import pipeline_text, recipe_names
from ltd_pipe.stages.project import init

ONE_EPOCH = {"architecture": "small-cnn-w8", "epochs": 1, "batch_size": 16}
SHRUNK = {
    "prepare": {
        "dataset": "folder",
        "path": "photos",
        "image_size": 16,
        "channels": 3,
        "validation_fraction": 0.25,
    },
    "teacher": ONE_EPOCH,
    # One epoch on noise makes a teacher whose labels are refused elsewhere.
    "train": ONE_EPOCH
    | {"validation_attack_steps": 2, "awp_from_epoch": 0}
    | {"allow_poor_labels": True},
    "evaluate": {
        "images": 4,
        "pgd_steps": 2,
        "pgd_restarts": 1,
        "attacks": ["fgsm"],
        "autoattack": "none",
        "eps_grid": [0, 0.1],
    },
}

STEPS = yaml.safe_load(pipeline_text())["stages"].keys() - {"inputs", "asked"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the project with 40 photographs; what recipes share is made once."""
    folder = tmp_path_factory.mktemp("clone")
    dvc_projects.clone(folder)
    dvc_projects.commit(folder)
    draw = np.random.default_rng(0)
    for i in range(40):
        place = folder / "photos" / ("test" if i % 4 == 0 else "train") / f"class-{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{i}.png")
    return folder


# One of a kind; the digits' is that of the tests below. All others differ from these in numbers.
KINDS = {"cifar10-resnet18-adr", "cifar10-wrn34-10", "imagenet-resnet50"}
RECIPES = [
    name if name in KINDS else pytest.param(name, marks=pytest.mark.nightly)
    for name in recipe_names()
]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_dvc_repro_goes_through_with_every_recipe(clone, launch, name):
    """From images to the report: no stage lacks a key, or refuses what another one took."""
    dvc_projects.write_params(clone, name, SHRUNK | {"launch": launch})
    out = dvc_projects.dvc(clone, "repro")
    assert "Updating lock file" in out
    for metrics in ("metrics.json", "baseline-metrics.json"):
        assert json.loads((clone / "data" / metrics).read_text())["n"] == 4
    assert "<html" in (clone / "data/report.html").read_text()


def repro(folder, *targets):
    """The stages that DVC ran, but for those that only look."""
    out = dvc_projects.dvc(folder, "repro", *targets)
    return set(re.findall(r"Running stage '([\w-]+)'", out)) - {"inputs", "asked"}


@pytest.fixture(scope="module")
def own(tmp_path_factory, launch, clone):
    """Another copy, with the digits' settings."""
    folder = digits_project(tmp_path_factory.mktemp("own"), clone, launch)
    assert repro(folder, "teacher") == {"prepare", "teacher"}
    return folder


def digits_project(folder, clone, launch):
    """Make a folder a project with the digits' settings and the clone's photographs."""
    dvc_projects.clone(folder)
    shutil.copytree(clone / "photos", folder / "photos")
    dvc_projects.write_params(folder, "digits", SHRUNK | {"launch": launch})
    dvc_projects.commit(folder)
    return folder


@pytest.mark.slow
def test_images_that_were_added_or_changed_are_prepared(own):
    """A new class, another content; but not the same files with another time."""
    assert repro(own, "prepare") == set()
    for split in ("train", "test"):
        shutil.copytree(own / f"photos/{split}/class-0", own / f"photos/{split}/class-new")
    assert repro(own, "prepare") == {"prepare"}
    assert "class-new" in json.loads((own / "data/train.beton.json").read_text())["class_names"]
    picture = next((own / "photos/train/class-new").iterdir())
    os.utime(picture, (1, 1))
    assert repro(own, "prepare") == set()
    shutil.copyfile(next((own / "photos/train/class-1").iterdir()), picture)
    assert repro(own, "prepare") == {"prepare"}


@pytest.mark.slow
def test_weights_that_were_replaced_are_read_again(own, launch):
    """The teacher that is taken, and the one that is asked in the run, also by the baseline."""
    repro(own, "teacher")
    weights = [own / f"{name}.safetensors" for name in ("given", "asked")]
    for path in weights:
        shutil.copyfile(own / "data/teacher/model.safetensors", path)
    asked = {"objective": "adaad", "teacher": "asked.safetensors"}
    changes = {"launch": launch, "teacher": ONE_EPOCH | {"checkpoint": "given.safetensors"}}
    changes["train"] = SHRUNK["train"] | asked
    dvc_projects.write_params(own, "digits", SHRUNK | changes)
    assert repro(own, "train", "baseline") == {"teacher", "label", "train", "baseline"}
    assert repro(own, "train", "baseline") == set()
    other = own / "other.safetensors"
    shutil.copyfile(own / "data/baseline/model.safetensors", other)
    follow = {"teacher", "label", "train"}, {"train", "baseline"}
    for path, stages in zip(weights, follow, strict=True):
        shutil.copyfile(other, path)
        assert repro(own, "train", "baseline") == stages


@pytest.mark.slow
def test_a_project_of_its_own_runs_with_the_installed_package(tmp_path, launch, clone):
    """`ltd-pipe init`, and the commands that it prints; the second time nothing runs."""
    folder = tmp_path / "mine"
    done = CliRunner().invoke(init, [str(folder), "--recipe", "cifar10-resnet18"])
    left = [f"cd {folder}", "git init", "dvc init", "dvc repro"]
    assert done.output.splitlines()[1:] == [f"  {command}" for command in left]
    dvc_projects.write_params(folder, "cifar10-resnet18", SHRUNK)
    shutil.copytree(clone / "photos", folder / "photos")
    program = folder / "bin/ltd-pipe"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {launch} -m ltd_pipe "$@"\n')
    program.chmod(0o755)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    dvc_projects.dvc(folder, "init", "-q")
    assert repro(folder) == STEPS
    assert "<html" in (folder / "data/report.html").read_text()
    assert repro(folder) == set()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, launch, clone):
    """A project after `dvc repro`, with small parameters."""
    folder = digits_project(tmp_path_factory.mktemp("finished"), clone, launch)
    assert repro(folder) == STEPS
    return folder


@pytest.fixture
def project(finished, tmp_path):
    """A copy of it for one test."""
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


def experiment(folder, *settings, target=()):
    """The stages that `dvc exp run` ran with changed parameters, and what it printed."""
    words = [word for setting in settings for word in ("-S", setting)]
    out = dvc_projects.dvc(folder, "exp", "run", *words, *target)
    return set(re.findall(r"Running stage '([\w-]+)'", out)) - {"inputs", "asked"}


@pytest.mark.slow
def test_a_second_repro_runs_nothing(project):
    """Whatever the audit found, it is on the page, and kept nothing from being written."""
    assert repro(project) == set()
    for name in ("student/model.safetensors", "student/last.safetensors", "labels.zarr"):
        assert (project / "data" / name).exists()
    assert json.loads((project / "data/audit/audit.json").read_text())["n"] == 4
    assert 'id="masking"' in (project / "data/report.html").read_text()


@pytest.mark.slow
def test_another_label_temperature_leaves_the_teacher_alone(project):
    """`dvc exp run -S` re-runs label and what follows, nothing else."""
    ran = experiment(project, "label.temperature=1.5")
    assert ran == {"label", "train", "evaluate", "audit", "report"}


@pytest.mark.slow
def test_another_objective_is_one_option(project):
    """And so is a key that is not in the file, which DVC adds with `++`."""
    assert load_params(project / "params.yaml").train.beta == 6
    settings = ("train.objective=trades", "++train.beta=3")
    assert experiment(project, *settings, target=["train"]) == {"train"}
    assert load_params(project / "params.yaml").train.beta == 3


@pytest.mark.slow
def test_artifacts_plots_and_metrics_are_declared(project):
    """What DVC's tools list: three artifacts, plots that draw, metrics that show."""
    pipeline = yaml.safe_load((project / "dvc.yaml").read_text())
    assert set(pipeline["artifacts"]) == {"teacher", "soft-labels", "student"}
    shown = json.loads(dvc_projects.dvc(project, "metrics", "show", "--json"))[""]["data"]
    assert shown.keys() == set(pipeline["metrics"])
    for file in shown.values():
        assert {"clean_accuracy", "pgd_accuracy", "all_attacks_accuracy"} <= file["data"].keys()
        assert all(type(value) is float for value in file["data"].values())
    # Both models together: a table that a screen has room for.
    show = dvc_projects.dvc(project, "exp", "show", "--csv", "--no-pager")
    columns = [name for name in show.partition("\n")[0].split(",") if ".json:" in name]
    assert len(columns) <= 20
    assert {name.split(":")[0] for name in columns} == shown.keys()
    dvc_projects.dvc(project, "plots", "show", "-o", "plots")
    assert (project / "plots/index.html").exists()
