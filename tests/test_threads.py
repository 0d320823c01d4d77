"""How many processors may be used, and what OpenMP is told before it is loaded."""

import os
import subprocess
import sys
import tracemalloc

import pytest

from ltd_pipe import threads
from ltd_pipe.threads import cpu_quota, in_threads, memory_quota, set_defaults, usable_cores

QUOTAS = [
    ("max 100000", None, 64),
    ("200000 100000", 2.0, 2),
    ("250000 100000", 2.5, 2),
    ("50000 100000", 0.5, 1),
    ("12800000 100000", 128.0, 64),
    ("nonsense", None, 64),
    ("200000 0", None, 64),
]


@pytest.fixture
def many_cores(monkeypatch):
    """A machine of 64."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))


@pytest.mark.parametrize(("text", "quota", "cores"), QUOTAS)
def test_a_containers_quota_counts(many_cores, tmp_path, text, quota, cores):
    """A container with two processors' time of a machine of 64 has two."""
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path) == quota
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("given", "quota"), [("-1", None), ("150000", 1.5)])
def test_the_older_form_of_a_quota_is_read(tmp_path, given, quota):
    """Version 1 of Linux's control groups."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(given)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == quota


def test_without_control_groups_there_is_no_quota(tmp_path):
    """Nor an error."""
    assert cpu_quota(tmp_path) is None


DECIDED = [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_NUM_THREADS": "9"}]


@pytest.mark.parametrize("given", DECIDED, ids=str)
def test_what_the_user_has_decided_stays(monkeypatch, many_cores, given):
    """Only what is open is set."""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "usable_cores", lambda: 3)
    environment = dict(given)
    set_defaults(environment)
    ours = {"OMP_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "3", "GOMP_SPINCOUNT": "1000"}
    if "OMP_WAIT_POLICY" in given:
        del ours["GOMP_SPINCOUNT"]
    assert environment == ours | given


def test_nothing_is_set_where_it_would_be_too_late():
    """Torch has read it already: whoever looks at the variable would be misled."""
    import torch

    environment = {}
    assert torch
    set_defaults(environment)
    assert not environment


def test_the_command_sets_it_before_torch_is_loaded():
    """In a real process, whose OpenMP says what it has read."""
    probe = "import sys; from ltd_pipe.stages.cli import main; sys.argv[1:] = ['doctor']; main()"
    clean = {n: v for n, v in os.environ.items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ran = subprocess.run(
        [sys.executable, "-c", probe],
        env=clean | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "GOMP_SPINCOUNT = '1000'" in ran.stderr


REPEATED = """
import resource, torch
from ltd_pipe.device import choose_device
choose_device("cpu")
def work():
    for mib in (30, 40, 50):  # each freed before the next
        torch.ones(mib, 2**20, dtype=torch.uint8)
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("given", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}], ids=str)
def test_memory_of_tensors_is_kept_unless_the_user_decides(given):
    """Counted: pages of 4 KiB that are faulted in again, of 307,200 that are written.

    Where the heap begins is chance: one tensor of the thirty may once find no room in it.
    """
    clean = {name: text for name, text in os.environ.items() if name not in threads._MALLOC}
    found = subprocess.run(
        [sys.executable, "-c", REPEATED],
        env=clean | given,
        capture_output=True,
        text=True,
        check=True,
    )
    again = int(found.stdout)
    assert again > 200_000 if given else again < 30_000


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"max": "1000", "current": "700", "stat": "anon 1\ninactive_file 200\n"}, 500),
        ({"max": "1000", "current": "1200", "stat": "inactive_file 100\n"}, 0),
        ({"max": "max", "current": "700", "stat": "inactive_file 200\n"}, None),
        ({"max": "1000", "current": "700", "stat": "anon 1\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_memory_counts(tmp_path, files, free):
    """Files that were read may go when it is needed."""
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory_quota(tmp_path) == free


def test_the_older_form_of_a_memory_limit_is_read(tmp_path):
    """Version 1 of Linux's control groups."""
    (tmp_path / "memory").mkdir()
    facts = {"limit_in_bytes": "900", "usage_in_bytes": "800", "stat": "total_inactive_file 50"}
    for name, text in facts.items():
        (tmp_path / "memory" / f"memory.{name}").write_text(text)
    assert memory_quota(tmp_path) == 150


def test_millions_of_tasks_take_no_memory():
    """Results come in order; a future for each would take 170 MB here."""
    tracemalloc.start()
    assert all(i == found for i, found in enumerate(in_threads(lambda i: i, 100_001)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_an_error_of_a_task_is_raised():
    """As it was."""
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // (i - 70), 1000))
