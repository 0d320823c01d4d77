"""`ltd-pipe evaluate`: what it prints, what it writes, and that it survives being killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

STUDENT = "data/student/model.safetensors"


def evaluate(ltd_pipe, *words):
    outcome = ltd_pipe("evaluate", STUDENT, "--force", *words)
    assert outcome.code == 0, outcome.err
    return outcome


def test_every_accuracy_has_its_threat_interval_and_n(ltd_pipe, project):
    """And without AutoAttack the output says that this is no claim of robustness."""
    out = evaluate(ltd_pipe, "--attacks", "fgsm,cw-5").out
    for name in ("FGSM", "CW-PGD-5", "PGD-5", "all attacks together"):
        (line,) = (line for line in out.splitlines() if line.strip().startswith(name))
        assert "95 % interval" in line
        assert "Linf 0.1, 40 images" in line
    assert "AutoAttack was left out" in out
    assert "not measured: AutoAttack, transfer attacks, " in out


def test_json_is_the_file(ltd_pipe, project):
    """`--json` prints metrics.json."""
    found = json.loads(evaluate(ltd_pipe, "--json").out)
    assert found == json.loads(Path("data/metrics.json").read_text())
    assert (found["n"], found["norm"], found["quick"]) == (40, "linf", False)


def test_samples_can_be_compared_between_runs(ltd_pipe, project):
    """By index and hash, read by plain numpy; classes have their own numbers."""
    evaluate(ltd_pipe)
    found = np.load("data/evaluation/per_sample.npz", allow_pickle=False)
    metrics = json.loads(Path("data/metrics.json").read_text())
    assert found["correct_clean"].mean() == pytest.approx(metrics["clean_accuracy"])
    assert found["correct_pgd"].mean() == pytest.approx(metrics["pgd_accuracy"])
    assert len(set(found["sample_hash"].tolist())) == 40
    rows = json.loads(Path("data/evaluation/per_class.json").read_text())
    assert [row["class"] for row in rows] == [str(digit) for digit in range(10)]


def test_an_l2_ball_is_one_option(ltd_pipe, project):
    """Its radius may be above one, and stands in every line."""
    words = ("--norm", "l2", "--eps", "1.5", "--eps-grid", "none", "--metrics", "l2.json")
    assert "L2 1.5, 40 images" in evaluate(ltd_pipe, *words).out
    assert json.loads(Path("l2.json").read_text())["norm"] == "l2"


def test_a_wrong_unit_is_refused(ltd_pipe, project):
    """In Linf a radius above one is grey levels: the message says how to write them."""
    outcome = ltd_pipe("evaluate", STUDENT, "--force", "--eps", "8")
    assert outcome.code == 1
    assert "at most 1, in pixel units, found 8; perhaps 8/255 is meant" in outcome.err


def test_a_first_look_is_marked(ltd_pipe, project):
    """On the screen and in the file."""
    out = evaluate(ltd_pipe, "--quick").out
    assert "QUICK LOOK" in out
    assert "PGD-10 " in out
    assert json.loads(Path("data/metrics.json").read_text())["quick"] is True


def started(*words):
    command = [sys.executable, "-m", "stages", "evaluate", STUDENT, "--force", *words]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )


def kill_during(attack, *words):
    """Start an evaluation and kill it once it has finished a batch of an attack."""
    process = started(*words)
    while not list(Path("data/state").glob(f"evaluate-*/{attack}*.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_and_run_again_it_gives_the_same_bytes(ltd_pipe, project):
    """SIGKILL in the middle of PGD; nothing of the state is left behind."""
    # Long enough that a batch is being computed when the signal comes.
    words = ("--batch-size", "8", "--pgd-steps", "100", "--eps-grid", "0.05,0.1")
    outputs = [Path("data/metrics.json"), *(Path("data/evaluation").glob("*.*"))]
    evaluate(ltd_pipe, *words)
    whole = {path: path.read_bytes() for path in outputs}
    Path("data/metrics.json").unlink()
    kill_during("pgd", *words)
    assert not Path("data/metrics.json").exists()
    evaluate(ltd_pipe, *words)
    assert {path: path.read_bytes() for path in outputs} == whole
    assert not Path("data/state").exists()
