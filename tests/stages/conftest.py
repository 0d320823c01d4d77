"""The command line, run in this process, and a small pipeline that it left behind."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from dataclasses import dataclass

import pytest
from PIL import Image

from ltd_pipe.images.sources import open_source
from ltd_pipe.params import PrepareParams
from ltd_pipe.stages.cli import main

PARAMS = """
seed: 0
device: cpu
prepare: {dataset: digits, channels: 1}
teacher: {architecture: small-cnn-w8, epochs: 2, batch_size: 64, precision: float32}
label: {temperature: auto:0.9, batch_size: 64}
train:
  {architecture: small-cnn-w8, epochs: 2, batch_size: 64, precision: float32, eps: 0.1,
   step_size: 0.05, attack_steps: 2, validation_attack_steps: 2, ema_decay: 0.9}
evaluate:
  {eps: 0.1, images: 40, pgd_steps: 5, pgd_restarts: 1, attacks: none, autoattack: none,
   eps_grid: [0, 0.1]}
report: {examples: 4}
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def _run(*words) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["ltd-pipe", *map(str, words)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = argv
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def ltd_pipe():
    """A function that runs `ltd-pipe WORDS` as main() does, with its exit code and output."""
    return _run


@pytest.fixture(scope="session")
def finished(digits, tmp_path_factory, ltd_pipe):
    """A folder in which the pipeline ran from prepared digits to the evaluated student."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "params.yaml").write_text(PARAMS)
    shutil.copytree(digits, folder / "data")
    with contextlib.chdir(folder):
        for words in (
            ["teacher"],
            ["label", "--teacher", "data/teacher/model.safetensors"],
            ["train"],
            ["evaluate"],
        ):
            outcome = ltd_pipe(*words)
            assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """A copy of the finished pipeline, as the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Digits as PNG files in class folders, with parameters for them, as working directory."""
    folder = tmp_path / "pictures"
    for split in ("train", "test"):
        source = open_source(PrepareParams(dataset="digits", channels=1), split)
        for i in range(60):
            place = folder / "photos" / split / f"digit-{source.labels[i]}" / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.images[i]).save(place)
    (folder / "params.yaml").write_text(
        PARAMS.replace("dataset: digits", "dataset: folder, path: photos")
    )
    monkeypatch.chdir(folder)
    return folder
