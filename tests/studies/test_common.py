"""What studies share: rows are kept whole, runs name their machine once, differences are paired."""

import json
import math

import numpy as np
import pytest
from common import append_row, difference, read_rows, read_runs, spread, write_runs
from scipy import stats

from ltd_pipe.provenance import software


def test_differences_are_paired_by_seed():
    """The interval is that of scipy's paired t test."""
    ours, theirs = [0.70, 0.72, 0.69], [0.69, 0.70, 0.69]
    found = difference(ours, theirs)
    wanted = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert str(found) == f"+1.0 ({100 * wanted.low:+.1f} to {100 * wanted.high:+.1f})"


def test_one_seed_has_no_interval():
    """A number alone, neither nan nor infinity."""
    assert difference([0.7], [0.65]).high == math.inf
    assert str(difference([0.7], [0.65])) == "+5.0"
    assert (spread([0.7]), spread([0.6, 0.8]), spread([])) == ("70.0", "70.0 ± 14.1", "–")


def test_runs_are_lines_and_one_file_in_the_end(tmp_path):
    """Each row has what made it, which the file of all of them says once."""
    rows = tmp_path / "rows.jsonl"
    assert read_rows(rows) == []
    for seed in (0, 1):
        append_row(rows, {"seed": seed, "clean": 0.5})
    found = read_rows(rows)
    assert [row["seed"] for row in found] == [0, 1]
    assert found[0]["software"] == software()
    write_runs(tmp_path / "runs.json", found)
    assert read_runs(tmp_path / "runs.json") == found
    content = json.loads((tmp_path / "runs.json").read_text())
    assert content["runs"] == [{"seed": seed, "clean": 0.5, "machine": 0} for seed in (0, 1)]
    assert [machine["software"] for machine in content["machines"]] == [software()]
