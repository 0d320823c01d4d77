"""Nothing is found half-written under its own name."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused

from ltd_pipe import publish
from ltd_pipe.errors import BusyError, WriteError
from ltd_pipe.publish import (
    exclusive,
    refused_by_system,
    replace_tree,
    require_free,
    staged,
    write_json,
    write_text,
)


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path):
    """An exception inside the block keeps what stood there and removes the part file."""
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), staged(target) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_one_clear_line(tmp_path):
    """ENOSPC becomes a WriteError that names the file and says what to do."""
    with (
        refused(WriteError, where=tmp_path / "a", remedy="disk space"),
        staged(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_really_full_disk_is_refused(tmp_path):
    """Writing to the kernel's always-full device gives the same line."""
    with refused(WriteError, where=tmp_path / "a", what="No space"), staged(tmp_path / "a"):
        Path("/dev/full").write_text("x")


def test_not_enough_space_is_refused_before_the_work(tmp_path):
    """A result larger than the disk is refused at once, for a folder that is not there yet."""
    with refused(
        WriteError,
        where=tmp_path / "new/folder",
        what="enough",
        expected="4,398,046,511,104 MiB free",
    ):
        require_free(tmp_path / "new" / "folder", 2**62)


def test_json_refuses_nan(tmp_path):
    """NaN is not JSON, so it is refused rather than written."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_failing_block_leaves_the_old_folder_and_nothing_else(tmp_path):
    """As for a file: what stood there stays, and the part is removed."""
    target = tmp_path / "new" / "folder"
    with staged(target, folder=True) as beside:
        (beside / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), staged(target, folder=True) as beside:
        (beside / "a").write_text("half")
        raise KeyboardInterrupt
    assert [path.read_text() for path in target.iterdir()] == ["old"]
    assert list(target.parent.iterdir()) == [target]
    with staged(target, folder=True) as beside:
        (beside / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_is_replaced_whole(tmp_path):
    """The old folder's files are gone, the new one's are there."""
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_tree(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError(13, "Permission denied")])
def test_an_old_folder_is_put_back(tmp_path, monkeypatch, error):
    """When the new one cannot get its name, whatever the reason: even Ctrl-C at that moment."""
    monkeypatch.setattr("ltd_pipe.publish._RENAME", None)  # as where folders change no places
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    rename = os.replace

    def failing(source, target):
        if source == tmp_path / "new":
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises((KeyboardInterrupt, WriteError)):
        replace_tree(tmp_path / "new", tmp_path / "old")
    assert {path.name for path in tmp_path.glob("*/*")} == {"new", "old"}
    assert (tmp_path / "old" / "old").exists()


REPLACER = """
import sys
from pathlib import Path
from ltd_pipe.publish import replace_tree
target = Path(sys.argv[1])
while True:
    (target.parent / "new").mkdir()
    replace_tree(target.parent / "new", target)
    print(flush=True)
