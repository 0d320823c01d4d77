"""`python bench/labels.py --quick`: the whole benchmark, at sizes that prove nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from answers import SIZES

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parents[2] / "bench" / "labels.py"


def bench(*words):
    """Run the benchmark as a user does."""
    command = [sys.executable, "-W", "error", PROGRAM, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished quick run of all sizes: the process, its JSON and its folder."""
    folder = tmp_path_factory.mktemp("bench")
    target = folder / "results.json"
    done = bench("--quick", "--folder", folder / "data", "--json", target)
    assert done.returncode == 0, done.stderr
    return done, json.loads(target.read_text()), folder


def test_ratios_come_last(run):
    """Whoever looks at the end of the output sees what is to be believed."""
    done, _, _ = run
    last = done.stdout.rstrip().rpartition("\n## ")[2].splitlines()
    assert last[0].startswith("Ratios")
    assert last[2].startswith("| size | what | way | against | ratio |")
    assert {line.split(" | ")[0].removeprefix("| ") for line in last[4:]} == set(SIZES)


def test_a_quick_run_says_that_it_means_nothing(run):
    """Nobody quotes it by mistake."""
    done, results, _ = run
    assert done.stdout.startswith("--quick: ")
    assert results["quick"] is True


def test_machine_versions_and_seed_are_told(run):
    """A number without them is none."""
    done, results, _ = run
    assert {"cpu", "cores", "memory_gib", "kernel"} <= results["machine"].keys()
    assert {"python", "numpy", "torch", "zarr", "h5py", "lmdb"} <= results["software"].keys()
    assert results["seed"] == 0
    for version in results["software"].values():
        assert version in done.stdout


TASKS = {
    "write": ("plain write + fsync", {"our store", "zarr-python", "HDF5, contiguous", "LMDB"}),
    "gather": ("flat np.memmap", {"our store"}),
    "gather into a buffer": ("flat np.memmap", {"our store"}),
    "verify": ("sha256sum -c", {"verify_store"}),
    "place on cpu": ("np.memmap and torch", {"LabelsOnDevice, gathered"}),
    "label 32×32 by small-cnn-w8": ("bare teacher", {"label_images and publish"}),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", TASKS)
def test_each_thing_is_measured_against_its_baseline(run, size, what):
    """At every size, with spread and number of rounds."""
    _, results, _ = run
    baseline, ways = TASKS[what]
    (found,) = [
        comparison
        for comparison in results["sizes"][size]["comparisons"]
        if comparison["what"] == what and comparison["baseline"] == baseline
    ]
    assert ways <= found["ways"].keys()
    for way in found["ways"].values():
        assert way["seconds"].keys() == way["cpu_seconds"].keys()
        assert way["seconds"].keys() == {"median", "low", "high", "least", "n"}
        assert 0 < way["seconds"]["low"] <= way["seconds"]["median"] <= way["seconds"]["high"]
    assert found["ways"][baseline]["ratio"]["median"] == 1


@pytest.mark.parametrize("size", SIZES)
def test_every_other_format_is_gathered_from(run, size):
    """Each in turns with our reader."""
    _, results, _ = run
    found = {
        comparison["baseline"]
        for comparison in results["sizes"][size]["comparisons"]
        if comparison["what"] == "gather"
    }
    others = {"HDF5, contiguous", "HDF5, chunked", "LMDB", "zarr's oindex, sharded"}
    assert found == {"flat np.memmap", "zarr's oindex, our store", *others}


@pytest.mark.parametrize("size", SIZES)
def test_memory_page_cache_and_load_are_told(run, size):
    """What the times depend on."""
    _, results, _ = run
    found = results["sizes"][size]
    assert found["memory"].keys() == {"open", "first_gathers", "warm_gathers"}
    assert 0 <= found["cached"] <= 1
    assert found["load_before"] >= 0


def test_sizes_and_steps_are_told(run):
    """The sizes of stores, and what a gather is a share of."""
    _, results, _ = run
    assert {row["data"] for row in results["bytes"]["table"]} == {*SIZES, "imagenet21k"}
    assert results["bytes"]["checked"].keys() == {"dense", "50"}
    assert results["step"]["seconds"]["median"] > 0
    assert all(seconds > 0 for seconds in results["gpu"]["fastest_step_s"].values())


def test_nothing_is_left_behind(run):
    """The data of all sizes would fill a disk."""
    _, _, folder = run
    assert list((folder / "data").iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path):
    """With what to do about it."""
    done = bench("--size", "topk10m", "--scale", "1000", "--folder", tmp_path)
    assert done.returncode == 1
    assert "Pass another --folder, or --scale 0.1." in done.stderr
    assert list(tmp_path.iterdir()) == []
