"""Files that are not what their names say, or not for long."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from refusals import refused
from test_hostile_stores import ATTRIBUTES, put

from ltd_pipe.errors import StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.verify import verify_store

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "labels"
CHUNKS = ["soft_labels/c/0/0", "logits/c/1/0", "labels/c/1", "sample_hash/c/0"]
OTHERS = ["zarr.json", "labels/zarr.json", "README.md"]
MIB = 2**20


def pipe(path):
    os.mkfifo(path)


def device(path):
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero


def listener(path):
    with socket.socket(socket.AF_UNIX) as server:
        # The name of a socket is short.
        here = Path.cwd()
        os.chdir(path.parent)
        server.bind(path.name)
        os.chdir(here)


@pytest.mark.parametrize(
    "name", [*CHUNKS, "zarr.json", "labels/zarr.json", "MANIFEST.sha256", "README.md"]
)
@pytest.mark.parametrize(
    "make", [pipe, listener, device, Path.mkdir], ids=["pipe", "socket", "device", "folder"]
)
def test_what_is_no_regular_file(forge, refused_cheaply, name, make):
    """To open it might wait for ever, or never end."""
    if make is device and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    path = forge.path / name
    path.unlink()
    make(path)
    refused_cheaply(forge.path, f"{name} is not a regular file")


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_byte_too_few_or_too_many(forge, refused_cheaply, name, by):
    """Also when the manifest says that this is the file."""
    path = forge.path / name
    os.truncate(path, path.stat().st_size + by)
    refused_cheaply(forge.sign(), f"{name} is damaged: expected [0-9]+ bytes")


@pytest.mark.parametrize("name", [*CHUNKS, *OTHERS])
def test_a_terabyte_of_nothing(forge, refused_cheaply, name):
    """A sparse file costs its maker nothing."""
    os.truncate(forge.path / name, 2**40)
    refused_cheaply(
        forge.path, f"{name} is (damaged|too large): expected .* bytes, found 1099511627776"
    )


def write_holes(forge, name, rows, chunks):
    """An array of zeros, of which no chunk takes a block of the disk, with right checksums."""
    layout = {"labels": (4, 1), "sample_hash": (8, 1)}
    itemsize, width = layout.get(name, (2, 3))
    size, last = rows * itemsize * width, "/0" if width > 1 else ""
    forge.array(name, put("shape", 0, rows * chunks))
    forge.array(name, put("chunk_grid", "configuration", "chunk_shape", 0, rows))
    checksum = google_crc32c.value(bytes(size)).to_bytes(4, "little")
    shutil.rmtree(forge.path / name / "c")
    for chunk in range(chunks):
        path = forge.path / name / f"c/{chunk}{last}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as handle:
            handle.seek(size)
            handle.write(checksum)
        yield path.relative_to(forge.path).as_posix()


def test_a_sparse_store_of_more_samples_than_fit(forge, refused_cheaply):
    """Files full of holes: labels and hashes would fill the memory, and K would not matter."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rows = 2**24
    chunks = memory // (12 * rows) + 1
    names = [
        file
        for name in ("soft_labels", "logits", "labels", "sample_hash")
        for file in write_holes(forge, name, rows, chunks)
    ]
    forge.metadata(put(*ATTRIBUTES, "num_samples", rows * chunks))
    metadata = [path.relative_to(forge.path).as_posix() for path in forge.path.rglob("zarr.json")]
    forge.write_manifest(dict.fromkeys(names, "0" * 64), [*metadata, "README.md"])
    refused_cheaply(forge.path, "do not fit in memory|cannot be mapped into memory")
    # Without a limit on addresses.
    with refused(
        StoreError,
        where="hostile.zarr",
        what="hashes",
        expected=re.compile("^at most .* MiB$"),
        found="24,192 MiB",
    ):
        SoftLabels.open(forge.path)


def test_hard_links_are_files(forge, victim, tmp_path):
    """A second name changes nothing: DVC's caches are made of them."""
    for name in CHUNKS:
        os.link(forge.path / name, tmp_path / name.replace("/", "-"))
    assert victim.use(forge.sign())["error"] is None


def test_a_store_inside_a_store(forge, victim, refused_cheaply):
    """Listed, it is a file like any other; its own lists count for nothing."""
    inner = forge.path / "inner.zarr"
    shutil.copytree(GOLDEN / "golden_views.zarr", inner)
    assert victim.use(forge.sign())["error"] is None
    assert SoftLabels.open(forge.path).num_views == 1
    (inner / "more").touch()
    refused_cheaply(forge.path, "inner.zarr/more is not listed")


def test_folders_in_which_nothing_is_listed(forge, refused_cheaply):
    """An empty one too: nothing says that it belongs there."""
    (forge.path / "labels" / "c" / "more").mkdir()
    refused_cheaply(forge.path, "labels/c/more is not listed in MANIFEST.sha256")


@pytest.mark.slow
def test_folders_deeper_than_a_path_is_long(forge, refused_cheaply):
    """Python's walk would recurse, and no path reaches the end."""
    here = os.open(forge.path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=here)
        inner = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        refused_cheaply(forge.path, "deep is not listed")
    finally:  # pytest's own way of removing it would recurse
        subprocess.run(["rm", "-r", forge.path / "deep"], check=True)


