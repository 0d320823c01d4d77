"""What the benchmarks are made of: rounds, spreads, memory, other formats, sizes."""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import memory
import numpy as np
import pytest
from answers import Size, make_answers
from gathering import draws
from memory import cached_share, read_through
from rivals import RIVALS, files_of, gather_flat
from sizing import expected_bytes, measure_sizes, size_table
from stepping import fastest_step
from tables import duration, ratio_table
from timing import Clock, Comparison, Rounds, Spread, interleave
from writing import write_store

from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.verify import verify_store

DENSE, SPARSE = Size("dense", 3000, 20), Size("sparse", 3000, 20, 5)


@pytest.fixture(scope="module", params=[DENSE, SPARSE], ids=["dense", "sparse"])
def answers(request, tmp_path_factory):
    """Flat files of 3,000 samples."""
    return make_answers(request.param, tmp_path_factory.mktemp("answers") / "flat", seed=1)


def test_a_spread_is_median_quartiles_least_and_count():
    """By hand."""
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 1)


def test_a_ratio_is_of_the_same_round():
    """A slow minute hits both, and cancels."""
    seconds = {"flat": [1.0, 10.0, 100.0], "ours": [2.0, 20.0, 200.0]}
    ratio = Comparison("gather", "flat", seconds, 1, "rows", {}).ratio("ours")
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)


def test_ways_are_measured_in_turns_and_take_turns_to_begin():
    """After one round that is not counted."""
    called = []
    ways = {name: lambda number, name=name: called.append((number, name)) for name in "ab"}
    clock = interleave(ways, Rounds(2, 2, 0))
    assert called == [(0, "a"), (0, "b"), (0, "a"), (0, "b"), (1, "b"), (1, "a")]
    assert {name: len(found) for name, found in clock.seconds.items()} == {"a": 2, "b": 2}


def test_processors_are_counted_in_programs_too():
    """And waiting is not."""
    clock = Clock()
    clock.time("wait", lambda: time.sleep(0.2))
    work = [sys.executable, "-S", "-c", "sum(range(10**6))"]
    clock.time("work", lambda: subprocess.run(work, check=True))
    assert clock.cpu["wait"][0] < 0.1 <= clock.seconds["wait"][0]
    assert clock.cpu["work"][0] > 0


@pytest.mark.parametrize(("rounds", "count"), [(Rounds(3, 9, 0), 3), (Rounds(1, 4, 60), 4)])
def test_rounds_have_bounds(rounds, count):
    """At least some however slow, at most some however fast."""
    assert len(interleave({"a": lambda _: None}, rounds).seconds["a"]) == count


_WATCHED = """
import sys, time
import numpy as np
from memory import Peak
mapped, owned = Peak(), Peak()
with mapped.watched():
    mapping = np.memmap(sys.argv[1], np.uint8, mode="r")
    assert int(mapping[::4096].sum()) == 0
    time.sleep(0.5)  # the watcher may have to wait for a core before it looks
with owned.watched():
    array = np.ones(64 * 2**20, np.uint8)
    time.sleep(0.5)
print(mapped.growth, owned.growth)
"""


def test_anonymous_memory_counts_and_mapped_files_do_not(tmp_path):
    """The page cache is nobody's; and in a process of its own, where nothing else is freed."""
    path = tmp_path / "file"
    path.write_bytes(bytes(32 * 2**20))
    command = [sys.executable, "-c", _WATCHED, str(path)]
    folder = Path(memory.__file__).parent
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    mapped, owned = map(int, ran.stdout.split())
    assert mapped < 4 * 2**20
    assert owned > 60 * 2**20


def test_a_file_that_was_read_is_in_the_page_cache(tmp_path):
    """All of its pages."""
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20 + 1))
    read_through([path])
    assert cached_share([path]) == 1


