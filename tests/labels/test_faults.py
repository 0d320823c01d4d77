"""Kills, full disks, read-only folders: nothing half-written, and the next run goes on."""

import asyncio
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from refusals import refused
from small_labelling import ROWS, SAMPLES, Images, Teacher, label, open_writer

from ltd_pipe.errors import StoreError, WriteError
from ltd_pipe.labels.files import DurableStore

HERE = Path(__file__).parent
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


@pytest.fixture
def quick(tmp_path):
    """A folder in memory, where there is one: a disk waits for every file."""
    if not SHARED_MEMORY.is_dir():
        yield tmp_path
        return
    folder = SHARED_MEMORY / f"ltd-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def script(*words):
    """Run a script of this folder with our packages; it must succeed."""
    path = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE.parents[1]), str(HERE)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.nightly
def test_two_hundred_kills_lose_nothing(quick):
    """Killed anywhere and continued, a store has the bytes of an undisturbed run.

    Under its own name there is the old store, the new one or none: all three were seen.
    """
    found = json.loads(script(sys.executable, HERE / "killing.py", quick, 200, 0))
    assert found["killed"] >= 200
    assert min(found[name] for name in ("absent", "old", "new")) > 0


def test_a_few_kills_lose_nothing(quick):
    """The same in a second or two, for every day."""
    found = json.loads(script(sys.executable, HERE / "killing.py", quick, 10, 1))
    assert found["killed"] >= 10


def may_mount():
    """Whether a user may mount a file system in a namespace of his own here."""
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_disk_that_is_full_or_read_only_is_a_clear_line_and_no_loss(tmp_path):
    """Wherever it runs full, in the draft or the store; with room, the next run goes on."""
    if not may_mount():
        pytest.skip("mounting a file system of one's own is not allowed here")
    for name in ("disk", "elsewhere"):
        (tmp_path / name).mkdir()
    words = [sys.executable, HERE / "full_disk.py", tmp_path / "disk", tmp_path / "elsewhere"]
    *full, read_only = json.loads(script("unshare", "-Urm", *words))
    reasons = ("not enough disk space", "No space left on device. Free disk space and run it again")
    assert all(any(reason in error for reason in reasons) for error in full)
    assert any(reasons[1] in error and "state" in error for error in full)
    assert any(reasons[1] in error and "zarr.part" in error for error in full)
    assert "The file system is read-only: choose another output folder." in read_only


def test_nothing_is_written_after_a_write_has_failed(tmp_path, monkeypatch):
    """The folder is being removed then, and may be on a disk that is to be unmounted."""
    written, through = [], DurableStore.set

    async def write(store, key, value):
        if key.endswith("zarr.json"):
            if not written:
                written.append(key)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            await asyncio.sleep(0.05)
            written.append(key)
        await through(store, key, value)

    monkeypatch.setattr(DurableStore, "set", write)
    with refused(WriteError, what=re.compile("No space left")):
        label(tmp_path / "a.zarr")
    time.sleep(0.2)
    assert len(written) == 1


class Spoiled(Teacher):
    """Answers NaN for an image of one batch."""

    def __init__(self, seed, batch):
        super().__init__(seed)
        self.batch = batch

    def raw_logits(self, images):
        logits = super().raw_logits(images)
        self.batch -= 1
        if self.batch == -1:
            logits[2] = torch.nan
        return logits


@pytest.mark.parametrize("batch", [0, 1, 7, 11])
def test_a_teacher_that_fails_at_an_image_loses_no_other(tmp_path, batch):
    """The sample is named, nothing is published, and a mended teacher goes on from there."""
    expected = label(tmp_path / "whole.zarr")
    named = f"sample {4 * batch + 2}"
    with refused(StoreError, what=named, found=re.compile("nan")):
        label(tmp_path / "a.zarr", teacher=Spoiled(0, batch))
    assert not (tmp_path / "a.zarr").exists()
    asked = Counting(0)
    assert label(tmp_path / "a.zarr", teacher=asked) == expected
    assert asked.images == SAMPLES - 4 * batch // ROWS * ROWS


class Counting(Teacher):
    """Counts the images that it is asked about."""

    images = 0

    def raw_logits(self, images):
        self.images += len(images)
        return super().raw_logits(images)


def test_what_killed_runs_leave_lying_about_blocks_nobody(tmp_path):
    """Lock files, half-built stores, old stores moved aside, files being written."""
    expected = label(tmp_path / "whole.zarr")
    shutil.rmtree(tmp_path / "whole.zarr")
    (tmp_path / ".a.zarr.lock").write_text("1")
    for name in (
        ".a.zarr.part/labels/c",
        ".a.zarr.0000ab77.old",
        "state/.label-0.0000ab12.old/labels",
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0").write_text("half")
    open_writer(tmp_path / "state/label-0", Images())
    remains = tmp_path / "state/label-0/labels/labels/c/.0.77-ab12.part"
    remains.parent.mkdir(parents=True)
    remains.write_text("half")
    assert label(tmp_path / "a.zarr") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