@pytest.mark.parametrize(
    "name", ["a\x1b[2Jb", "a\nb", b"a\xff", "a\u202eb", " ", "-rf", "naïve", "zarr.json "]
)
def test_names_that_mislead(forge, refused_cheaply, name):
    """They are found, and printed so that nothing acts."""
    forge.sign()
    with open(os.fsencode(forge.path) + b"/" + os.fsencode(name), "wb"):  # noqa: PTH123
        pass
    refused_cheaply(forge.path, "is not listed in MANIFEST.sha256")


@pytest.mark.slow
def test_twenty_thousand_unlisted_files(forge, refused_cheaply):
    """Verification stops at the first."""
    forge.sign()
    inside = os.open(forge.path, os.O_RDONLY)
    for number in range(20_000):
        os.close(os.open(f"file{number}", os.O_CREAT, dir_fd=inside))
    os.close(inside)
    refused_cheaply(forge.path, "file.* is not listed", cpu_s=1)


@pytest.mark.slow
def test_a_manifest_of_a_million_files(forge, refused_cheaply):
    """Read in bounded memory; the first of them that is not there ends it."""
    forge.sign()
    manifest = forge.path / "MANIFEST.sha256"
    lines = (f"{'0' * 64}  zz/{number:07d}\n" for number in range(10**6))
    manifest.write_text(manifest.read_text() + "".join(lines))
    refused_cheaply(forge.path, "zz/0000000 is missing", peak_mib=700, cpu_s=10)


LONG = {
    "longest": (b"0" * 64 + b"  " + b"a/" * (64 * MIB - 34) + b"a\n", "line 1: expected a hash"),
    "one byte more": (b"0" * (128 * MIB + 1), "MANIFEST.sha256 is too large"),
    "empty lines": (b"\n" * (128 * MIB), "line 1: expected a hash"),
    "no line": (b"\xff" * (128 * MIB), "does not end with a line feed"),
}


@pytest.mark.parametrize(("text", "message"), LONG.values(), ids=LONG.keys())
def test_the_largest_manifests(forge, refused_cheaply, text, message):
    """128 MiB of one name, of nothing, and a byte more than are read."""
    (forge.path / "MANIFEST.sha256").write_bytes(text)
    refused_cheaply(forge.path, message, peak_mib=512, cpu_s=10)


def test_a_chunk_that_is_cut_short_after_opening(forge):
    """Between opening and the first touch its size is looked at again."""
    store = SoftLabels.open(forge.sign())
    os.truncate(forge.path / "soft_labels" / "c" / "0" / "0", 10)
    with refused(
        StoreError, where="hostile.zarr", what="soft_labels/c/0/0", expected="28 bytes", found=10
    ):
        store.gather(np.array([0]))


def test_a_chunk_that_is_replaced_after_it_was_mapped(forge):
    """By a rename: the bytes that were checked stay."""
    store = SoftLabels.open(forge.sign())
    before = store.gather(np.array([0, 3]))
    other = forge.path / "other"
    other.write_bytes(bytes(28))
    other.rename(forge.path / "soft_labels" / "c" / "0" / "0")
    np.testing.assert_array_equal(store.gather(np.array([0, 3])), before)
    with refused(StoreError, where="hostile.zarr", what="soft_labels/c/0/0"):
        verify_store(forge.path)


SWAP = """
import sys, time, threading
from pathlib import Path
from ltd_pipe.errors import StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.verify import verify_store
print("ready", flush=True)
end = time.monotonic() + 3
outcomes = set()
while time.monotonic() < end:
    try:
        verify_store(Path(sys.argv[1]))
        outcomes.add("sound")
    except StoreError as error:
        outcomes.add("refused")
print(sorted(outcomes))
"""


@pytest.mark.slow
def test_a_file_that_is_a_pipe_every_other_moment(forge, tmp_path):
    """Whoever wins the race: it is the file, or refused; nobody waits."""
    forge.sign()
    file, fifo = forge.path / "labels" / "zarr.json", tmp_path / "fifo"
    os.mkfifo(fifo)
    sound = tmp_path / "sound"
    sound.write_bytes(file.read_bytes())
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SWAP, forge.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None:
            for target in (fifo, sound):
                os.link(target, tmp_path / "next")
                os.replace(tmp_path / "next", file)
                time.sleep(0.0001)
        assert "refused" in process.stdout.read()
    assert process.returncode == 0


BUS = """
import os, sys
from pathlib import Path
import numpy as np
from ltd_pipe.labels import SoftLabels
store = SoftLabels.open(Path(sys.argv[1]))
store.gather(np.array([0]))
os.truncate(Path(sys.argv[1]) / "soft_labels" / "c" / "0" / "0", 0)
store.gather(np.array([0]))
"""


def test_a_chunk_that_is_cut_short_while_it_is_mapped_ends_the_process(forge):
    """As docs/soft-label-store.md says: SIGBUS, not a wrong number."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", BUS, forge.sign()]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGBUS
