"""Several processes under torchrun train the student that one alone trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch

from ltd_pipe.distributed import World
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
    cases = ("at", "mart-awp", "adr", "parts", "mixed-parts", "own-statistics", "carried")
    done = together(2, train_beton, folder, *cases)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "relative"),
    [("at", 1e-4), ("mart-awp", 2e-3), ("adr", 1e-4), ("parts", 1e-4), ("carried", 1e-4)],
)
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
    """The last step of an epoch has 30 images: 8, 8, 7 and 7; each of three parts has 10."""
    cases = ("at", "parts")
    done = together(4, train_beton, tmp_path, *cases)
    assert done.returncode == 0, done.stderr
    for case in cases:
        expected = alone(train_beton, tmp_path, case)
        assert_equal_to_rounding(load(tmp_path, f"{case}-4"), expected)


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
def test_parts_of_pairs_are_never_empty(pair):
    """The last step has five images, in pairs: three and two. A mean of nothing is no number."""
    history = load(pair, "mixed-parts-2")["history"]
    assert all(0 < row["train/loss"] < 10 for row in history)


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
def test_what_was_trained_is_kept_before_a_validation(train_beton, tmp_path):
    """A validation of several processes does not stop when it is asked to, and may be killed."""
    done = together(2, train_beton, tmp_path, "killed-validating")
    assert "rank 0 of 2: another process is missing or has ended" in done.stdout
    trained = ranks.make_fit(train_beton, tmp_path, "killed-validating", ALONE).steps_per_epoch * 2
    saved = [file.name for file in sorted((tmp_path / "killed-validating").iterdir())]
    assert saved[-1] == f"step-{trained:09}-epoch-000001.pt"


@pytest.mark.slow
def test_a_process_that_is_gone_within_a_pass_is_missed(train_beton, tmp_path):
    """In a line, too, where the message that fails is a batch normalisation's."""
    done = together(2, train_beton, tmp_path, "gone")
    assert done.returncode != 0
    assert "rank 0 of 2: another process is missing or has ended" in done.stdout


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