"""


def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path):
    """For whoever looks while it is, and after a SIGKILL at any time."""
    target = tmp_path / "a"
    target.mkdir()
    (tmp_path / "b").mkdir()
    if not publish._exchanged(target, tmp_path / "b"):
        pytest.skip("here folders cannot change places in one step")
    words = [sys.executable, "-c", REPLACER, target]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        absent = sum(not target.exists() for _ in range(20_000))
        process.kill()
    assert absent == 0
    assert target.exists()


def test_what_is_left_of_another_folder_stays(tmp_path):
    """Its name may begin with this one's; what is left of this one goes, whatever its name."""
    names = {".a.zarr.0123abcd.old", ".a.b.old", ".a[b].0123abcd.old"}
    for name in ("new", ".a.0123abcd.old", *names):
        (tmp_path / name).mkdir()
    replace_tree(tmp_path / "new", tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a", *names}
    replace_tree(tmp_path / "a", tmp_path / "a[b]")
    assert {path.name for path in tmp_path.iterdir()} == {"a[b]", *names} - {".a[b].0123abcd.old"}


HOLDER = """
import sys, time
from pathlib import Path
from ltd_pipe.publish import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_lets_go(tmp_path):
    """The lock names its holder, and the kernel releases it when the holder is killed."""
    target = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(target)], stdout=subprocess.PIPE)
    with holder:
        holder.stdout.readline()
        with refused(BusyError, where=target, what=f"process {holder.pid} "), exclusive(target):
            pass
        holder.send_signal(signal.SIGKILL)
    with exclusive(target):
        pass


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from ltd_pipe.errors import WriteError
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.device import PrecisionSettings
from ltd_pipe.training.snapshots import Progress, Snapshots
shape, out = (1, 8, 8), Path(sys.argv[1])
model = Classifier(
    build("small-cnn", 2, shape), architecture="small-cnn", class_names=("a", "b"), shape=shape
)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for write in (
    lambda: save_classifier(model, out / "model.safetensors"),
    lambda: Snapshots(out).save(
        Progress(), {"weights": torch.zeros(1000, 1000)}, PrecisionSettings()
    ),
):
    try:
        write()
    except WriteError as error:
        print(error)
"""


@pytest.mark.slow
def test_checkpoints_and_snapshots_on_a_disk_that_fills_up(tmp_path):
    """Packages' own writers do not raise OSError: it is a WriteError all the same."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    model, snapshot = done.stdout.splitlines()
    assert "model.safetensors: cannot be written" in model
    assert "step-000000000-epoch-000000.pt: cannot be written" in snapshot
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def umask():
    """A function that sets it, for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_what_is_published_follows_the_umask(tmp_path, umask, mask, mode):
    """Also where a package makes files that are their owner's alone, as safetensors does."""
    umask(mask)
    with staged(tmp_path / "a") as beside:
        beside.touch(0o600)
    with staged(tmp_path / "b", folder=True) as beside:
        (beside / "c").touch(0o600)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "b" / "c")]
    assert modes == [mode, mode]


KILLED = """
import os, signal, sys
from pathlib import Path
from ltd_pipe.publish import staged
target = Path(sys.argv[1])
with staged(target) as beside, staged(target.with_name("folder"), folder=True) as folder:
    beside.write_text("half")
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_parts_of_killed_runs_are_removed_by_the_next_one(tmp_path):
    """Not those of a process that is alive, nor what only looks like one."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "step-1.pt")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2
    thesis = tmp_path / ".thesis.part"
    thesis.touch()
    with staged(tmp_path / "alive") as alive:
        alive.touch()
        write_text(tmp_path / "step-2.pt", "whole")
        assert set(tmp_path.iterdir()) == {tmp_path / "step-2.pt", alive, thesis}


def test_parts_of_another_machine_are_removed_after_a_day(tmp_path):
    """Whether its process is alive cannot be asked here; older versions did not name it."""
    parts = [tmp_path / name for name in (".a.0123abcd-1-89abcdef.part", ".a.1-89abcdef.part")]
    for age in (3600, 100_000):
        for part in parts:
            part.touch()
            os.utime(part, (part.stat().st_mtime - age,) * 2)
        write_text(tmp_path / "a", "")
        assert [part.exists() for part in parts] == [age == 3600] * 2


SYSTEM = {
    "missing": (lambda folder: (folder / "a").read_text(), "a", "No such file or directory"),
    "a folder": (lambda folder: folder.read_text(), "", "Is a directory"),
    "full": (lambda _: Path("/dev/full").write_text("x"), "/dev/full", "No space left on device"),
}


@pytest.mark.parametrize(("work", "name", "what"), SYSTEM.values(), ids=SYSTEM)
def test_what_the_system_refuses_is_one_line(tmp_path, work, name, what):
    """Where, and what; a full disk says so even without a name."""
    with pytest.raises(OSError, match=what) as caught:
        work(tmp_path)
    error = refused_by_system(caught.value)
    assert error.what == what
    if caught.value.filename:
        assert error.where == str(tmp_path / name)
    assert "\n" not in str(error)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("held", [False, True])
def test_the_lock_of_another_user(tmp_path, held):
    """A stale one keeps nobody out; one that cannot be read says whose it is."""
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    lock = tmp_path / ".out.lock"
    lock.touch(0o600 if held else 0o644)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            with exclusive(tmp_path / "out", shared=True):
                pass
            with exclusive(tmp_path / "out"):
                code = 0
        except WriteError as error:
            code = 2 if "root" in error.what and ".out.lock" in error.what else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (2 if held else 0)
