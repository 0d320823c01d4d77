"""The benchmark that counts passes to a robustness: it runs, and goes on where it was."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
def test_passes_are_counted_once_for_each_run(tmp_path):
    """A line for each; those that are there are not run again. A trial leaves nothing else."""
    made = tmp_path / "made"
    made.mkdir()
    results = tmp_path / "passes.jsonl"
    chosen = "PGD-10", "previous, 1 step, from the teacher", "PGD, 2 to 10 steps"
    ways = [word for way in chosen for word in ("--way", way)]
    command = [sys.executable, BENCH / "passes_to_robustness.py", "--quick", "--results", results]
    options = {"capture_output": True, "text": True, "env": os.environ | {"TMPDIR": str(made)}}
    first = subprocess.run([*command, *ways], **options, check=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    counted = {(row["way"], row["seed"], row["passes"]) for row in rows}
    # Two epochs of 256 images: ten steps, one, or two and then ten, and the training's own pass.
    assert counted == {
        *(("PGD-10", seed, 2 * 256 * 11) for seed in (0, 1)),
        *(("previous, 1 step, from the teacher", seed, 2 * 256 * 2) for seed in (0, 1)),
        *(("PGD, 2 to 10 steps", seed, 256 * (3 + 11)) for seed in (0, 1)),
    }
    assert all(row["apgd-t"] <= row["apgd-ce"] <= row["clean"] for row in rows)
    again = subprocess.run([*command, *ways], **options, check=True)
    assert again.stdout == first.stdout
    # Torch's own cache stays.
    assert not [*made.glob("tmp*")]
    assert not again.stderr


def test_the_page_has_the_table_of_the_results():
    """Each line of three seeds or more, as printed."""
    command = [sys.executable, BENCH / "passes_to_robustness.py", "--table"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = (BENCH.parent / "docs/performance.md").read_text().splitlines()
    lines = [line for line in shown.splitlines() if re.search(r"\| [3-9] \|$", line)]
    assert lines
    assert [line for line in lines if line not in page] == []
