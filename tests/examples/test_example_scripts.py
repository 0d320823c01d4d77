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
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import DatasetFacts, StoreAttributes, TeacherFacts
from ltd_pipe.labels.verify import verify_store

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
EPOCHS = 6


def run(script, *words, program=sys.executable, path=BIN, cwd=None):
    """One example as its docstring says, in a process of its own, without a GPU."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    environment["PATH"] = f"{path}:{BIN}:{os.environ['PATH']}"
    command = [program, ROOT / "examples" / script, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


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


@pytest.fixture(scope="module")
def federated(tmp_path_factory, launch):
    """What examples/federated.sh makes in a few epochs, and what it says."""
    folder = tmp_path_factory.mktemp("federated")
    program = folder / "ltd-pipe"
    program.write_text(f'#!/bin/sh\nexec {launch} -m ltd_pipe "$@"\n')
    program.chmod(0o755)
    done = run("federated.sh", folder / "made", EPOCHS, program="bash", path=folder)
    assert done.returncode == 0, done.stderr
    return folder / "made", done


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    """So is the one that the script was started in."""
    (tmp_path / "made").mkdir()
    done = run("federated.sh", "made", EPOCHS, program="bash", path=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert "made" in done.stderr
    assert [*tmp_path.rglob("*")] == [tmp_path / "made"]


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


def hashes_of(folder):
    """Of all pictures below."""
    return {sample_hash(path.read_bytes()) for path in folder.rglob("*.png")}


@pytest.mark.slow
def test_clients_teach_a_student_by_labels_alone(federated):
    """Each public image has the mean of three answers, found by its hash; no other one has any."""
    folder, done = federated
    stores = [SoftLabels.open(path) for path in sorted((folder / "server/inbox").iterdir())]
    labels = SoftLabels.open(folder / "server/labels.zarr")
    assert len({store.attributes.teachers[0].sha256 for store in stores}) == 3
    assert len({store.attributes.dataset.fingerprint for store in stores}) == 3
    assert labels.num_samples == 590
    assert set(labels.sample_hash.tolist()) == hashes_of(folder / "public/train")
    for client in ("alice", "bob", "carol"):
        assert not hashes_of(folder / client / "train") & hashes_of(folder / "public")
        assert re.search(rf"ok +signature: .*\({client}@example.org\)", done.stdout)
    answers = [
        store.gather(np.argsort(store.sample_hash)).astype(np.float32)
        for store in [*stores, labels]
    ]
    np.testing.assert_allclose(answers.pop(), np.mean(answers, axis=0), atol=2e-3)
    assert re.search(r"PGD-10 +\d", done.stdout)


@pytest.mark.slow
def test_labels_that_were_altered_after_signing_are_refused(federated):
    """Also where all their checksums are right."""
    folder, done = federated
    verify_store(folder / "server/altered.zarr")
    assert "ltd-pipe: altered.zarr: MANIFEST.sha256.sig is not one of this" in done.stderr


@pytest.mark.slow
def test_the_kl_term_keeps_what_the_classifier_sees(federated):
    """Of a codec's training images, at a distortion that is printed beside it."""
    folder, _ = federated
    files = (folder / "server/labels.zarr", folder / "server/data/student/model.safetensors")
    done = run("codec.py", folder / "public", *files, "--epochs", EPOCHS, "--weight", 0.1)
    assert done.returncode == 0, done.stderr
    without, with_term = map(float, re.findall(r"KL (\d\.\d{3})", done.stdout))
    assert with_term < 0.8 * without
    assert len(re.findall(r"PSNR \d\d\.\d\d dB,\n  accuracy [\d.]+%, .* [\d.]+%", done.stdout)) == 2


@pytest.mark.slow
def test_an_example_stops_at_other_images(digits):
    """The test images have no labels: one line says so, through all of timm's loader."""
    done = run("timm_train.py", digits / "photos/test", digits / "labels.zarr", "--workers", 1)
    assert done.returncode == 1
    assert re.search(r"JoinError: .*labels.zarr: has no label for sample \d+: found", done.stderr)


def test_an_example_is_short_and_says_how_to_run_it():
    """Under 90 lines, and the command is among the first ones."""
    for script in (ROOT / "examples").glob("*.py"):
        lines = script.read_text().splitlines()
        assert len(lines) < 90
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
