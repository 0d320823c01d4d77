"""Stages under torchrun, and the example for two machines: two of its processes on this one."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ltd_pipe.models.facts import read_facts
from ltd_pipe.stages.cli import main

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def environment(**more):
    path = f"{BIN}:{os.environ['PATH']}"
    return (
        os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | more
    )


@pytest.mark.slow
def test_two_machines_train_one_student(project):
    """examples/two_machines.sh, started twice as it says; the first process publishes."""
    command = ["bash", ROOT / "examples/two_machines.sh", "localhost", "--label-kind", "onehot"]
    settings = environment(PROCESSES="1", PORT=str(free_port()))
    machines = [
        subprocess.Popen(
            [*command, "--out", "data/pair"],
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [machine.communicate() for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "".join(out for out, _ in outputs).count("data/pair/model.safetensors: epoch") == 1
    assert read_facts(Path("data/pair/model.safetensors"))["kind"] == "student"


def test_only_the_first_process_does_what_is_not_shared(project, monkeypatch, capsys):
    """Under torchrun a second `evaluate` would only be in the first one's way."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["ltd-pipe", "evaluate", "no-such-file"])
    main()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["slurm.sbatch", "two_machines.sh"])
def test_the_scripts_are_shell(name):
    """Their syntax is sound, and each starts the stage under torchrun with a meeting point."""
    script = ROOT / "examples" / name
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert "torchrun" in text
    assert "--rdzv-endpoint" in text
    assert "-m ltd_pipe train" in text
