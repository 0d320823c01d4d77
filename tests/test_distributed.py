"""Processes under torchrun: who they are, what they agree on, and which images each takes."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

from ltd_pipe.distributed import World, require_shards, shard, step_parts
from ltd_pipe.errors import MachineError, ParamsError

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


PATIENT = """
import os, time
from datetime import timedelta
from ltd_pipe.distributed import World
world = World.from_environment()
with world.connected(timedelta(seconds=10)):
    found = world.broadcast_config({}, lambda: time.sleep(15) or f"decided by {world.rank}")
os.write(1, f"rank {world.rank}: {found}\\n".encode())
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
def test_a_long_decision_is_waited_for(tmp_path):
    """Longer than for a process that has not come: a calibration of many images takes a while."""
    (tmp_path / "patient.py").write_text(PATIENT)
    found = together(str(tmp_path / "patient.py"))
    assert found == [f"rank {rank}: decided by 0" for rank in range(3)]


@pytest.mark.slow
def test_a_process_at_other_work_stops_all(tmp_path):
    """Each says which one differs, and in what."""
    (tmp_path / "agree.py").write_text(AGREE)
    for line in together(str(tmp_path / "agree.py"), "2"):
        assert "rank 1 of 3: is at other work than rank 0: software.torch: " in line
        assert "expected '2.1', found '2.2'" in line


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_make_up_the_steps(processes):
    """Dealt out one by one, and all alike where a step is whole."""
    order = np.random.default_rng(0).permutation(np.arange(1000, 1103))
    worlds = [World(rank, processes, rank) for rank in range(processes)]
    shares = [shard(order, 24, world) for world in worlds]
    size = 24 // processes
    assert {step for _, step in shares} == {size}
    for step in range(4):
        dealt = [mine[step * size : (step + 1) * size] for mine, _ in shares]
        whole = np.stack(dealt, axis=1).reshape(-1)
        np.testing.assert_array_equal(whole, order[step * 24 : (step + 1) * 24])
    last = [mine[4 * size :] for mine, _ in shares]
    assert sorted(np.concatenate(last)) == sorted(order[96:])
    assert min(map(len, last)) >= 1


def parts_of(images, most, processes, unit=1, **how):
    """The images of each part of a step, in each process."""
    found = []
    for rank in range(processes):
        world = World(rank, processes, rank)
        mine, _ = shard(np.arange(images), 24, world, unit)
        found.append([mine[part].tolist() for part in step_parts(images, most, world, unit, **how)])
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("unit", [1, 2])
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_parts_of_a_step_are_the_same_on_any_number_of_processes(unit, processes, most):
    """In whole steps and last ones that are not refused, as long as each has some of each."""
    for images in range(unit * (processes - 1) + 1, 25):
        shared = parts_of(images, most, processes, unit)
        assert all(all(part) for part in shared)
        together = [sorted(itertools.chain(*part)) for part in shared]
        assert len(together) == 1 or min(map(len, together)) >= 2
        count = min(most, -(-images // unit) // processes)
        assert together == [part for (part,) in parts_of(images, count, 1, unit)]


@pytest.mark.parametrize("unit", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_statistics_of_its_own_are_of_two_images(unit, processes):
    """In each part and process, unless the whole step has fewer."""
    for images in range(unit * (processes - 1) + 1, 25):
        parts = parts_of(images, 8, processes, unit, synced=False)
        assert len(parts) == 1 or all(len(mine) >= 2 for part in parts for mine in part), images


def test_what_cannot_be_shared_is_refused():
    """An uneven batch, and a last step with too few images."""
    require_shards(103, 24, 4)
    require_shards(96, 24, 24)
    with refused(
        ParamsError, where="batch_size", what="among", expected="a multiple of 5", found=24
    ):
        require_shards(103, 24, 5)
    with refused(
        ParamsError,
        where="batch_size",
        what="leaves 1",
        expected="at least one for each of 2 processes",
        remedy="images: 96",
    ):
        require_shards(97, 24, 2)


@pytest.mark.parametrize(("images", "batch", "unit"), [(1157, 128, 1), (96 + 7, 24, 2), (8, 4, 1)])
def test_each_process_needs_two_images_for_batch_statistics_of_its_own(images, batch, unit):
    """In every step, as one process alone; synchronised ones need one."""
    require_shards(images, batch, 4, unit)
    with refused(
        ParamsError, where="batch_size", expected=re.compile("at least two for each of 4")
    ):
        require_shards(images, batch, 4, unit, synced=False)
    require_shards(1024 + 8, 128, 4, unit, synced=False)
    require_shards(images, 128, 1, unit, synced=False)


@pytest.mark.parametrize("images", [96, 103, 106, 101])
def test_pairs_are_not_parted(images):
    """Neighbours that are mixed with each other go to one process, also in the last step."""
    order, worlds = np.arange(images) * 3, [World(rank, 4) for rank in range(4)]
    shares = [shard(order, 24, world, unit=2) for world in worlds]
    assert {size for _, size in shares} == {6}
    assert sorted(np.concatenate([mine for mine, _ in shares])) == order.tolist()
    for mine, _ in shares:
        pairs = mine[: len(mine) // 2 * 2].reshape(-1, 2)
        assert (pairs[:, 0] // 3 % 2 == 0).all()
        assert (pairs[:, 1] == pairs[:, 0] + 3).all()
    # The one without a partner is the last of all.
    odd = [mine[-1] for mine, _ in shares if len(mine) % 2]
    assert odd == ([order[-1]] if images % 2 else [])


def test_pairs_that_cannot_be_shared_are_refused():
    """Two images for each process, in every step."""
    require_shards(96 + 7, 24, 4, unit=2)
    with refused(
        ParamsError, where="batch_size", what="together", expected="a multiple of 16", found=24
    ):
        require_shards(96, 24, 8, unit=2)
    with refused(ParamsError, where="batch_size", what="leaves 6"):
        require_shards(96 + 6, 24, 4, unit=2)
