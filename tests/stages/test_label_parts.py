"""`label` by many: parts, ranks, and what is refused; the store is always the same bytes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ltd_pipe.images.beton import write_beton
from ltd_pipe.images.sources import open_source
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.labelling import Labeller
from ltd_pipe.models.registry import build
from ltd_pipe.params import PrepareParams
from ltd_pipe.publish import exclusive
from ltd_pipe.text import differences

ROOT = Path(__file__).parents[2]
SIZES = ("--batch-size", "16", "--chunk-rows", "32")
WORDS = ("label", "--teacher", "data/teacher/model.safetensors", *SIZES)
# 240 images in chunks of 32.
CHUNKS = 8
STATE = Path("data/state/parts-again.zarr")


def drafted():
    """When each finished chunk of the drafts of several views was written."""
    return {
        (path.parents[1] / f"logits-0/logits/c/{path.stem}/0/0").stat().st_mtime_ns
        for path in Path("data/state").glob("*/chunks/*.json")
    }


def tree(folder):
    """All files of a folder by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def label(ltd_pipe, project):
    """A function that labels into data/again.zarr, and fails where the command does."""

    def run(*words, code=0):
        outcome = ltd_pipe(*WORDS, "--out", "data/again.zarr", *words)
        assert outcome.code == code, outcome.err
        return outcome

    return run


@pytest.fixture
def alone(ltd_pipe, project):
    """The files of a store that one process made in one go."""
    outcome = ltd_pipe(*WORDS, "--out", "data/alone.zarr")
    assert outcome.code == 0, outcome.err
    return tree(Path("data/alone.zarr"))


def test_parts_make_the_store_that_one_process_makes(label, alone):
    """In any order, one of them twice, by different divisions, the rest made at the end."""
    assert "part 3/4 is whole; 6 chunks of other parts are missing" in label("--part", "3/4").out
    label("--part", "3/4")
    label("--part", "1/2")
    assert json.loads(label("--part", "7/11", "--json").out) == {
        "part": "7/11",
        "missing_chunks": 2,
    }
    label()
    assert tree(Path("data/again.zarr")) == alone
    assert not STATE.exists()
    assert not Path("data/.again.zarr.lock").exists()


def test_all_parts_then_only_publish(label, alone):
    """When nothing is missing, the last part says so."""
    label("--part", "1/2")
    assert "nothing is missing: run it without --part" in label("--part", "2/2").out
    label()
    assert tree(Path("data/again.zarr")) == alone


def test_a_damaged_chunk_of_a_part_is_made_again(label, alone):
    """A machine that lost power may leave one."""
    for number in (1, 2):
        label("--part", f"{number}/2")
    chunk = STATE / "logits-0/logits/c/4/0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    label()
    assert tree(Path("data/again.zarr")) == alone


def test_more_parts_than_chunks_leave_some_with_nothing_to_do(label):
    """They end well."""
    label("--part", f"1/{3 * CHUNKS}")
    assert not (STATE / "labels").exists()


@pytest.mark.parametrize("words", [("--part", "2/2"), ()], ids=["another part", "the whole"])
def test_a_part_made_otherwise_is_refused(label, words):
    """Naming what differs: here another torch, which might round otherwise."""
    label("--part", "1/2")
    key = json.loads((STATE / "draft.json").read_text())
    key["facts"]["software"]["torch"] = "1.0"
    (STATE / "draft.json").write_text(json.dumps(key))
    error = label(*words, code=1).err
    assert "draft of other labels: facts.software.torch: expected '2" in error
    assert "found '1.0'. Remove the folder" in error


def test_a_part_of_another_teacher_is_refused(label, ltd_pipe):
    """The same command with other weights is not the same work."""
    label("--part", "1/2")
    student = ("--teacher", "data/student/model.safetensors", *SIZES)
    outcome = ltd_pipe("label", *student, "--out", "data/again.zarr", "--part", "2/2")
    assert outcome.code == 1
    assert "holds the draft of other labels: facts.teachers" in outcome.err
    assert "batch_size: expected 32, found 16" in label("--batch-size", "32", code=1).err


FOREIGN = ("--teacher", "net.pt", "--arch", "small-cnn-w8")
# What a part is made with instead of FOREIGN on data/train.beton, and which facts then differ.
OTHERWISE = {
    "normalised": ("--mean 0.5 --std 0.25", "facts.teachers.0.mean"),
    "another std": ("--mean 0 --std 0.25", "facts.teachers.0.std"),
    "pixels of a JPEG beton": ("--data jpeg.beton", "facts.labelling.pixels_sha256"),
}


@pytest.fixture
def foreign(project):
    """Weights of another project, and the project's images in another encoding."""
    torch.save(build("small-cnn-w8", 10, (1, 8, 8)).state_dict(), "net.pt")
    params = PrepareParams(dataset="digits", channels=1, encoding="jpeg", jpeg_quality=50)
    source = open_source(params, "train").take(np.arange(240))
    write_beton(source, Path("jpeg.beton"), params, "train")


