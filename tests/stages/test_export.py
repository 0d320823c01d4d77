"""`ltd-pipe export`: one line that says what was compared, or one that says why not."""

import json
import shutil

import pytest

STUDENT = "data/student/model.safetensors"


@pytest.mark.parametrize("to", ["robustbench", "torchscript"])
def test_an_export_says_what_was_compared_and_how_to_load_it(ltd_pipe, project, to):
    """Two lines; with --json one object."""
    outcome = ltd_pipe("export", STUDENT, "--to", to, "--out", "exported")
    assert outcome.code == 0, outcome.err
    first, second = outcome.out.splitlines()
    assert first.startswith("exported: gives the checkpoint's logits on 16 images: largest")
    assert second.startswith("load it: ")
    assert "'exported'" in second
    again = ltd_pipe("export", STUDENT, "--to", to, "--out", "exported", "--force", "--json")
    found = json.loads(again.out)
    assert found["to"] == to
    assert 0 <= found["difference"] <= found["allowed"]


def test_an_architecture_that_the_checkpoint_says_itself_is_refused(ltd_pipe, project):
    """It would be passed over."""
    outcome = ltd_pipe("export", STUDENT, "--to", "onnx", "--arch", "resnet50", "--out", "exported")
    assert outcome.code == 1
    assert "is a checkpoint of ltd-pipe, which says this itself" in outcome.err


def test_what_a_form_cannot_hold_is_refused(ltd_pipe, project):
    """Nothing appears, and the line names what works."""
    outcome = ltd_pipe("export", STUDENT, "--to", "timm", "--out", "exported")
    assert outcome.code == 1
    assert "timm has no such network" in outcome.err
    assert "Use --to onnx or torchscript" in outcome.err
    assert not (project / "exported").exists()


def folder_of_photos(project):
    (project / "out").mkdir()
    (project / "out/photo.jpg").touch()


def another_checkpoint(project):
    shutil.copy(project / STUDENT, project / "out")


def an_empty_file(project):
    (project / "out").touch()


REFUSED = {
    "a folder of something else": ("robustbench", folder_of_photos, "is no exported model"),
    "another checkpoint": ("torchscript", another_checkpoint, "is no exported model"),
    "an empty file": ("torchscript", an_empty_file, "is no exported model"),
    "a folder for a file": ("onnx", folder_of_photos, "is a folder"),
    "a file for a folder": ("timm", another_checkpoint, "is no folder"),
}


@pytest.mark.parametrize(("to", "prepare", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_force_replaces_exports_only(ltd_pipe, project, to, prepare, message):
    """What stands under the name is looked at before it is lost."""
    prepare(project)
    before = {path: path.stat() for path in (project / "out", *(project / "out").rglob("*"))}
    outcome = ltd_pipe("export", STUDENT, "--to", to, "--out", "out", "--force")
    assert (outcome.code, message in outcome.err) == (1, True), outcome.err
    assert {path: path.stat() for path in before} == before


def test_without_force_an_export_stays(ltd_pipe, project):
    """Also one of the same model."""
    ltd_pipe("export", STUDENT, "--to", "robustbench", "--out", "exported")
    outcome = ltd_pipe("export", STUDENT, "--to", "robustbench", "--out", "exported")
    assert outcome.code == 1
    assert "exported: exists already. Pass --force" in outcome.err


@pytest.mark.parametrize("out", [STUDENT, "data/student"])
def test_the_checkpoint_is_never_written_over(ltd_pipe, project, out):
    """Nor the folder that holds it."""
    outcome = ltd_pipe("export", STUDENT, "--to", "torchscript", "--out", out, "--force")
    assert outcome.code == 1
    assert "the input data/student/model.safetensors" in outcome.err


def test_weights_without_a_description_are_refused(ltd_pipe, project):
    """Another project's file does not say which network it is of."""
    (project / "other.pt").write_bytes(b"\x80\x02.")
    outcome = ltd_pipe("export", "other.pt", "--to", "torchscript", "--out", "exported")
    assert outcome.code == 1
    assert "other.pt: is a pickle" in outcome.err
