"""`ltd-pipe recipe`: list, show, use; edits are never lost without --force."""

import json
from pathlib import Path

import pytest

from ltd_pipe.params import load_params
from ltd_pipe.params.file import recipe_names, recipe_text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_list_names_every_recipe_with_its_purpose(ltd_pipe):
    """One line each; --json gives the same to scripts."""
    outcome = ltd_pipe("recipe", "list")
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert "scikit-learn" in outcome.out
    assert list(json.loads(ltd_pipe("recipe", "list", "--json").out)) == recipe_names()


def test_show_prints_the_file_as_it_is(ltd_pipe):
    """What is shown can be redirected into a parameter file."""
    assert ltd_pipe("recipe", "show", "digits").out == recipe_text("digits")


@pytest.mark.parametrize("words", [["show", "digit"], ["use", "digit"]], ids=" ".join)
def test_an_unknown_recipe_ends_with_1_and_writes_nothing(ltd_pipe, folder, words):
    """One line names the likely one."""
    outcome = ltd_pipe("recipe", *words)
    assert outcome.code == 1
    assert "Did you mean 'digits'?" in outcome.err
    assert not list(folder.iterdir())


def test_use_writes_a_valid_params_file(ltd_pipe, folder):
    """Comments included, and the next command is named."""
    outcome = ltd_pipe("recipe", "use", "cifar10-resnet18")
    assert outcome.code == 0
    assert "Next: ltd-pipe prepare" in outcome.out
    assert (folder / "params.yaml").read_text() == recipe_text("cifar10-resnet18")
    assert load_params(folder / "params.yaml").train.eps == 8 / 255


def test_use_names_dvc_where_there_is_a_pipeline(ltd_pipe, folder):
    """In a clone of the project the next command is `dvc repro`."""
    (folder / "dvc.yaml").touch()
    assert "Next: dvc repro" in ltd_pipe("recipe", "use", "digits").out


def test_an_unchanged_recipe_is_replaced(ltd_pipe, folder):
    """Nothing is lost by it, so it needs no --force."""
    ltd_pipe("recipe", "use", "digits")
    assert ltd_pipe("recipe", "use", "imagenet-resnet50").code == 0
    assert (folder / "params.yaml").read_text() == recipe_text("imagenet-resnet50")


EDITED = {"edited": recipe_text("digits") + "# mine\n", "binary": "\x00", "empty": ""}


@pytest.mark.parametrize("text", EDITED.values(), ids=EDITED)
def test_an_edited_params_file_is_kept(ltd_pipe, folder, text):
    """It is replaced with --force only."""
    Path("params.yaml").write_text(text)
    outcome = ltd_pipe("recipe", "use", "digits")
    assert outcome.code == 1
    assert "params.yaml: was edited. Pass --force" in outcome.err
    assert (folder / "params.yaml").read_text() == text
    assert ltd_pipe("recipe", "use", "digits", "--force").code == 0
    assert (folder / "params.yaml").read_text() == recipe_text("digits")