@pytest.mark.parametrize(("words", "differs"), OTHERWISE.values(), ids=OTHERWISE)
def test_answers_to_other_inputs_never_become_one_store(ltd_pipe, foreign, words, differs):
    """Neither as a part, nor where an interrupted run goes on; the store says what it was."""
    label = ("label", *FOREIGN, *SIZES, "--temperature", "1", "--out", "data/again.zarr")
    words = words.split()
    assert ltd_pipe(*label, "--part", "1/2").code == 0
    for again in (("--part", "2/2"), ()):
        outcome = ltd_pipe(*label, *words, *again)
        assert outcome.code == 1
        assert f"holds the draft of other labels: {differs}: expected" in outcome.err
    shutil.rmtree("data/state")
    with interrupted():
        assert ltd_pipe(*label).code == 130
    (left,) = Path("data/state").iterdir()
    assert ltd_pipe(*label, *words).code == 0
    assert left.exists()
    assert ltd_pipe(*label, "--out", "data/plain.zarr").code == 0
    other, plain = (SoftLabels.open(Path(f"data/{name}.zarr")) for name in ("again", "plain"))
    found = differences(plain.attributes.decides, other.attributes.decides)
    assert next(f"facts.{name}" for name, *_ in found) == differs


def test_two_labellings_at_once_in_one_folder_have_their_own_drafts(ltd_pipe, project):
    """Of equal key but for the temperature; the same output at another one goes on."""
    label = (*WORDS, "--temperature")
    with interrupted():
        assert ltd_pipe(*label, "4", "--out", "data/t4.zarr").code == 130
    (draft,) = Path("data/state").iterdir()
    whole = tree(draft)
    assert len(whole) > 1
    # Another output does not take it, nor away.
    assert ltd_pipe(*label, "1", "--out", "data/t1.zarr").code == 0
    assert tree(draft) == whole
    kept = {path.stat().st_ino for path in draft.glob("logits-0/logits/c/*/0")}
    assert ltd_pipe(*label, "1", "--out", "data/t4.zarr").code == 0
    assert kept <= {path.stat().st_ino for path in Path("data/t4.zarr").glob("logits/c/*/0")}
    assert tree(Path("data/t4.zarr")) == tree(Path("data/t1.zarr"))


@contextlib.contextmanager
def interrupted():
    """Ctrl-C after the third batch, in this process."""
    seen, answers = [], Labeller.answers

    def counting(*given):
        seen.append(given)
        if len(seen) > 3:
            raise KeyboardInterrupt
        return answers(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeller, "answers", counting)
        yield


def test_parts_of_a_top_k_store_may_measure_a_temperature_that_differs_by_rounding(label):
    """As other processors do: the first part's is taken. Not one that was asked for otherwise."""
    words, measured = ("--top-k", "3", "--temperature"), Labeller.temperature
    label(*words, "auto:0.9", "--part", "1/2")
    assert "draft of other labels: temperature" in label(*words, "auto:0.8", code=1).err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeller, "temperature", lambda *given: measured(*given) * (1 + 1e-5))
        label(*words, "auto:0.9")
    found = SoftLabels.open(Path("data/again.zarr")).attributes.temperature
    label(*words, "auto:0.9", "--force")
    assert SoftLabels.open(Path("data/again.zarr")).attributes.temperature == found


def test_a_part_is_made_by_one_process_at_a_time(label):
    """On one machine; another part may be made meanwhile."""
    with (
        exclusive(Path("data/again.zarr.part-1-of-2")),
        exclusive(Path("data/again.zarr"), shared=True),
    ):
        assert "again.zarr.part-1-of-2: process" in label("--part", "1/2", code=1).err
        assert "other processes prepare parts of it" in label(code=1).err
        label("--part", "2/2")


def test_a_part_waits_for_no_run_of_the_whole(label):
    """It is refused, and told whose turn it is."""
    with exclusive(Path("data/again.zarr")):
        assert f"process {os.getpid()} is writing to it" in label("--part", "1/2", code=1).err


def test_a_part_of_a_store_that_is_there_is_refused(label):
    """Before any work; a machine that comes too late makes nothing."""
    label()
    assert "exists already" in label("--part", "1/2", code=1).err
    label("--part", "1/2", "--force")


def test_no_part_is_a_usage_that_is_told(label):
    """With an example, and exit code 2."""
    assert "'--part': expected one such as 3/8" in label("--part", "9/8", code=2).err