def test_answers_are_the_same_for_the_same_seed(tmp_path):
    """And others for another."""
    contents = [
        make_answers(DENSE, tmp_path / str(number), seed).path("soft_labels").read_bytes()
        for number, seed in enumerate((1, 1, 2))
    ]
    assert contents[0] == contents[1] != contents[2]


def test_answers_make_a_store_that_verifies(answers, tmp_path):
    """What is measured is a real store of what the flat files hold."""
    write_store(tmp_path / "labels.zarr", answers)
    verify_store(tmp_path / "labels.zarr")
    store = SoftLabels.open(tmp_path / "labels.zarr")
    for name in answers.names:
        np.testing.assert_array_equal(store.arrays[name].read(), answers.column(name))


@pytest.mark.parametrize("rival", RIVALS, ids=[rival.name for rival in RIVALS])
def test_other_formats_give_the_same_rows(answers, tmp_path, rival):
    """In the order that was asked for."""
    path = tmp_path / "written"
    rival.write(path, answers)
    (index,) = draws(answers, 64, seed=3, count=1)
    expected = gather_flat(answers)(index)
    for found, wanted in itertools.zip_longest(rival.gather(path, answers)(index), expected):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("rival", RIVALS, ids=[rival.name for rival in RIVALS])
def test_other_formats_are_not_compressed(answers, tmp_path, rival):
    """They write what we write."""
    rival.write(tmp_path / "written", answers)
    size = sum(path.stat().st_size for path in files_of(tmp_path / "written"))
    assert size >= answers.size.sample_bytes * answers.size.num_samples


def test_a_store_is_as_large_as_the_table_says(answers, tmp_path):
    """To the byte, less one checksum per chunk file and padding."""
    write_store(tmp_path / "labels.zarr", answers)
    found = sum(
        path.stat().st_size
        for name in answers.names
        for path in files_of(tmp_path / "labels.zarr" / name / "c")
    )
    assert found == expected_bytes(answers.facts, answers.size.top_k)
    assert found - 4 * len(answers.names) == answers.size.sample_bytes * answers.size.num_samples


def test_the_size_table_is_checked_by_stores(tmp_path):
    """Dense and top-50, at the width of ImageNet-21k."""
    found = measure_sizes(tmp_path, seed=0, samples=8)
    assert found["dense"]["chunk_bytes"] == 8 * (2 * 21_841 + 12) + 3 * 4
    assert found["50"]["chunk_bytes"] == 8 * (4 * 50 + 12) + 4 * 4


def test_top_k_makes_imagenet_21k_small():
    """212 bytes a sample instead of 43,694."""
    rows = [row for row in size_table() if row["data"] == "imagenet21k"]
    assert {row["top_k"]: row["bytes_per_sample"] for row in rows} == {
        None: 43_694,
        50: 212,
        10: 52,
    }


def test_the_fastest_step_grows_with_batch_and_attack():
    """A lower bound: 2 passes per attack step, 3 for training."""
    one, many = fastest_step(1, attack_steps=0), fastest_step(8, attack_steps=6)
    for network, seconds in one.items():
        assert many[network] == pytest.approx(8 * 5 * seconds)
    # 0.56 billion multiply-adds, as is known of ResNet-18 at 32×32.
    assert one["resnet18, 32×32"] * 989e12 / 3 == pytest.approx(2 * 0.56e9, rel=0.02)


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.3456, "12.3 s"), (0.0123, "12.3 ms"), (1.5e-5, "15 µs")]
)
def test_durations_have_a_unit_that_suits(seconds, text):
    """Three digits."""
    assert duration(seconds) == text


def test_the_ratio_table_leaves_out_the_baseline():
    """It is one."""
    comparison = Comparison("gather", "flat", {"flat": [1.0], "ours": [2.0]}, 1, "rows", {})
    lines = ratio_table([("tiny", comparison)]).splitlines()
    assert lines[2:] == ["| tiny | gather | ours | flat | 2 | 2 – 2 | 1 |"]
