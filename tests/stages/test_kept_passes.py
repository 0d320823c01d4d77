"""A run goes on in the precision that it began with, whatever would be measured now."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltd_pipe.device import PrecisionSettings
from ltd_pipe.models.facts import read_facts
from ltd_pipe.stages.fitting import _Screen

ROOT = Path(__file__).parents[2]
PARAMS = """
device: cpu
prepare: {dataset: digits, channels: 1}
teacher: {architecture: small-cnn-w4, epochs: 2, batch_size: 32, images: 96}
label: {temperature: auto:0.9}
train:
  {architecture: small-cnn-w4, epochs: 2, batch_size: 32, images: 96, eps: 0.1,
   step_size: 0.05, attack_steps: 1, validation_attack_steps: 1, label_kind: onehot, ema_decay: 0.9}
evaluate: {eps: 0.1}
"""
# Float16 is never chosen by measuring: who trains in it has taken it over.
FIRST = PrecisionSettings("float16", measured={"a": 1.0, "b": 2.0})
SECOND = PrecisionSettings("float32", channels_last=False, measured={"a": 2.0, "b": 1.0})
KEPT = "passes in float16, channels last, not compiled, as when this run began"


@pytest.fixture
def folder(digits, tmp_path, monkeypatch):
    """Prepared digits, as the working directory, and one thread, as torchrun gives."""
    shutil.copytree(digits, tmp_path / "data")
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


def measure(monkeypatch, passes):
    """Let that be what the stopwatch says from now on."""
    monkeypatch.setattr("ltd_pipe.training.run.choose_precision", lambda *_, **__: passes)


@pytest.fixture
def interrupted(folder, ltd_pipe, monkeypatch):
    """A function that begins a command, in float16, and sends it SIGTERM after a step, the 2nd."""

    def begin(*words, step=2):
        def stop(_, done, *__):
            if done == step:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as during:
            measure(during, FIRST)
            during.setattr(_Screen, "step", stop)
            outcome = ltd_pipe(*words)
        assert outcome.code == 130
        assert f"Interrupted after step {step} of 6" in outcome.err
        assert KEPT not in outcome.err
        assert "goes on after" not in outcome.err
        return outcome

    return begin


def weights(verb):
    return Path(f"data/{verb}/model.safetensors").read_bytes()


def steps(monkeypatch):
    """The numbers of the steps that are shown from now on."""
    seen = []
    monkeypatch.setattr(_Screen, "step", lambda _, done, *__: seen.append(done))
    return seen


VERBS = {"train": "student", "teacher": "teacher"}


@pytest.mark.parametrize(("verb", "out"), VERBS.items(), ids=VERBS)
def test_another_measurement_does_not_end_a_run(interrupted, ltd_pipe, monkeypatch, verb, out):
    """It goes on after its second step, to the bits of a run that was not interrupted."""
    interrupted(verb)
    measure(monkeypatch, SECOND)
    seen = steps(monkeypatch)
    outcome = ltd_pipe(verb)
    assert outcome.code == 0, outcome.err
    assert KEPT in outcome.err
    assert seen == list(range(3, 7))
    assert not Path("data/state").exists()
    continued = weights(out)
    measure(monkeypatch, FIRST)
    assert ltd_pipe(verb, "--fresh").code == 0
    assert weights(out) == continued


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_that_goes_on_says_after_which_step(interrupted, ltd_pipe, monkeypatch, verb):
    """At once, and its bar begins there, in that epoch."""
    interrupted(verb, step=4)
    shown, resumed = [], _Screen.resumed

    def look(screen, *words):
        resumed(screen, *words)
        (task,) = screen._progress.tasks
        shown.append((task.description, task.completed, task.total))

    monkeypatch.setattr(_Screen, "resumed", look)
    outcome = ltd_pipe(verb)
    assert outcome.code == 0, outcome.err
    assert shown == [(f"{VERBS[verb]}, epoch 2 of 2", 4, 6)]
    assert "goes on after step 4 of 6\n" in outcome.err
    assert outcome.err.index("goes on after") < outcome.err.index("epoch 2  loss")


@pytest.mark.parametrize(("verb", "out"), VERBS.items(), ids=VERBS)
def test_the_seconds_of_a_run_are_never_those_of_its_last_part(interrupted, ltd_pipe, verb, out):
    """What it took before it was interrupted is not known."""
    interrupted(verb, step=4)
    for words, known in ((), False), (("--fresh",), True):
        assert ltd_pipe(verb, *words).code == 0
        timing = json.loads(Path(f"data/{out}/timing.json").read_text())
        assert ("seconds" in timing) is known
        assert timing["images_per_second"] > 0


@pytest.mark.parametrize("verb", VERBS)
def test_another_number_of_threads_does_not_end_a_run(interrupted, ltd_pipe, monkeypatch, verb):
    """It goes on, and says that its result is rounded otherwise; other parameters begin anew."""
    interrupted(verb)
    (state,) = Path("data/state").iterdir()
    seen = steps(monkeypatch)
    outcome = ltd_pipe(verb, "--epochs", "1")
    assert outcome.code == 0, outcome.err
    assert seen == [1, 2, 3]
    assert f"note: this run begins anew: {state} is of an interrupted one with" in outcome.err
    assert "params.epochs 2, which is 1 here" in outcome.err
    torch.set_num_threads(2)
    seen.clear()
    outcome = ltd_pipe(verb, "--force")
    assert outcome.code == 0, outcome.err
    assert seen == [3, 4, 5, 6]
    assert f"warning: {state}: this run began with hardware.threads 1, which is 2" in outcome.err


@pytest.mark.parametrize(("verb", "out"), VERBS.items(), ids=VERBS)
def test_a_fresh_run_is_measured_anew(interrupted, ltd_pipe, monkeypatch, verb, out):
    """Nothing of the interrupted one is left, its choice included."""
    interrupted(verb)
    measure(monkeypatch, SECOND)
    seen = steps(monkeypatch)
    outcome = ltd_pipe(verb, "--fresh")
    assert outcome.code == 0, outcome.err
    assert KEPT not in outcome.err
    assert seen == list(range(1, 7))
    facts = read_facts(Path(f"data/{out}/model.safetensors"))
    assert facts["passes"] == SECOND.decides
    assert not Path("data/state").exists()


def test_a_named_precision_is_another_run(interrupted, ltd_pipe, monkeypatch):
    """Who names one does not get another, and the interrupted run is kept."""
    interrupted("teacher")
    state = sorted(Path("data/state").iterdir())
    seen = steps(monkeypatch)
    outcome = ltd_pipe("teacher", "--precision", "float32", "--channels-last", "true")
    assert outcome.code == 0, outcome.err
    assert seen[0] == 1
    assert sorted(Path("data/state").iterdir()) == state


@pytest.mark.parametrize("error", [RuntimeError, MemoryError], ids=["torch's", "python's"])
def test_passes_of_a_runs_own_size_are_measured(folder, ltd_pipe, monkeypatch, error):
    """A part of a batch where the batch does not fit; where the part does not, what to set."""
    # Python's own says nothing.
    words = ("can't allocate memory for {}",) * (error is RuntimeError)

    def starve(_, images, **__):
        raise error(*(text.format(images) for text in words))

    monkeypatch.setattr("ltd_pipe.training.run.choose_precision", starve)
    outcome = ltd_pipe("train", "--accumulation-steps", "3")
    assert outcome.code == 1
    assert "cpu: 32 images per step: do not fit into memory" in outcome.err
    assert (words[0].format(11) if words else "(MemoryError)") in outcome.err
    remedy = "accumulation_steps: 6, which makes steps of as many images, or batch_size: 16."
    assert remedy in outcome.err


@pytest.mark.slow
def test_all_ranks_go_on_in_it(interrupted):
    """Two processes go on from where one alone was; they really measure, had they to."""
    interrupted("train")
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*runner, "--nproc-per-node=2", "-m", "ltd_pipe", "train"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count(KEPT) == 1
    assert read_facts(Path("data/student/model.safetensors"))["passes"] == FIRST.decides
    assert not Path("data/state").exists()
