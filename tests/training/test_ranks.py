"""Several processes under torchrun train the student that one alone trains."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from refusals import refused

from ltd_pipe.distributed import World, require_shards, shard
from ltd_pipe.errors import ParamsError
from ltd_pipe.training.trainer import Watcher

ROOT = Path(__file__).parents[2]
ALONE = World()


def together(processes, beton, folder, *cases):
    """Run cases of ranks.py under torchrun."""
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*runner, f"--nproc-per-node={processes}", ranks.__file__, beton.path, folder, *cases],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def alone(beton, folder, case):
    """What one process makes of a case."""
    torch.set_num_threads(1)
    fit = ranks.make_fit(beton, folder, case, ALONE, fresh=True)
    fit.run(Watcher())
    return ranks.result_of(fit)


def load(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


def assert_equal_to_rounding(one, two, relative=1e-4):
    for row, other in zip(one["history"], two["history"], strict=True):
        assert row == pytest.approx(other, rel=relative, abs=1e-6)
    torch.testing.assert_close(one["weights"], two["weights"], rtol=relative, atol=relative)


@pytest.fixture(scope="module")
def pair(train_beton, tmp_path_factory):
    """The folder in which two processes ran all cases that end well."""
    folder = tmp_path_factory.mktemp("pair")
    cases = ("at", "mart-awp", "adr", "parts", "own-statistics")
    done = together(2, train_beton, folder, *cases)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("case", "relative"), [("at", 1e-4), ("mart-awp", 2e-3), ("adr", 1e-4)])
def test_two_processes_train_the_same_student(pair, train_beton, tmp_path, case, relative):
    """Loss curve, accuracies and weights, to rounding; of AWP both passes are shared.

    AWP follows the gradient's direction however small it is, and so enlarges rounding. Not
    TRADES: where its attack begins, the divergence is so flat that the signs of its
    gradient are rounding.
    """
    expected = alone(train_beton, tmp_path, case)
    assert_equal_to_rounding(load(pair, f"{case}-2"), expected, relative)


@pytest.mark.slow
def test_four_processes_train_the_same_student(train_beton, tmp_path):
    """The last step of an epoch has 30 images: 8, 8, 7 and 7."""
    done = together(4, train_beton, tmp_path, "at")
    assert done.returncode == 0, done.stderr
    assert_equal_to_rounding(load(tmp_path, "at-4"), alone(train_beton, tmp_path, "at"))


@pytest.mark.slow
def test_statistics_of_its_own_are_another_run(pair):
    """Without sync_batch_norm each process normalises by its own images, as many codes do."""
    own, shared = load(pair, "own-statistics-2"), load(pair, "at-2")
    assert own["history"][0]["train/loss"] != pytest.approx(
        shared["history"][0]["train/loss"], rel=2e-4
    )
    assert own["history"][-1]["train/loss"] == pytest.approx(
        shared["history"][-1]["train/loss"], rel=0.2
    )


@pytest.mark.slow
def test_parts_of_a_batch_work_on_several_processes(pair):
    """As many messages in each, whatever its number of images: it ended, and learned."""
    history = load(pair, "parts-2")["history"]
    assert history[-1]["train/loss"] < history[0]["train/loss"]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run(train_beton, tmp_path):
    """The other one says so; one process alone goes on from the snapshot, to the same end."""
    done = together(2, train_beton, tmp_path, "killed")
    assert done.returncode != 0
    assert "rank 0 of 2: another process is missing or has ended" in done.stdout
    saved = [file.name for file in sorted((tmp_path / "killed").iterdir())]
    assert saved[-1].startswith("step-000000006")
    continued = ranks.make_fit(train_beton, tmp_path, "killed", ALONE)
    continued.run(Watcher())
    assert_equal_to_rounding(ranks.result_of(continued), alone(train_beton, tmp_path, "killed"))


@pytest.mark.slow
def test_a_request_to_one_process_stops_all(pair, train_beton, tmp_path):
    """After the same step, with one snapshot; run again they end with the same bits."""
    first = together(2, train_beton, tmp_path, "stopped")
    assert first.returncode != 0
    assert first.stdout.count("interrupted") == 2
    assert (tmp_path / "stopped" / "step-000000008-epoch-000001.pt").exists()
    again = together(2, train_beton, tmp_path, "stopped")
    assert again.returncode == 0, again.stderr
    stopped, whole = load(tmp_path, "stopped-2"), load(pair, "at-2")
    assert stopped["history"] == whole["history"]
    assert torch.equal(stopped["weights"], whole["weights"])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_make_up_the_steps(processes):
    """Piece after piece of a step are the step's samples, in their order."""
    order = np.random.default_rng(0).permutation(np.arange(1000, 1103))
    worlds = [World(rank, processes, rank) for rank in range(processes)]
    shares = [shard(order, 24, world) for world in worlds]
    size = 24 // processes
    assert {step for _, step in shares} == {size}
    for step in range(4):
        pieces = [mine[step * size : (step + 1) * size] for mine, _ in shares]
        np.testing.assert_array_equal(np.concatenate(pieces), order[step * 24 : (step + 1) * 24])
    last = [mine[4 * size :] for mine, _ in shares]
    np.testing.assert_array_equal(np.concatenate(last), order[96:])
    assert min(map(len, last)) >= 1


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
