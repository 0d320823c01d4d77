"""What the first machine with a GPU runs, tried where there is none."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path):
    """All its parts end well, and leave one file."""
    command = ["bash", ROOT / "bench" / "gpu.sh", tmp_path / "out"]
    environment = os.environ | {"TINY": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert {part["exit"] for part in result["parts"].values()} == {"0"}, ran.stdout
    assert result["machine"]["torch"] == torch.__version__
    assert result["small-cnn-w8-none"]["speedup"]["median"] > 0
    assert result["metrics"]["clean_accuracy"] is not None


def test_without_a_gpu_no_launch_is_counted():
    """And that is said."""
    command = ["python", ROOT / "bench" / "launches.py"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "no GPU here: nothing was counted\n"
