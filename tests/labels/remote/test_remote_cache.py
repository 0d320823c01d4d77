"""A fetched store is kept under its identity, and fetched once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_server import FaultyServer, flipped, stall
from refusals import refused
from shared_store import contents, make_store

from ltd_pipe.errors import LocationError, StoreError
from ltd_pipe.labels import SoftLabels, reader
from ltd_pipe.labels.manifest import SIGNATURE
from ltd_pipe.labels.remote import (
    cache_folder,
    cached_store,
    find_cached,
    parse_location,
    pull_excerpt,
    pull_store,
)
from ltd_pipe.labels.signature import claimed_signer, sign_store
from ltd_pipe.labels.verify import verify_store
from ltd_pipe.publish import exclusive

CHUNK = "logits/c/2/0"


@pytest.fixture
def identity(published):
    """Of the published store."""
    return SoftLabels.open(published).identity


def fetch(server, options, **settings):
    """The store's folder in the cache."""
    return cached_store(parse_location(server.url), options, **settings)


def test_the_folder_is_named_for_the_identity(server, published, cache, options, identity):
    """Below XDG_CACHE_HOME; nothing else is left there."""
    found = fetch(server, options)
    assert found == cache / identity
    assert contents(found) == contents(published)
    assert [path.name for path in cache.iterdir()] == [identity]


def test_a_second_time_only_manifest_and_signature_are_fetched(server, options):
    """Whether the URL still holds that store has to be asked."""
    fetch(server, options)
    server.log.clear()
    fetch(server, options)
    assert [name for name, _ in server.log] == ["MANIFEST.sha256", "MANIFEST.sha256.sig"]


def test_a_signature_that_is_published_later_comes_into_the_cache(own, key_file, options):
    """The store is the same one; so does a new signature in the place of an old one."""
    with FaultyServer(own) as server:
        folder = fetch(server, options)
        assert claimed_signer(folder) is None
        sign_store(own, key_file)
        assert fetch(server, options) == folder
        assert (folder / SIGNATURE).read_bytes() == (own / SIGNATURE).read_bytes()
        (folder / SIGNATURE).write_bytes(b"-----BEGIN SSH SIGNATURE-----")
        fetch(server, options)
    assert claimed_signer(folder) is not None


def test_with_the_whole_identity_nothing_is_fetched(server, options, identity):
    """It says what is wanted: this works without a network."""
    fetch(server, options)
    server.log.clear()
    location = parse_location(f"{server.url}#sha256={identity}")
    assert cached_store(location).name == identity
    assert server.log == []


def test_force_fetches_it_again(server, options, published):
    """Every file."""
    fetch(server, options)
    server.log.clear()
    assert contents(fetch(server, options, force=True)) == contents(published)
    assert len(server.log) > 20


@pytest.mark.parametrize("damage", ["cut", "gone", "no manifest", "not a store"])
def test_a_store_that_was_damaged_in_the_cache_is_fetched_again(server, options, published, damage):
    """As far as opening it tells."""
    found = fetch(server, options)
    if damage == "cut":
        (found / "logits/c/2/0").write_bytes(b"")
    elif damage == "gone":
        (found / "labels/c/1").unlink()
    elif damage == "no manifest":
        (found / "MANIFEST.sha256").unlink()
    else:
        shutil.rmtree(found)
        found.mkdir()
    assert contents(fetch(server, options)) == contents(published)


def test_one_that_this_machine_cannot_open_stays(server, options, published, identity, monkeypatch):
    """For want of memory, say: it is refused, and is there once that has passed."""
    found = fetch(server, options)
    location = parse_location(f"{server.url}#sha256={identity}")
    with monkeypatch.context() as patch:
        patch.setattr(reader, "require_memory", too_little_memory)
        with refused(StoreError, where=found, what="memory"):
            cached_store(location, options)
        with refused(StoreError, where=found, what="memory"):
            fetch(server, options)
    server.log.clear()
    assert contents(cached_store(location, options)) == contents(published)
    assert server.log == []


def too_little_memory(where, *_):
    """What opening raises where the address space is small (ulimit -v)."""
    raise StoreError(where, "cannot be mapped into memory (Cannot allocate memory)")


def test_a_damaged_chunk_is_found_when_each_hash_is_wanted(server, options, published, cache):
    """Its size is right, and so opening it does not tell."""
    found = fetch(server, options)
    (found / CHUNK).write_bytes(flipped((found / CHUNK).read_bytes()))
    assert contents(fetch(server, options)) != contents(published)
    assert fetch(server, options, proven=True) == found
    assert contents(found) == contents(published)
    assert [path.name for path in cache.iterdir()] == [found.name]
    server.log.clear()
    fetch(server, options, proven=True)
    assert [name for name, _ in server.log] == ["MANIFEST.sha256", "MANIFEST.sha256.sig"]


