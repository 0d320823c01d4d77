"""dvc.yaml lists just what each stage reads, and DVC does with it what users rely on."""

import ast
import json
import shutil

import dvc_projects
import pytest
import yaml
from dvc_projects import ROOT, dvc

from ltd_pipe.errors import ParamsError
from ltd_pipe.params import Params, load_params
from ltd_pipe.stages.prepare import prepare

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
# What a result cannot depend on: the screen, the command line, and the plumbing below all.
PLUMBING = {
    "pipeline/__init__.py",
    "pipeline/background.py",
    "pipeline/device.py",
    "pipeline/text.py",
    "pipeline/errors.py",
    "pipeline/params",
    "pipeline/provenance.py",
    "pipeline/publish.py",
    "pipeline/distributed.py",
    # How a store came here: each byte of it was compared with its identity.
    "pipeline/sharing",
    "stages/__init__.py",
    "stages/fetched.py",
    "stages/fitting.py",
    "stages/options.py",
    "stages/console.py",
}


# The others run again when something changed.
ALWAYS = {name for name, stage in STAGES.items() if stage.get("always_changed")}
STEPS = [name for name in STAGES if name not in ALWAYS]


def code_of(stage):
    """Files and folders of code that a stage depends on."""
    return {dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipeline", "stages"))}


def module_file(name):
    """The file of a module of ours, or None."""
    path = ROOT / "src" / name.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate.resolve()
    return None


def imports_of(path):
    """Modules of ours that a file imports anywhere but for type checking."""
    tree, names = ast.parse(path.read_text()), set()
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {found for name in names if (found := module_file(name)) and ROOT in found.parents}


def closure(path):
    """All files of ours that a file comes to import, itself included."""
    seen, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += imports_of(current)
    return {file.relative_to(ROOT).as_posix() for file in seen}


def command_file(stage):
    return ROOT / "stages" / f"{STAGES[stage]['cmd'].split('-m ltd_pipe ')[1].split()[0]}.py"


def covered(file, deps):
    return file in deps or any(file.startswith(f"{dep}/") for dep in deps)


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_depends_on_the_code_that_it_imports(stage):
    """Every module in its imports is covered by a dependency, or is plumbing."""
    used = {file for file in closure(command_file(stage)) if not covered(file, PLUMBING)}
    if stage == "report":
        used.discard("pipeline/rng.py")  # pictures are read in order
    missing = {file for file in used if not covered(file, code_of(stage))}
    # These two read no store, so that its code cannot reach their results.
    if stage in ("teacher", "baseline"):
        missing = {file for file in missing if not file.startswith("pipeline/labels/")}
    assert not missing


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_depends_on_no_other_code(stage):
    """Every dependency on code holds something that is imported."""
    used = closure(command_file(stage))
    assert [d for d in code_of(stage) if not any(covered(file, {d}) for file in used)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_exist(stage):
    """Each listed parameter is one of ours."""
    for name in STAGES[stage].get("params", []):
        section, _, key = name.partition(".")
        field = Params.model_fields[section]
        assert not key or key in field.annotation.model_fields


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


SMALL = {
    "teacher": {"epochs": 1, "architecture": "small-cnn-w8"},
    "train": {"epochs": 1, "architecture": "small-cnn-w8", "attack_steps": 1},
    "evaluate": {"images": 20, "autoattack": "none", "pgd_steps": 2, "pgd_restarts": 1},
}
SMALL["train"]["validation_attack_steps"] = 1
# After an epoch a teacher knows little, and its labels are refused elsewhere.
SMALL["train"]["allow_poor_labels"] = True
SMALL["evaluate"]["eps_grid"] = [0, 0.1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh copy of the tracked files, small parameters, in a repository of its own."""
    folder = tmp_path_factory.mktemp("clone")
    dvc_projects.clone(folder)
    dvc_projects.write_params(folder, "digits", SMALL)
    dvc_projects.commit(folder)
    return folder


def ran(out):
    """The stages that DVC ran."""
    return {name for name in STAGES if f"Running stage '{name}'" in out}


@pytest.mark.slow
def test_repro_runs_everything_and_then_nothing(clone):
    """From nothing to the report; the second time, nothing has changed."""
    dvc(clone, "repro")
    for name in ("student/model.safetensors", "student/last.safetensors", "labels.zarr"):
        assert (clone / "data" / name).exists()
    metrics = json.loads((clone / "data/metrics.json").read_text())
    assert metrics["n"] == 20
    page = (clone / "data/report.html").read_text()
    assert "<html" in page
    # Whatever the audit found, it is on the page, and kept nothing from being written.
    assert json.loads((clone / "data/audit/audit.json").read_text())["n"] == 20
    assert 'id="masking"' in page
    assert ran(dvc(clone, "repro")) == ALWAYS


@pytest.mark.slow
def test_another_label_temperature_leaves_the_teacher_alone(clone):
    """`dvc exp run -S label.temperature=1.5` re-runs label and what follows, nothing else."""
    out = dvc(clone, "exp", "run", "-S", "label.temperature=1.5")
    assert ran(out) == ALWAYS | {"label", "train", "evaluate", "audit", "report"}


@pytest.mark.slow
def test_another_objective_is_one_option(clone):
    """`dvc exp run -S train.objective=trades` works, and metrics can be compared."""
    out = dvc(clone, "exp", "run", "-S", "train.objective=trades", "train")
    assert "Running stage 'train'" in out
    assert "Running stage 'label'" not in out.replace("label.temperature", "")
    assert "clean_accuracy" in dvc(clone, "metrics", "show")


@pytest.mark.slow
def test_a_key_that_is_not_in_the_file_can_be_set(clone):
    """DVC adds it with `++`, and changes it where it is there."""
    for value in (2, 3):
        dvc(clone, "exp", "run", "-S", f"++train.beta={value}", "prepare")
        assert load_params(clone / "params.yaml").train.beta == value


@pytest.mark.slow
def test_artifacts_plots_and_metrics_are_declared(clone):
    """What DVC's tools list: three artifacts, plots that draw, metrics that show."""
    assert set(PIPELINE["artifacts"]) == {"teacher", "soft-labels", "student"}
    shown = json.loads(dvc(clone, "metrics", "show", "--json"))[""]["data"]
    assert shown.keys() == set(PIPELINE["metrics"])
    for file in shown.values():
        assert {"clean_accuracy", "pgd_accuracy", "all_attacks_accuracy"} <= file["data"].keys()
        assert all(type(value) is float for value in file["data"].values())
    # Both models together: a table that a screen has room for.
    table = dvc(clone, "exp", "show", "--csv", "--no-pager").partition("\n")[0].split(",")
    columns = [name for name in table if ".json:" in name]
    assert len(columns) <= 20
    assert {name.split(":")[0] for name in columns} == shown.keys()
    dvc(clone, "plots", "show", "-o", "plots")
    assert (clone / "plots/index.html").exists()
