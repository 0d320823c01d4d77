"""What all commands promise: help with an example, one line of refusal, and exit codes."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from ltd_pipe.models import NETWORKS
from ltd_pipe.models.facts import read_facts
from ltd_pipe.params import Params
from ltd_pipe.stages.cli import cli
from ltd_pipe.stages.train import train

ROOT = Path(__file__).parents[2]


def _paths(group, context):
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield [name]
        if isinstance(command, click.Group):
            yield from ([name, *path] for path in _paths(command, context))


PATHS = list(_paths(cli, click.Context(cli)))


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_has_an_example(ltd_pipe, path):
    """`--help` of every command shows a line that can be copied."""
    outcome = ltd_pipe(*path, "--help")
    assert outcome.code == 0
    assert "Example" in outcome.out
    assert "ltd-pipe " in outcome.out.split("Example", 1)[1]


def test_every_command_is_listed(ltd_pipe):
    """The first help page names them all."""
    listed = ltd_pipe("--help").out
    assert all(f"\n  {name}" in listed for name in cli.list_commands(None))


USAGE = [
    (["trian"], "No such command 'trian'"),
    (["store", "sign", "labels.zarr"], "Missing option '--key'"),
    (["train", "--nonsense"], "No such option"),
]


@pytest.mark.parametrize(("words", "message"), USAGE, ids=[" ".join(words) for words, _ in USAGE])
def test_wrong_usage_ends_with_2(ltd_pipe, words, message):
    """Click's own errors, on stderr."""
    outcome = ltd_pipe(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


def test_a_refusal_is_one_line_and_ends_with_1(ltd_pipe, tmp_path, monkeypatch):
    """No traceback: what, where, and what to do."""
    monkeypatch.chdir(tmp_path)
    outcome = ltd_pipe("train")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("ltd-pipe: params.yaml: no such parameter file.")
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Each takes a second, and most of these some hundred MB, which the commands below do not use.
_HEAVY = {"torch", "torchvision", "ffcv", "numba", "timm", "scipy", "sklearn", "matplotlib"}
_LIGHT = """
import contextlib, io, json, sys
from ltd_pipe.stages.cli import main

for words in json.loads(sys.argv[1]):
    sys.argv, code = ["ltd-pipe", *words], 0
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        code = end.code
    heavy = sys.modules.keys() & HEAVY
    assert not code and not heavy, (words, code, heavy)
"""


def _run_light(commands):
    """Run commands in one process of their own, which loads nothing heavy for any of them."""
    script = f"HEAVY = {_HEAVY}{_LIGHT}"
    words = [sys.executable, "-c", script, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_help_loads_anything_heavy():
    """The first answer comes at once, whatever it is asked about."""
    assert ["store", "retemper"] in PATHS
    _run_light([["--help"], *([*path, "--help"] for path in PATHS)])


def test_work_on_stores_and_results_loads_nothing_heavy(project, tmp_path, key_file):
    """Where no teacher is asked: of a store, of a beton's hashes, of evaluations."""
    store, out = "data/labels.zarr", tmp_path / "out"
    out.mkdir()
    made = {name: str(out / f"{name}.zarr") for name in ("a", "b", "c", "merged", "cold", "mean")}
    table = str(out / "labels.npz")
    _run_light(
        [
            ["store", "info", store],
            ["store", "verify", store],
            ["store", "verify", store, "--data", "data/train.beton"],
            ["store", "subset", store, "--rows", "0:100", "--out", made["a"]],
            ["store", "subset", store, "--rows", "100:240", "--out", made["b"]],
            ["store", "merge", made["a"], made["b"], "--out", made["merged"]],
            ["store", "merge", store, made["merged"], "--average", "--out", made["mean"]],
            ["store", "retemper", store, "--temperature", "0.5", "--out", made["cold"]],
            ["store", "convert", store, "--to", "npz", "--out", table],
            ["store", "convert", table, "--from", "npz", "--out", made["c"]],
            ["store", "diff", store, made["c"]],
            ["store", "sign", made["c"], "--key", str(key_file)],
            ["store", "pull", Path(made["c"]).as_uri(), "--out", str(out / "pulled.zarr")],
            ["compare", "data"],
            ["recipe", "list"],
            ["recipe", "show", "digits"],
        ]
    )


OPTIONS = [
    (["train", "--eps", "2"], "train.eps: radii of linf are at most 1"),
    (["train", "-S", "train.eps=0"], "train.eps: input should be greater than 0"),
    (["train", "-S", "nonsense"], "expected SECTION.KEY=VALUE"),
    (["train", "--epochs", "many"], "train.epochs: input should be a valid integer"),
    (
        ["label", "--teacher", "x.pt", "--temperature", "-1"],
        "label.temperature: expected a number from 1e-06 to 1e+06",
    ),
    (
        ["evaluate", "--eps", "8"],
        "evaluate.eps: radii of linf are at most 1, in pixel units, found 8",
    ),
]


@pytest.mark.parametrize(("words", "message"), OPTIONS, ids=[" ".join(w) for w, _ in OPTIONS])
def test_options_are_validated_like_the_file(ltd_pipe, project, words, message):
    """An option of a stage is the parameter of that name, with the same checks."""
    outcome = ltd_pipe(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


CODES = {
    "option of click": (["train", "--nonsense"], "", 2),
    "value of an option": (["train", "--eps", "abc"], "", 2),
    "choice of an option": (["train", "--objective", "nope"], "", 2),
    "value of -S": (["train", "-S", "train.eps=0"], "", 2),
    "key of -S": (["train", "-S", "train.nope=0"], "", 2),
    "value in the file": (["train"], "eps: 0.1", 2),
    "section in the file": (["train"], "teacher:", 2),
    "file that is not there": (["train", "--params", "nowhere.yaml"], "", 1),
    "data that is not there": (["train", "--labels", "nowhere.zarr", "--out", "new"], "", 1),
    "result that is there": (["train"], "", 1),
    "help": (["train", "--help"], "", 0),
}


@pytest.mark.parametrize("case", CODES)
def test_exit_codes(ltd_pipe, project, case):
    """2: what was asked is wrong, wherever it stands; 1: what it was asked of."""
    words, broken, code = CODES[case]
    params = Path("params.yaml")
    params.write_text(params.read_text().replace(broken, "nonsense: 1" if broken else "", 1))
    outcome = ltd_pipe(*words)
    assert outcome.code == code, outcome.err
    assert outcome.err.count("\n") == 1 or words[1:] == ["--nonsense"] or not code


def test_it_runs_as_a_module():
    """`python -m ltd_pipe` is what dvc.yaml calls."""
    done = subprocess.run(
        [sys.executable, "-m", "ltd_pipe", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ltd-pipe, version 0.1.0")


@contextlib.contextmanager
def training():
    """A long training run in a process of its own, once it has begun; ended in any case."""
    command = [sys.executable, "-m", "ltd_pipe", "train", "--out", "new/student", "--epochs", "400"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            while not Path("new/student/live").exists():
                assert running.poll() is None, running.stderr.read()
                time.sleep(0.05)
            yield running
        finally:
            running.kill()


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written(project):
    """SIGINT in the middle of training: exit code 130, a snapshot, and no model."""
    with training() as running:
        running.send_signal(signal.SIGINT)
        _, err = running.communicate()
    assert running.returncode == 130
    assert "run the same command again to go on" in err.splitlines()[-1]
    assert not (project / "new/student/model.safetensors").exists()
    assert list((project / "new/state").glob("student-*/step-*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2024", "run #2", "my: photos", "*x", "yes", "1e3", "C:"])
def test_a_text_is_what_was_typed(ltd_pipe, pictures, name):
    """YAML would make of these folders a number, another folder, a mapping, a reference."""
    Path("photos").rename(name)
    ways = ("--path", name), ("-S", f"prepare.path={name}"), ("-S", f'prepare.path="{name}"')
    for number, words in enumerate(ways):
        outcome = ltd_pipe("prepare", *words, "--out", f"made-{number}")
        assert outcome.code == 0, outcome.err
        manifest = json.loads(Path(f"made-{number}/train.beton.json").read_text())
        assert manifest["dataset"] == name


@pytest.mark.parametrize("out", [".", "../here/.", "./"])
def test_the_working_directory_can_be_written_to(ltd_pipe, project, monkeypatch, out):
    """A path that ends so has no name, beside which a lock could stand."""
    Path("here").mkdir()
    monkeypatch.chdir("here")
    words = ("--params", "../params.yaml", "--data", "../data/train.beton", "--epochs", "1")
    outcome = ltd_pipe("train", "--label-kind", "onehot", *words, "--out", out)
    assert outcome.code == 0, outcome.err
    assert Path("model.safetensors").is_file()


@pytest.mark.parametrize("place", ["/", "", "/../"])
@pytest.mark.parametrize(
    "words",
    [
        *(("inputs", "--out"), ("teacher", "--out"), ("train", "--out"), ("audit", "x", "--out")),
        *(("report", "--student"), ("report", "--metrics")),
    ],
    ids=" ".join,
)
def test_a_place_without_a_name_is_refused(ltd_pipe, project, words, place):
    """Nothing can stand beside it; an empty one, of a variable that is not set, is none."""
    outcome = ltd_pipe(*words, place)
    assert outcome.code == 2
    assert f"Error: Invalid value for '{words[-1]}': {place!r} names no file" in outcome.err


def test_results_are_not_written_into_a_store(ltd_pipe, project):
    """It would be one no more."""
    for words in (("train",), ("teacher",), ("evaluate", TEACHER), ("audit", TEACHER)):
        more = ("--metrics", "new.json") if "evaluate" in words else ()
        outcome = ltd_pipe(*words, *more, "--out", "data/labels.zarr")
        assert (outcome.code, outcome.err.count("\n")) == (1, 1)
        assert "data/labels.zarr: is a soft-label store" in outcome.err
    assert ltd_pipe("store", "verify", "data/labels.zarr").code == 0


def test_lists_are_typed_as_help_shows_them(ltd_pipe, project):
    words = ("--schedule", "step", "--milestones", "0.5,0.75", "--mean", "0.5", "--std", "0.25")
    outcome = ltd_pipe("teacher", *words, "--crop-scale", "0.25,1", "--epochs", "1", "--out", "t")
    assert outcome.code == 0, outcome.err
    params = read_facts(Path("t/model.safetensors"))["params"]
    assert [params[name] for name in ("milestones", "mean", "std", "crop_scale")] == [
        *([0.5, 0.75], [0.5], [0.25], [0.25, 1.0])
    ]


@pytest.mark.parametrize("value", ["auto:", "0.5 # half"])
def test_a_temperature_is_what_was_typed(ltd_pipe, project, value):
    outcome = ltd_pipe("label", "--teacher", TEACHER, "--out", "a.zarr", "--temperature", value)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"found {value!r}" in outcome.err


def test_a_second_run_is_refused_while_one_is_running(ltd_pipe, project):
    """The first goes on; the second is told which process it is."""
    with training() as running:
        outcome = ltd_pipe("train", "--out", "new/student")
    assert outcome.code == 1
    assert f"new/student: process {running.pid} is writing to it" in outcome.err


@pytest.mark.parametrize(
    ("typed", "meant"), [("trian", "train"), ("store inof", "info"), ("labels", "label")]
)
def test_a_mistyped_command_is_guessed(ltd_pipe, typed, meant):
    """Exit code 2, and the command that was meant."""
    outcome = ltd_pipe(*typed.split())
    assert outcome.code == 2
    assert f"No such command '{typed.split()[-1]}'. Did you mean '{meant}'?" in outcome.err


def test_images_are_not_made_larger_than_any_may_be(ltd_pipe):
    """They would not fit a page of FFCV's, nor the memory."""
    for words in (["prepare"], ["evaluate", "model.safetensors"]):
        outcome = ltd_pipe(*words, "--image-size", "30000")
        assert outcome.code == 2
        assert "8192" in outcome.err


def test_a_command_that_resembles_none_is_refused(ltd_pipe):
    """Without a guess."""
    outcome = ltd_pipe("bake")
    assert outcome.code == 2
    assert "No such command 'bake'." in outcome.err
    assert "Did you mean" not in outcome.err


TEACHER, STUDENT = "data/teacher/model.safetensors", "data/student/model.safetensors"
BETON = ("--data", "data/train.beton")
# Each would have been ignored: words, the option that is named, and the exit code.
IGNORED = [
    (["label", *BETON, "--image-size", "8", "--out", "a"], "--image-size", 2),
    (["label", *BETON, "--skip-bad", "--out", "a"], "--skip-bad", 2),
    (["evaluate", STUDENT, "--image-size", "8", "--force"], "--image-size", 2),
    (["store", "verify", "data/labels.zarr", *BETON, "--skip-bad"], "--skip-bad", 2),
    (["store", "verify", "data/labels.zarr", "--skip-bad"], "--skip-bad", 2),
    (["store", "verify", "data/labels.zarr", *BETON, "--sample", "3"], "--sample", 2),
    (["store", "verify", "data/labels.zarr", *BETON, "--device", "cuda"], "--device", 2),
    (["store", "verify", "data/labels.zarr", *BETON, "--arch", "x"], "--arch", 2),
    (
        ["store", "verify", "data/labels.zarr", *BETON, "--teacher", TEACHER, "--arch", "x"],
        "--arch",
        1,
    ),
    (["label", *BETON, "--arch", "small-cnn-w8", "--out", "a"], "--arch", 1),
    (["label", *BETON, "--mean", "0.5", "--std", "0.5", "--out", "a"], "--mean, --std", 1),
    (["label", *BETON, "--class-order", "natural", "--out", "a"], "--class-order", 1),
    (["label", *BETON, "--top-k", "3", "--logits", "--out", "a"], "--logits", 2),
    (["evaluate", STUDENT, "--arch", "small-cnn-w8", "--force"], "--arch", 1),
    (["evaluate", f"timm:test_resnet={STUDENT}", "--force"], "--arch", 1),
    (["evaluate", STUDENT, "--quick", "--autoattack", "standard", "--force"], "--autoattack", 2),
    (["audit", STUDENT, "--mean", "0.5", "--std", "0.5", "--force"], "--mean, --std", 1),
    (["audit", STUDENT, "--pgd-steps", "50", "--force"], "--pgd-steps", 2),
    (["teacher", "--checkpoint", TEACHER, "--epochs", "5", "--out", "t"], "--epochs", 2),
    (["teacher", "--checkpoint", TEACHER, "--fresh", "--out", "t"], "--fresh", 2),
    (["teacher", "--checkpoint", TEACHER, "--mean", "[0.5]", "--std", "[1]", "--out", "t"],
     "teacher.mean", 2),
    (["teacher", "--checkpoint", TEACHER, "--class-order", "natural", "--out", "t"], "order", 2),
    (["teacher", "--class-order", "natural", "--out", "t"], "class_order", 2),
    (["prepare", "--path", "photos", "--out", "o"], "--path", 2),
    (["prepare", "--jpeg-quality", "90", "--out", "o"], "--jpeg-quality", 2),
    (["store", "convert", "data/labels.zarr", "--to", "npz", "--temperature", "3",
      "--out", "a.npz"], "--temperature", 2),
    (["card", STUDENT, "--evaluation", "data/evaluation", "--out", "c.md"], "--evaluation", 2),
    (["doctor", "--models", "--data", "x"], "--data", 2),
    (["report", "--compare", "a", "b", "--metrics", "m"], "--metrics", 2),
]  # fmt: skip


@pytest.mark.parametrize(("words", "option", "code"), IGNORED)
def test_an_option_without_meaning_is_refused(ltd_pipe, project, words, option, code):
    """Whoever typed it believes that it did something; nothing is written."""
    before = sorted(path for path in Path().rglob("*") if path.is_file())
    outcome = ltd_pipe(*words)
    assert outcome.code == code, outcome.err
    assert option in outcome.err
    after = {path for path in Path().rglob("*") if path.is_file()}
    assert not [path for path in after - set(before) if path.suffix != ".lock"]


BLOCKED = {
    "a folder for a file": (["evaluate"], "params.yaml"),
    "a folder for a beton": (["evaluate", "--force"], "data/test.beton"),
    "a folder for a manifest": (["train", "--force"], "data/train.beton.json"),
    "a folder for weights": (["audit"], "data/student/model.safetensors"),
    "a folder for metrics": (["compare", "data/metrics.json", "data"], "data/metrics.json"),
    "a folder for a result": (["report"], "data/report.html"),
}


@pytest.mark.parametrize(("words", "name"), BLOCKED.values(), ids=BLOCKED)
def test_what_the_system_refuses_is_one_line_and_no_traceback(ltd_pipe, project, words, name):
    """Exit code 1, and the place."""
    path = Path(name)
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    outcome = ltd_pipe(*words)
    assert (outcome.code, outcome.out) == (1, "")
    assert len(outcome.err.strip().splitlines()) == 1
    assert name in outcome.err


def test_a_full_disk_behind_stdout_is_one_line():
    """And who stops reading, as `head` does, is told nothing."""
    command = [sys.executable, "-m", "ltd_pipe", "recipe", "list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as left:
        left.stdout.close()
        assert left.stderr.read() == b""


@pytest.mark.parametrize(
    ("words", "code"), [("teacher --epochs 1 --fresh --force", 0), ("trian", 2)]
)
def test_a_run_needs_nobody_who_reads_its_messages(project, words, code):
    """A full disk is behind stderr; a terminal that is gone says EIO instead."""
    command = [sys.executable, "-m", "ltd_pipe", *words.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=environment, stderr=full, check=False)
    assert done.returncode == code


SMALL = "mount -t tmpfs -o size=4k tmpfs /dev/shm || exit 99; "


def test_a_small_shared_memory_is_refused_before_the_work(tmp_path):
    """It would end in a SIGBUS, or with advice about a disk that is empty."""
    command = f"{SMALL} exec {sys.executable} -m ltd_pipe prepare --out {tmp_path}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "shm is too small" in done.stderr
    assert "--shm-size" in done.stderr
    assert not list(tmp_path.glob("*.beton"))


TYPES = ("INTEGER", "NUMBER", "TEXT", "LIST")


@pytest.mark.parametrize("command", ["prepare", "teacher", "train", "label", "evaluate", "report"])
def test_every_parameter_has_its_type_and_default_within_80_columns(ltd_pipe, command):
    """What is typed for null, 8/255 or a list is not restricted by it."""
    # Examples are as long as the line that is to be copied.
    lines = ltd_pipe(command, "--help").out.partition("Options:")[2].splitlines()
    assert max(map(len, lines)) <= 80
    known = cli.get_command(None, command)
    records = {p.name: p.get_help_record(click.Context(known)) for p in known.params}
    for name, info in Params.model_fields[command].annotation.model_fields.items():
        flags, text = records[f"field_{name}"]
        kind = flags.split()[-1]
        assert kind.startswith("--no-" if info.annotation is bool else ("[", *TYPES))
        assert re.search(r"\[(default: .+|needed here or in the file)\]$", text), text


def test_long_helps_have_headings(ltd_pipe):
    """In the order in which a run is thought out; short ones have none."""
    headings = re.findall(r"^([A-Z][^\n]*):$", ltd_pipe("train", "--help").out, re.MULTILINE)
    assert headings == [
        "Options",
        "Network and length",
        "Optimiser",
        "Schedule and averages",
        "Augmentation",
        "Input normalisation",
        "Speed and snapshots",
        "Objective",
        "Labels",
        "Attack",
        "Temperature and validation",
    ]
    assert "Labels:" not in ltd_pipe("label", "--help").out


OFFERED = [
    ("train --objective a", {"at", "ard", "adaad"}),
    ("train --attack-loss ", {"ce", "kl", "margin"}),
    ("train --norm l", {"linf", "l2"}),
    ("teacher --architecture wrn-3", {"wrn-34-10", "wrn-34-20"}),
    ("recipe use cifar10-f", {"cifar10-fast"}),
    ("store ver", {"verify"}),
]


@pytest.mark.parametrize(("line", "offered"), OFFERED, ids=[line for line, _ in OFFERED])
def test_completion_offers_what_can_be_named(line, offered):
    """As the shell asks for it."""
    asked = {"COMP_WORDS": f"ltd-pipe {line}", "COMP_CWORD": str(line.count(" ") + 1)}
    environment = os.environ | asked | {"_LTD_PIPE_COMPLETE": "bash_complete"}
    words = [sys.executable, "-m", "ltd_pipe"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert {answer.partition(",")[2] for answer in done.stdout.split()} == offered, done.stderr


def test_completion_offers_all_networks_of_ours():
    """Their names are written once more there, so that it loads no torch."""
    (option,) = (one for one in train.params if one.name == "field_architecture")
    offered = {one.value for one in option.shell_complete(click.Context(cli), "")}
    assert offered == {*NETWORKS, "timm:", "torchvision:"}


def test_a_mistyped_option_is_guessed(ltd_pipe):
    """As a mistyped command is."""
    outcome = ltd_pipe("train", "--lerning-rate", "1")
    assert outcome.code == 2
    assert "--learning-rate" in outcome.err


FOREIGN = {
    "report": (["report", "--out"], "photo.jpg"),
    "card": (["card", "data/student/model.safetensors", "--out"], "photo.jpg"),
    "metrics": (["evaluate", "--metrics"], "photo.jpg"),
    "settings of metrics elsewhere": (
        ["evaluate", "--metrics", "new.json", "--out"],
        "settings.json",
    ),
    "weights": (["train", "--out"], "model.safetensors"),
    "teacher": (["teacher", "--out"], "model.safetensors"),
    "betons": (["prepare", "--out"], "train.beton"),
    "audit": (["audit", "--out"], "audit.json"),
    "table": (["store", "convert", "data/labels.zarr", "--to", "npz", "--out"], "photo.jpg"),
}


@pytest.mark.parametrize(("words", "name"), FOREIGN.values(), ids=FOREIGN)
def test_force_replaces_results_of_its_kind_only(ltd_pipe, project, words, name):
    """A slip of the keyboard does not cost a photograph; --force or not, nothing is computed."""
    Path("mine").mkdir()
    path = Path("mine") / name
    path.write_bytes(b"\xff\xd8\xff\xe0 a photograph")
    outcome = ltd_pipe(*words, path if name == "photo.jpg" else "mine", "--force")
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{path}: is no " in outcome.err
    assert path.read_bytes() == b"\xff\xd8\xff\xe0 a photograph"


NAMED = {
    "model": ["evaluate", "nothing.pt"],
    "audited": ["audit", "nothing.pt"],
    "weights": ["evaluate", "torchvision:resnet18", "--weights", "nothing.pt"],
    "source": ["evaluate", "--transfer-from", "nothing.pt"],
    "labels": ["train", "--labels", "nothing.zarr"],
    "asked teacher": ["train", "--label-kind", "live", "--teacher", "nothing.pt"],
    "teacher": ["label", "--teacher", "nothing.pt"],
    "checkpoint": ["teacher", "--checkpoint", "nothing.pt"],
}


@pytest.mark.parametrize("words", NAMED.values(), ids=NAMED)
def test_what_was_named_is_looked_for_first(ltd_pipe, project, words):
    """Before defaults that are not there either, and before anything is read."""
    shutil.move("data", "elsewhere")
    outcome = ltd_pipe(*words)
    assert (outcome.code, outcome.out) == (1, "")
    assert "nothing." in outcome.err
    assert "no such file" in outcome.err
    assert "data/t" not in outcome.err


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (["train", "--labels", "nothing.zarr"], "label"),
        (["label", "--teacher", "nothing.pt"], "teacher"),
        (["evaluate", "--data", "nothing.beton"], "prepare"),
    ],
)
def test_what_makes_a_missing_file_is_named(ltd_pipe, project, words, made):
    """Whoever begins in the middle learns what comes before."""
    assert f"'ltd-pipe {made}' makes one." in ltd_pipe(*words).err


STAGES = """
stages:
  prepare:
    cmd: python -m ltd_pipe prepare
    outs: [data/train.beton, data/train.beton.json, data/test.beton, data/test.beton.json]
  student:
    cmd: python -m ltd_pipe train
    outs: [data/student]
  evaluate:
    cmd: python -m ltd_pipe evaluate
    metrics:
      - data/metrics.json: {cache: false}
"""
TRACKED = {
    ("train", "--force"): "data/student is an output of stage student",
    ("evaluate", "--force"): "data/metrics.json is an output of stage evaluate",
    ("prepare", "--force"): "data/train.beton is an output of stage prepare",
    ("train", "--out", "other"): None,
}


@pytest.mark.parametrize(("words", "said"), TRACKED.items(), ids=map(" ".join, TRACKED))
def test_what_dvc_would_discard_is_said_before(ltd_pipe, project, monkeypatch, words, said):
    """In one line; not of another folder, and not to DVC itself."""
    Path("dvc.yaml").write_text(STAGES)
    # Refused after it, before the work.
    given = [*words, "--data", "params.yaml"] if words[0] != "prepare" else words
    note = [line for line in ltd_pipe(*given).err.splitlines() if line.startswith("note: ")]
    assert [said in line and "dvc commit -f" in line for line in note] == [True] * bool(said)
    monkeypatch.setenv("DVC_STAGE", words[0])
    assert "note: " not in ltd_pipe(*given).err


@pytest.mark.parametrize(
    ("verb", "text"),
    [
        ("train", "trivialaugment, randaugment:N-M"),
        ("train", "rslad, ard, adaad: weight"),
        ("train", "torch.compile's mode"),
        ("train", "Weight, at the end"),
        ("train", "[default: true]"),
        ("prepare", "digits comes with"),
    ],
)
def test_what_is_to_be_typed_is_written_as_it_is_typed(ltd_pipe, verb, text):
    """A sentence of --help begins with a capital letter, a value does not."""
    assert text in " ".join(ltd_pipe(verb, "--help").out.split())
