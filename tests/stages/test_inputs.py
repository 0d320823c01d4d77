"""`ltd-pipe inputs` notes what comes from outside, and reads it only where it changed."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from refusals import refused

from ltd_pipe.errors import MissingError, ParamsError
from ltd_pipe.params.file import pipeline_text
from ltd_pipe.stages.inputs import inputs

ROOT = Path(__file__).parents[2]


def look(*words):
    """Run the command; what images.json holds, and what was said on stderr."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        inputs.main(list(words), standalone_mode=False)
    return json.loads(Path("data/inputs/images.json").read_text()), err.getvalue()


def change(path):
    """Another content of the same size, and the same time."""
    before = path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_folder_is_read_again_only_where_its_listing_changed(pictures):
    """Names, sizes and times decide whether; the content decides what is noted."""
    first, _ = look()
    assert (first["path"], first["files"]) == ("photos", 120)
    picture = next(Path("photos/train").rglob("*.png"))
    change(picture)
    assert look()[0] == first
    os.utime(picture, (1, 1))
    assert look()[0]["sha256"] != first["sha256"]
    change(picture)
    os.utime(picture, (2, 2))
    assert look()[0] == first


MOVES = {
    "added": lambda path: path.with_name("new.png").write_bytes(b"x"),
    "removed": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("other.png")),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


@pytest.mark.parametrize("move", MOVES)
def test_what_happens_to_a_file_is_seen(pictures, move):
    """Each changes the note; through links as well."""
    Path("photos").rename("elsewhere")
    Path("photos").symlink_to("elsewhere")
    first, _ = look()
    MOVES[move](next(Path("elsewhere/train").rglob("*.png")))
    assert look()[0] != first


def test_links_that_go_round_end(pictures):
    """And files that are not there behind a link are left to prepare."""
    first, _ = look()
    Path("photos/train/round").symlink_to(Path("photos").absolute())
    Path("photos/train/gone").symlink_to("nowhere")
    assert look()[0]["files"] == first["files"]


def test_a_folder_that_is_gone_is_taken_as_it_was(pictures):
    """So do those who pull results without the images; without a note it is refused."""
    first, _ = look()
    Path("photos").rename("elsewhere")
    again, said = look()
    assert again == first
    assert "photos is not here" in said
    Path("data/inputs/images.json").unlink()
    with pytest.raises(MissingError) as refusal:
        look()
    assert refusal.value.where == "params.yaml: prepare.path: photos"


def test_nothing_from_outside_is_noted_as_such(project):
    """Digits come with scikit-learn, and the teacher is trained."""
    assert look()[0] is None
    assert look("--asked")[0] is None
    for name in ("images", "teacher", "classes", "asked", "init"):
        assert Path(f"data/inputs/{name}.json").read_text() == "null\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teacher.checkpoint", "a.pt"),
        ("teacher.classes", "names.txt"),
        ("train.teacher", "b.safetensors"),
        ("train.init", "c.safetensors"),
    ],
)
def test_weights_that_are_not_there_are_refused_at_once(project, key, value):
    """Not when the stage that reads them begins; what a stage will make is waited for."""
    section, name = key.split(".")
    params = Path("params.yaml")
    text = params.read_text().replace("ema_decay: 0.9", "ema_decay: 0.9, objective: adaad")
    made = "data/teacher/new.safetensors"
    text = text.replace("ema_decay: 0.9", f"ema_decay: 0.9, teacher: {made}, init: {made}")
    params.write_text(text)
    Path("dvc.yaml").write_text("stages: {teacher: {outs: [data/teacher]}}")
    look()
    if section == "train":
        params.write_text(text.replace(f"{name}: {made}", f"{name}: {value}"))
    else:
        shutil.copy("data/teacher/model.safetensors", "known.pt")
        named = {"checkpoint": "known.pt", name: value}.items()
        given = ", ".join(f"{key}: {path}" for key, path in named)
        params.write_text(text.replace("teacher: {", f"teacher: {{{given}, ", 1))
    with pytest.raises(MissingError) as refusal:
        look()
    assert refusal.value.where == f"params.yaml: {key}: {value}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teacher.checkpoint", "data/teacher/model.safetensors"),
        ("train.init", "data/student/model.safetensors"),
        ("train.init", "data/baseline/last.safetensors"),
        ("train.teacher", "data/student/model.safetensors"),
    ],
)
def test_what_the_reading_stage_makes_itself_is_refused(project, key, value):
    """DVC would remove the student that training is to begin with; the teacher's is made before."""
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    section, name = key.split(".")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"] |= {"init": "data/teacher/model.safetensors", "objective": "adaad"}
    params["train"]["teacher"] = params["train"]["init"]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    look()
    params[section][name] = value
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with refused(ParamsError, where=f"{key}: {value}", what="removed", remedy="Copy it"):
        look()


