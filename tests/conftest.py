"""What all tests share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_answers import Answers, make_answers
from signing_keys import key_file, make_key, signable, ssh_keygen

from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.params import PrepareParams

__all__ = ["key_file", "make_key", "signable", "ssh_keygen"]


def pytest_configure():
    """One thread, and Ctrl-C, here and in every process that tests start.

    `make test` runs as many test processes as small machines have cores, and threads that wait
    for a core in turns are slower than one.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # Jobs in the background ignore Ctrl-C, those of nohup the end of a terminal: tests send both.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config, items):
    """Hand out files with slow tests first, so that processes end at about the same time."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _one_answer():
    """Fix the seed and the thread count, so that equal inputs give equal bits."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A folder with train.beton (240 digits) and test.beton (60 digits)."""
    folder = tmp_path_factory.mktemp("digits")
    params = PrepareParams(dataset="digits", channels=1, validation_fraction=0.2)
    for split, count in (("train", 240), ("test", 60)):
        source = open_source(params, split).take(np.arange(count))
        write_beton(source, folder / f"{split}.beton", params, split)
    return folder


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """What starts a stage without starting Python: nine times nine would take minutes."""
    warm = Path(__file__).with_name("warm_stages.py")
    address = tmp_path_factory.mktemp("warm") / "socket"
    command = [sys.executable, warm, "serve", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"ready\n"
        yield f"{sys.executable} -I -S {warm} {address}"
        server.kill()


@pytest.fixture(scope="session")
def train_beton(digits):
    """The opened training beton."""
    return open_beton(digits / "train.beton")


@pytest.fixture(scope="session")
def train_stream(train_beton) -> ImageStream:
    """Its images in memory, read once."""
    return ImageStream(train_beton, torch.device("cpu"), resident=True)


@pytest.fixture(scope="session")
def test_beton(digits):
    """The opened test beton."""
    return open_beton(digits / "test.beton")


@pytest.fixture
def answers() -> Answers:
    """Eleven samples of three classes."""
    return make_answers()


@pytest.fixture
def making():
    """The function that makes answers of other sizes."""
    return make_answers


@pytest.fixture
def store(answers, tmp_path) -> Path:
    """A store of three chunks, the last one part padding."""
    return answers.write(tmp_path / "labels.zarr")
