"""The examples run as they stand, and the README's lines do what they show."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_answers import write_store
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from ltd_pipe.images.manifest import fingerprint, sample_hash
from ltd_pipe.images.sources import FolderSource
from ltd_pipe.labels.format import DatasetFacts, StoreAttributes, TeacherFacts

ROOT = Path(__file__).parents[2]


def run(script, *words):
    """One example as its docstring says, in a process of its own, without a GPU."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, ROOT / "examples" / script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def write_labels(folder, target):
    """A store for a folder of images: the truth, a little softened."""
    source = FolderSource(folder)
    hashes = np.array([sample_hash(source.raw(i)) for i in range(len(source))], np.uint64)
    names = source.class_names
    facts = StoreAttributes(
        temperature=2.0,
        num_samples=len(hashes),
        num_classes=len(names),
        class_names=names,
        dataset=DatasetFacts(
            name="digits", split="train", fingerprint=fingerprint(names, source.labels, hashes)
        ),
        teachers=(TeacherFacts(sha256="ab" * 32, architecture="made up"),),
    )
    logits = 6 * np.eye(len(names), dtype=np.float32)[source.labels]
    write_store(target, facts, logits, source.labels, hashes)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """What examples/digits_folder.py writes, and labels for it; the folder that holds both."""
    folder = tmp_path_factory.mktemp("examples")
    done = run("digits_folder.py", folder / "photos", "--limit", 140)
    assert done.returncode == 0, done.stderr
    write_labels(folder / "photos/train", folder / "labels.zarr")
    return folder


def test_the_digits_are_a_folder_of_pictures(digits):
    """As torchvision's ImageFolder wants it, in both splits."""
    for split in ("train", "test"):
        folder = ImageFolder(digits / "photos" / split)
        assert len(folder) == 140
        assert folder.classes == [str(digit) for digit in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "shown"),
    [
        ("plain_loop.py", [], r"epoch 1: loss \d+\.\d{4}, accuracy \d+\.\d\d%"),
        ("lightning_module.py", [], r"'loss': [\d.]+, 'accuracy': [\d.]+"),
        ("timm_train.py", ["--model", "test_resnet"], r"epoch 1: loss \d+\.\d{4}"),
    ],
    ids=["plain", "lightning", "timm"],
)
def test_an_example_trains(digits, script, words, shown):
    """Two epochs over 140 small pictures, with a worker, end with finite numbers."""
    paths = (digits / "photos/train", digits / "labels.zarr")
    done = run(script, *paths, "--size", 32, "--epochs", 2, "--workers", 1, *words)
    assert done.returncode == 0, done.stderr
    assert re.search(shown, done.stdout), done.stdout


@pytest.mark.slow
def test_an_example_stops_at_other_images(digits):
    """The test images have no labels: one line says so, through all of timm's loader."""
    done = run("timm_train.py", digits / "photos/test", digits / "labels.zarr", "--workers", 1)
    assert done.returncode == 1
    assert re.search(r"JoinError: .*labels.zarr: has no label for sample \d+: found", done.stderr)


def test_an_example_is_short_and_says_how_to_run_it():
    """Under 80 lines, and the command is among the first ones."""
    for script in (ROOT / "examples").glob("*.py"):
        lines = script.read_text().splitlines()
        assert len(lines) < 80
        assert any(f"python examples/{script.name}" in line for line in lines[:6])


def test_the_readmes_lines_run(digits):
    """The first block of Python on the page, as it stands."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    names = {
        "torch": torch,
        "DataLoader": DataLoader,
        "ImageFolder": ImageFolder,
        "transform": to_tensor,
        "model": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)),
    }
    # Eight workers are more than a small machine has, which DataLoader warns of.
    code = code.replace("num_workers=8", "num_workers=1")
    with contextlib.chdir(digits):
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert names["loss"].item() > 0
