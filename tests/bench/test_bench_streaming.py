"""`python bench/streaming.py --quick`: from photographs to ratios, at sizes that prove nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from photographs import make_photographs
from PIL import Image

PROGRAM = Path(__file__).parents[2] / "bench" / "streaming.py"
WAYS = {
    "ImageFolder, the files",
    "ImageFolder, files of the beton's size",
    "beton, decoded only",
    "beton, seeded crops",
}


@pytest.mark.slow
def test_a_quick_run_ends_with_the_ratios(tmp_path):
    """It says that it means nothing, tells machine, versions, files and load, and cleans up."""
    target, folder = tmp_path / "results.json", tmp_path / "data"
    command = [sys.executable, "-W", "error", PROGRAM, "--quick", "--folder", folder]
    done = subprocess.run([*command, "--json", target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("--quick: ")
    last = done.stdout.rstrip().rpartition("\n## ")[2].splitlines()
    assert last[0].startswith("Ratios")
    assert {line.split(" | ")[2] for line in last[4:]} == WAYS - {"ImageFolder, the files"}
    results = json.loads(target.read_text())
    assert results["quick"]
    assert results["ways"].keys() == WAYS
    assert {"ffcv", "torchvision", "pillow"} <= results["software"].keys()
    assert {"load_before", "load_after", "files", "machine", "seed"} <= results.keys()
    assert list(folder.iterdir()) == []


def test_photographs_depend_on_the_seed_alone(tmp_path):
    """Their sizes are within the bounds; every second one is of the given folder."""
    (tmp_path / "given").mkdir()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "given/red.png")
    for name in ("one", "two"):
        make_photographs(tmp_path / name, 6, (30, 40), seed=3, given=tmp_path / "given")
    files = sorted((tmp_path / "one").rglob("*.jpg"))
    assert len(files) == 6
    for file in files:
        twin = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert twin.read_bytes() == file.read_bytes()
        with Image.open(file) as image:
            assert 30 <= min(image.size) <= 40
            assert max(image.size) <= 4 / 3 * 40
            red = image.getpixel((15, 15))[0] > 240 and image.getpixel((15, 15))[1] < 10
        assert red == bool(int(file.stem) % 2)
