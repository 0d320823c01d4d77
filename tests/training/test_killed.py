"""Runs that are killed at any moment end with the bits of one that was left alone."""

import os
import subprocess
import sys
from pathlib import Path

import killed
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.nightly
def test_killed_at_any_moment_the_run_ends_with_the_same_bits(train_beton, tmp_path):
    """12 runs with up to three SIGKILLs each, many while a snapshot is written."""
    command = [sys.executable, killed.__file__, train_beton.path, tmp_path, "13"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *hashes, kills = done.stdout.splitlines()
    assert len(hashes) == 13
    assert len(set(hashes)) == 1
    assert int(kills.split()[0]) >= 25
