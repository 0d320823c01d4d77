"""`ltd-pipe init`: dvc.yaml and params.yaml for a project outside of this source tree."""

import shlex
from pathlib import Path

import pytest
import yaml

from ltd_pipe.params import load_params, require_named
from ltd_pipe.params.file import pipeline_text, recipe_names

ROOT = Path(__file__).parents[2]
OURS, THEIRS = (yaml.safe_load(text) for text in ((ROOT / "dvc.yaml").read_text(), pipeline_text()))
VERSION = "data/inputs/version.json"


@pytest.mark.parametrize("stage", OURS["stages"])
def test_a_stage_is_ours_but_for_its_code(stage):
    """The version stands for the files; the rest is the same."""
    ours, theirs = OURS["stages"][stage], THEIRS["stages"][stage]
    assert theirs.pop("cmd") == ours.pop("cmd").replace("${launch} -m ltd_pipe", "ltd-pipe")
    deps = {dep for dep in ours.pop("deps", []) if not dep.startswith(("pipeline", "stages"))}
    added = set() if ours.get("always_changed") else {VERSION}
    assert sorted(theirs.pop("deps", [])) == sorted(deps | added)
    if stage == "inputs":
        assert theirs["outs"].pop(0) == {VERSION: {"persist": True}}
    assert theirs == ours


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_begins_a_project(ltd_pipe, tmp_path, name):
    """Valid, with all that dvc.yaml names."""
    assert ltd_pipe("init", tmp_path, "--recipe", name).code == 0
    load_params(tmp_path / "params.yaml")
    require_named(tmp_path / "params.yaml", tmp_path / "dvc.yaml")


def test_another_recipe_is_used_in_a_project_that_was_not_edited(ltd_pipe, tmp_path, monkeypatch):
    """What init leaves out is no edit, and stays out."""
    monkeypatch.chdir(tmp_path)
    assert ltd_pipe("init").code == 0
    assert ltd_pipe("recipe", "use", "cifar10-cpu").code == 0
    assert "launch" not in yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# mine\n")
    assert "was edited" in ltd_pipe("recipe", "use", "digits").err


def test_nothing_is_replaced_without_force(ltd_pipe, tmp_path):
    """Neither file; a .gitignore is added to, once."""
    mine = "Größe\n".encode("latin-1")
    (tmp_path / ".gitignore").write_bytes(mine)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text("mine")
        assert ltd_pipe("init", tmp_path).code == 1
        assert [p.name for p in tmp_path.iterdir() if p.name != ".gitignore"] == [name]
        (tmp_path / name).unlink()
    assert ltd_pipe("init", tmp_path).code == 0
    again = ltd_pipe("init", tmp_path)
    assert (again.code, "or another FOLDER." in again.err) == (1, True)
    assert ltd_pipe("init", tmp_path, "--force").code == 0
    assert (tmp_path / ".gitignore").read_bytes() == mine + b"/data/\n"


FOUND = {
    "nothing": ([], ["git init", "dvc init", "dvc repro"]),
    "git": ([".git"], ["dvc init", "dvc repro"]),
    "git above": (["../.git"], ["dvc init --subdir", "dvc repro"]),
    "both": ([".git", ".dvc"], ["dvc repro"]),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_commands_that_are_left_are_said(ltd_pipe, tmp_path, monkeypatch, case):
    """What is there need not be made."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    there, left = FOUND[case]
    for name in there:
        (folder / name).mkdir()
    assert ltd_pipe("init").out.splitlines()[1:] == [f"  {command}" for command in left]


def test_a_folder_is_named_as_a_shell_takes_it(ltd_pipe, tmp_path, monkeypatch):
    """The first command that is left is typed, or pasted."""
    monkeypatch.chdir(tmp_path)
    first = ltd_pipe("init", "my project").out.splitlines()[1]
    assert shlex.split(first) == ["cd", "my project"]
