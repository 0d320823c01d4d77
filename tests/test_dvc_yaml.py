"""dvc.yaml lists just what each stage reads."""

import shutil

import pytest
import yaml
from dvc_projects import ROOT

from ltd_pipe.errors import ParamsError
from ltd_pipe.params import Params, load_params
from ltd_pipe.provenance import import_closure, module_file
from ltd_pipe.stages.prepare import prepare

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
# What a result cannot depend on: the screen, the command line, and the plumbing below all.
PLUMBING = {
    *(f"pipeline/{name}.py" for name in ("__init__", "device", "distributed")),
    *(f"pipeline/{name}.py" for name in ("errors", "provenance", "publish", "text", "threads")),
    "pipeline/params",
    *(f"stages/{name}.py" for name in ("__init__", "console", "fitting", "options")),
}
# What a stage imports besides, and what cannot reach its result.
UNREACHED = {
    # Networks are named by the options, and none is built.
    "prepare": {"pipeline/models"},
    # Parts of stores are fetched by 'store pull' alone.
    "train": {"pipeline/evaluation/checks.py"},
    # These two read no store.
    "teacher": {"pipeline/labels"},
    "baseline": {"pipeline/labels", "pipeline/evaluation/checks.py"},
    # Pictures are read in order.
    "report": {"pipeline/rng.py"},
}

# The others run again when something changed.
ALWAYS = {name for name, stage in STAGES.items() if stage.get("always_changed")}
STEPS = [name for name in STAGES if name not in ALWAYS]


def code_of(stage):
    """Files and folders of code that a stage depends on."""
    return {dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipeline", "stages"))}


def code_run(stage):
    """All files of ours that a stage's command comes to import."""
    command = STAGES[stage]["cmd"].split("-m ltd_pipe ")[1].split()[0]
    modules = import_closure(f"ltd_pipe.stages.{command}")
    return {module_file(name).resolve().relative_to(ROOT).as_posix() for name in modules}


def covered(file, deps):
    return file in deps or any(file.startswith(f"{dep}/") for dep in deps)


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_depends_on_the_code_that_it_imports(stage):
    """Every module in its imports is covered by a dependency, or cannot reach the result."""
    known = PLUMBING | UNREACHED.get(stage, set()) | code_of(stage)
    assert {file for file in code_run(stage) if not covered(file, known)} == set()


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_depends_on_no_other_code(stage):
    """Every dependency on code holds something that is imported."""
    used = code_run(stage)
    assert [d for d in code_of(stage) if not any(covered(file, {d}) for file in used)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_exist(stage):
    """Each listed parameter is one of ours."""
    for name in STAGES[stage].get("params", []):
        section, _, key = name.partition(".")
        field = Params.model_fields[section]
        assert not key or key in field.annotation.model_fields


# What params.yaml names outside of the project, and the stages' command that reads it.
FROM_OUTSIDE = {
    "images": "prepare",
    **dict.fromkeys(("teacher", "classes"), "teacher"),
    **dict.fromkeys(("asked", "init"), "train"),
}


def test_a_stage_depends_on_what_it_reads_from_outside():
    """On the note of each: DVC sees no change of the file itself."""
    notes = {f"data/inputs/{name}.json": verb for name, verb in FROM_OUTSIDE.items()}
    assert {out for name in ALWAYS for each in STAGES[name]["outs"] for out in each} == {*notes}
    for stage in STEPS:
        read = {note for note, verb in notes.items() if f" {verb} " in f"{STAGES[stage]['cmd']} "}
        assert {dep for dep in STAGES[stage]["deps"] if dep in notes} == read


@pytest.mark.parametrize("name", ["seed", "device", "report"])
def test_prepare_refuses_what_a_later_stage_would_miss(name, tmp_path, monkeypatch):
    """A valid params.yaml may leave these out, but DVC's stages name them."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    del content[name]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    load_params(tmp_path / "params.yaml")
    with pytest.raises(ParamsError) as refusal:
        prepare.main([], standalone_mode=False)
    assert refusal.value.where == f"params.yaml: {name}"
    assert not list(tmp_path.glob("data/*"))


@pytest.mark.parametrize("stage", STAGES)
def test_code_and_data_that_are_read_are_there(stage):
    """A dependency is a file of ours or an output of an earlier stage."""
    outputs = [
        name
        for other in STAGES.values()
        for out in other["outs"]
        for name in ([out] if isinstance(out, str) else out)
    ]
    for dep in STAGES[stage].get("deps", []):
        assert (ROOT / dep).exists() or any(
            dep == out or dep.startswith(f"{out}/") for out in outputs
        )