@pytest.mark.parametrize("name", [CHUNK, "README.md"])
def test_the_origin_stands_in_for_a_damaged_copy(server, options, published, tmp_path, name):
    """To a folder of one's own, whole or in part."""
    found = fetch(server, options)
    (found / name).write_bytes(flipped((found / name).read_bytes()))
    pull_store(parse_location(server.url), tmp_path / "a.zarr", options)
    assert contents(tmp_path / "a.zarr") == contents(published)
    pull_excerpt(parse_location(server.url), tmp_path / "b.zarr", (200, 300), options=options)
    verify_store(tmp_path / "b.zarr")


def test_any_folder_may_hold_the_cache_and_the_store(options, published, tmp_path, monkeypatch):
    """A space, a percent sign, and what looks like a code."""
    odd = tmp_path / "sp ace 50% %41"
    monkeypatch.setenv("XDG_CACHE_HOME", str(odd / "cache"))
    location = parse_location(shutil.copytree(published, odd / "labels.zarr").as_uri())
    found = cached_store(location, options)
    pull_store(location, odd / "copy.zarr", options)  # from the cache
    assert contents(found) == contents(odd / "copy.zarr") == contents(published)
    assert found.is_relative_to(odd)


def test_a_relative_cache_home_is_ignored(monkeypatch):
    """As the XDG specification says."""
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_folder() == Path.home() / ".cache/ltd-pipe/stores"


@pytest.mark.parametrize("identity", ["", "..", "../../etc", "a" * 32])
def test_only_a_whole_identity_is_looked_up(identity, cache):
    """No part of one, and no path."""
    cache.mkdir(parents=True)
    assert find_cached(identity) is None


def test_an_unexpected_store_is_not_kept(server, options, cache):
    """Refused by its manifest."""
    with pytest.raises(LocationError):
        cached_store(parse_location(server.url, "0" * 64), options)
    assert not cache.exists()


FETCH = """
import sys
from pathlib import Path
from ltd_pipe.labels.remote import cached_store, parse_location
print(cached_store(parse_location(sys.argv[1]), waiting=lambda line: print(line, flush=True)))
"""


def start(url):
    """A process that fetches."""
    return subprocess.Popen([sys.executable, "-c", FETCH, url], stdout=subprocess.PIPE, text=True)


def test_processes_that_want_the_same_store_fetch_it_once(server, published, cache, identity):
    """As the ranks of one training do: one fetches, the others wait and find it."""
    processes = [start(server.url) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(output.splitlines()[-1] == str(cache / identity) for output in outputs)
    assert contents(cache / identity) == contents(published)
    chunks = [name for name, _ in server.log if "/c/" in name]
    assert len(chunks) == len(set(chunks))


def test_the_one_that_waits_says_for_whom(server, options, cache, identity):
    """Once, and goes on when the other lets go."""
    said = []
    with exclusive(cache / identity):
        waiter = start(server.url)
        said.append(waiter.stdout.readline())
    assert waiter.communicate(timeout=300)[0].strip() == str(cache / identity)
    assert said == [f"process {os.getpid()} is writing to it; waiting for it\n"]


def test_a_killed_one_leaves_its_files_for_the_next(server, published, options, cache):
    """SIGKILL: whole files are not fetched again, and the lock is free."""
    server.faults["logits/c/5/0"] = [stall(0.5)]
    process = start(server.url)
    with process:
        # The last file hangs: all the others are whole soon.
        state = wait_for_files(cache, 23)
        process.send_signal(signal.SIGKILL)
    whole = {name for name in contents(state) if "/c/" in name and ".part" not in name}
    server.log.clear()
    assert contents(fetch(server, options)) == contents(published)
    asked = [name for name, _ in server.log if "/c/" in name]
    assert asked == ["logits/c/5/0"]
    assert len(whole) == 23
    assert not any(path.name.startswith(".") for path in cache.iterdir())


def wait_for_files(cache, count):
    """The state folder, once it holds so many whole chunks."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for state in cache.glob(".*.pull"):
            names = [path for path in state.rglob("c/*") if path.is_file()]
            names += [path for path in state.rglob("c/*/0") if path.is_file()]
            if sum(".part" not in path.name for path in names) >= count:
                return state
        time.sleep(0.02)
    raise AssertionError(f"fewer than {count} chunks came")


MEMORY = """
import resource, sys
from pathlib import Path
from ltd_pipe.labels.remote import parse_location, pull_store
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pull_store(parse_location(sys.argv[1]), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_store(tmp_path):
    """80 MB are fetched in half of that at most."""
    big = make_store(tmp_path / "big.zarr", num_samples=20_000, num_classes=1000, rows=None)
    with FaultyServer(big) as server:
        command = [sys.executable, "-c", MEMORY, server.url, str(tmp_path / "a.zarr")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000