@pytest.mark.parametrize(("objective", "warned"), [("at", 0), ("trades", 0), ("ard", 1)])
def test_a_stage_that_will_refuse_the_file_is_named_at_once(project, objective, warned):
    """The baseline of ard comes after the student's training, and has labels of no teacher."""
    params = Path("params.yaml")
    settings = f"objective: {objective}, label_temperature: 2"
    params.write_text(params.read_text().replace("ema_decay: 0.9", f"ema_decay: 0.9, {settings}"))
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    _, said = look()
    assert said.count("WARNING: stage 'baseline' of dvc.yaml will end with") == warned
    assert said.count("\n") == warned


def test_a_launcher_that_no_command_asks_for_is_named(project):
    """As in a project of init, whose commands name the program."""
    params = Path("params.yaml")
    text = params.read_text()
    for launcher, warned in (("python", 0), ("torchrun --nproc-per-node 2", 1)):
        params.write_text(f"launch: {launcher}\n{text}")
        shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
        assert "launch does nothing" not in look()[1]
        Path("dvc.yaml").write_text(pipeline_text())
        assert look()[1].count("launch does nothing here") == warned


def test_a_stage_with_an_option_that_does_nothing_is_named_at_once(project):
    """Which the command refuses: after the teacher's training."""
    text = (ROOT / "dvc.yaml").read_text()
    given = "--label-kind onehot --label-temperature null"
    assert given in text
    Path("dvc.yaml").write_text(text.replace(given, f"{given} --smoothing 0.2"))
    _, said = look()
    assert "stage 'baseline' of dvc.yaml will end with: train.smoothing does nothing" in said


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("-S train.smoothing=0.2", "train.smoothing does nothing"),
        ("-S train.epochs=-1", "option: train.epochs: input should be"),
        ("--params other.yaml", "other.yaml: teacher.epochs: input should be"),
        ("--params absent.yaml", ""),
        ("--init 2024", ""),
    ],
)
def test_a_command_is_read_as_its_stage_reads_it(project, words, problem):
    """With each way to set a parameter; a file 2024 is no number."""
    text = Path("params.yaml").read_text()
    Path("other.yaml").write_text(text.replace("epochs: 2", "epochs: -1"))
    Path("dvc.yaml").write_text(
        f"stages: {{a: {{cmd: ltd-pipe train {words}, outs: [data/student]}}}}"
    )
    told = f"stage 'a' of dvc.yaml will end with: {problem}"
    _, said = look()
    assert told in said if problem else "will end with" not in said


def test_of_several_commands_of_a_stage_each_is_looked_at(project):
    """DVC runs a list of them, one after the other."""
    outs = "outs: [data/student]"
    refused = "ltd-pipe train --label-kind onehot --smoothing 0.2 --label-temperature null"
    Path("dvc.yaml").write_text(f"stages: {{a: {{cmd: [echo a, {refused}, echo b], {outs}}}}}")
    assert "stage 'a' of dvc.yaml will end with: train.smoothing does nothing" in look()[1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plots: [a.csv]",
        "stages:",
        "stages: {a: }",
        "stages: [a]",
        "a",
        "stages: {a: {params: }}",
    ],
)
def test_a_pipeline_that_has_no_commands_is_left_alone(project, text):
    """It may have plots alone, and what is wrong with it DVC will say."""
    Path("dvc.yaml").write_text(text)
    assert look() == (None, "")


def test_a_command_with_words_of_the_shell_is_left_alone(project):
    """It is the user's dvc.yaml."""
    Path("dvc.yaml").write_text("stages: {a: {cmd: 'ltd-pipe train --out a && echo \"done'}}")
    assert look() == (None, "")
