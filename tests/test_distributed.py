"""Processes under torchrun: who they are, and what they agree on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refusals import refused

from ltd_pipe.distributed import World
from ltd_pipe.errors import MachineError

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def test_without_torchrun_a_process_is_alone(monkeypatch):
    """It leads, keeps its device, and decides by itself."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = World.from_environment()
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.device(CPU) == CPU
    assert world.broadcast_config({"a": 1}, lambda: 7) == 7


def test_torchrun_says_who_a_process_is(monkeypatch):
    """By its environment."""
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert World.from_environment() == World(5, 8, 1)
    assert not World.from_environment().is_main


@pytest.mark.parametrize("found", [0, 2])
def test_a_process_without_a_gpu_is_refused(monkeypatch, found):
    """Two processes on one GPU would only be in each other's way."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with refused(
        MachineError,
        expected=f"--nproc-per-node {found} or less",
        found=re.compile(r"\b2$"),
    ):
        World(2, 4, 2).device(torch.device("cuda"))


AGREE = """
import os, sys
from ltd_pipe.errors import LtdPipeError
from ltd_pipe.distributed import World
world = World.from_environment()
try:
    key = {"software": {"torch": "2." + (sys.argv[1] if world.rank == 1 else "1")}}
    found = world.broadcast_config(key, lambda: f"decided by {world.rank}")
    os.write(1, f"rank {world.rank}: {found}\\n".encode())
except LtdPipeError as error:
    os.write(1, f"rank {world.rank}: {error}\\n".encode())
"""


def together(script, *words, processes=3):
    """What a script prints in several processes under torchrun, by line."""
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*runner, f"--nproc-per-node={processes}", script, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return sorted(done.stdout.splitlines())


@pytest.mark.slow
def test_the_first_process_decides_for_all(tmp_path):
    """And all learn what it decided."""
    (tmp_path / "agree.py").write_text(AGREE)
    found = together(str(tmp_path / "agree.py"), "1")
    assert found == [f"rank {rank}: decided by 0" for rank in range(3)]


@pytest.mark.slow
def test_a_process_at_other_work_stops_all(tmp_path):
    """Each says which one differs, and in what."""
    (tmp_path / "agree.py").write_text(AGREE)
    for line in together(str(tmp_path / "agree.py"), "2"):
        assert "rank 1 of 3: is at other work than rank 0: software.torch: " in line
        assert "expected '2.1', found '2.2'" in line