def torchrun(processes, *words, before=()):
    """`label` in several processes, started by torchrun; `before` is searched for modules first."""
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*runner, f"--nproc-per-node={processes}", "-m", "ltd_pipe", *WORDS, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*before, ROOT / "src")))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# What Python imports first: each rank says that it is another processor.
UNEQUAL = """
import os

if "RANK" in os.environ:
    from ltd_pipe import provenance

    provenance.processor = lambda device: "processor " + os.environ["RANK"]
"""


@pytest.mark.slow
def test_ranks_make_the_store_that_one_process_makes(alone, tmp_path):
    """Three processes on three kinds of processor, and one that says so."""
    (tmp_path / "sitecustomize.py").write_text(UNEQUAL)
    run = torchrun(3, "--out", "data/again.zarr", before=[tmp_path])
    out, error = run.communicate()
    assert run.returncode == 0, error
    assert out.count("240 soft labels") == 1
    assert tree(Path("data/again.zarr")) == alone


@pytest.mark.slow
def test_ranks_share_a_part(label, alone):
    """A machine of several processes among several machines."""
    run = torchrun(2, "--out", "data/again.zarr", "--part", "2/2")
    out, error = run.communicate()
    assert run.returncode == 0, error
    assert "part 2/2 is whole; 4 chunks of other parts are missing" in out
    label()
    assert tree(Path("data/again.zarr")) == alone


# What Python imports first. A chunk of logits comes into being by a rename: at the second one of
# this process, a signal, wherever the loop is by then.
STRIKE = """
import os, signal, sys
renamed = 0

def strike(event, arguments):
    global renamed
    if event == "os.rename" and "/logits/c/" in str(arguments[1]):
        renamed += 1
        if renamed == 2:
            os.kill(os.getpid(), signal.{signal})

if os.environ.get("RANK") == {rank!r}:
    sys.addaudithook(strike)
"""
VIEWS = ("--views", "3", "--augmentation", "crop:1")


@pytest.fixture
def strike(tmp_path):
    """A function that makes a folder to be searched for modules first, for a signal in a rank."""

    def make(number, rank=None):
        (tmp_path / "sitecustomize.py").write_text(STRIKE.format(signal=number.name, rank=rank))
        return tmp_path

    return make


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_and_the_rest_is_kept(ltd_pipe, project, strike):
    """Another number of processes makes only what is missing."""
    words = (*VIEWS, "--out", "data/again.zarr")
    run = torchrun(2, *words, before=[strike(signal.SIGKILL, rank="1")])
    _, error = run.communicate()
    assert run.returncode != 0
    assert "SIGKILL" in error
    assert not Path("data/again.zarr").exists()
    kept = drafted()
    assert 0 < len(kept) < CHUNKS
    again = torchrun(3, *words)
    _, error = again.communicate()
    assert again.returncode == 0, error
    # Published as second names of the same files: those that were kept were not made again.
    assert kept <= {
        path.stat().st_mtime_ns for path in Path("data").glob("again.zarr/logits/c/*/0/0")
    }
    outcome = ltd_pipe(*WORDS, *VIEWS, "--out", "data/alone.zarr")
    assert outcome.code == 0, outcome.err
    assert tree(Path("data/again.zarr")) == tree(Path("data/alone.zarr"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_run_that_is_told_to_stop_ends_at_once_and_goes_on_later(
    ltd_pipe, project, strike, number
):
    """Exit code 130, one line, no store; the next run makes what is missing."""
    words = (*WORDS, *VIEWS, "--out", "data/again.zarr")
    command = [sys.executable, "-m", "ltd_pipe", *words]
    environment = os.environ | {"PYTHONPATH": f"{strike(number)}{os.pathsep}{ROOT / 'src'}"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, len(run.stderr.strip().splitlines())) == (130, 1), run.stderr
    assert "Run it again: what is labelled is kept." in run.stderr
    assert not Path("data/again.zarr").exists()
    kept = drafted()
    assert 0 < len(kept) < CHUNKS
    outcome = ltd_pipe(*words)
    assert outcome.code == 0, outcome.err
    assert kept <= {
        path.stat().st_mtime_ns for path in Path("data").glob("again.zarr/logits/c/*/0/0")
    }
    assert not Path("data/state").exists()


def test_labels_that_begin_anew_say_what_differs(ltd_pipe, project, monkeypatch):
    """Of another output's run nothing is said."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    words = (*WORDS, "--out", "data/again.zarr")
    with monkeypatch.context() as during:
        during.setattr(Labeller, "label", stop)
        assert ltd_pipe(*words).code == 130
    (state,) = Path("data/state").iterdir()
    assert "begins anew" not in ltd_pipe(*WORDS, "--out", "data/other.zarr").err
    outcome = ltd_pipe(*words, "--batch-size", "32")
    assert outcome.code == 0, outcome.err
    assert f"note: this run begins anew: {state} is of an interrupted one with" in outcome.err
    assert "params.batch_size 16, which is 32 here" in outcome.err
