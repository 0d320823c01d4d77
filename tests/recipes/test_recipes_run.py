"""Each recipe goes through the whole of `dvc repro`, with its own settings but for the cost."""

import json
import subprocess
import sys
from pathlib import Path

import dvc_projects
import numpy as np
import pytest
from PIL import Image

from pipeline.recipes import recipe_names

WARM = Path(__file__).with_name("warm_stages.py")
ONE_EPOCH = {"architecture": "small-cnn-w8", "epochs": 1, "batch_size": 16}
SHRUNK = {
    "prepare": {
        "dataset": "folder",
        "path": "photos",
        "image_size": 16,
        "channels": 3,
        "validation_fraction": 0.25,
    },
    "teacher": ONE_EPOCH,
    "train": ONE_EPOCH | {"attack_steps": 2, "validation_attack_steps": 2, "awp_from_epoch": 0},
    "evaluate": {
        "images": 4,
        "pgd_steps": 2,
        "pgd_restarts": 1,
        "attacks": ["fgsm"],
        "autoattack": "none",
        "eps_grid": [0, 0.1],
    },
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """What starts a stage without starting Python: nine times nine would take minutes."""
    address = tmp_path_factory.mktemp("warm") / "socket"
    command = [sys.executable, WARM, "serve", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"ready\n"
        yield f"{sys.executable} -I -S {WARM} {address}"
        server.kill()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the project with 40 photographs; what recipes share is made once."""
    folder = tmp_path_factory.mktemp("clone")
    dvc_projects.clone(folder)
    dvc_projects.commit(folder)
    draw = np.random.default_rng(0)
    for i in range(40):
        place = folder / "photos" / ("test" if i % 4 == 0 else "train") / f"class-{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_dvc_repro_goes_through_with_every_recipe(clone, launch, name):
    """From images to the report: no stage lacks a key, or refuses what another one took."""
    dvc_projects.write_params(clone, name, SHRUNK | {"launch": launch})
    out = dvc_projects.dvc(clone, "repro")
    assert "Updating lock file" in out
    for metrics in ("metrics.json", "baseline-metrics.json"):
        assert json.loads((clone / "data" / metrics).read_text())["n"] == 4
    assert "<html" in (clone / "data/report.html").read_text()
