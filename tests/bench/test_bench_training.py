"""The training benchmark runs, and the floor it names is the passes of a step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from curves import compare_curves
from our_loop import BarePasses
from torch import nn

from ltd_pipe.device import PrecisionSettings
from ltd_pipe.models.classifier import Classifier

ROOT = Path(__file__).parents[2]


class Counted(nn.Module):
    """Counts its passes, by mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.calls = {"attack": 0, "training": 0}

    def forward(self, images):
        self.calls["training" if self.training else "attack"] += 1
        return self.linear(images.flatten(1))


def test_the_floor_has_the_passes_of_a_step():
    """Ten of the attack and one of training, and nothing else."""
    network = Counted()
    model = Classifier(network, architecture="counted", class_names=("a", "b"), shape=(1, 2, 2))
    floor = BarePasses(model, PrecisionSettings(), 3, 10)
    floor.step()
    assert network.calls == {"attack": 10, "training": 1}


@pytest.mark.slow
def test_the_training_benchmark_runs(tmp_path):
    """At a tiny size; the ratio to the floor is printed last, and losses and curves are kept."""
    target = tmp_path / "training.json"
    done = subprocess.run(
        [sys.executable, ROOT / "bench/training.py", "--quick", "--json", target],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert " of the floor (" in done.stdout.splitlines()[-1]
    result = json.loads(target.read_text())
    assert {len(losses) for losses in result["losses"].values()} == {3}
    assert result["machine"]["cores"] >= 1
    curves = result["curves"]
    assert f"Difference {curves['difference']['mean']:+.4f}, standard error" in done.stdout
    assert [len(way["curve"]) for way in curves["ways"].values()] == [2, 2]


def test_the_ends_of_curves_are_compared_seed_by_seed():
    """Means of the last third, and the standard error of their differences."""
    losses = {"ours": {3: [9, 9, 1.0], 4: [9, 9, 3.0]}, "theirs": {3: [9, 9, 2.0], 4: [9, 9, 2.0]}}

    def loops(seed):
        return {way: iter(of_way[seed]).__next__ for way, of_way in losses.items()}

    found = compare_curves(loops, 3, [3, 4])
    assert found["ways"]["ours"]["last_third"]["by_seed"] == [1.0, 3.0]
    assert found["difference"]["by_seed"] == [-1.0, 1.0]
    assert found["difference"]["mean"] == 0.0
    assert found["difference"]["standard_error"] == pytest.approx(1.0)
