"""Stores of several chunks, the servers that they are fetched from, and a cache of one's own."""

import hashlib
from pathlib import Path

import pytest
from faulty_server import FaultyServer
from shared_store import contents, make_store

from ltd_pipe.labels.manifest import format_manifest
from ltd_pipe.labels.remote import TransferOptions


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A store to be fetched; never to be written to."""
    return make_store(tmp_path_factory.mktemp("published") / "labels.zarr")


@pytest.fixture
def own(published, tmp_path) -> Path:
    """A store to be fetched, and to be written to."""
    return make_store(tmp_path / "served" / "labels.zarr")


@pytest.fixture
def server(published):
    """A server of the published store."""
    with FaultyServer(published) as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no proxy of this machine's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return tmp_path / "cache/ltd-pipe/stores"


@pytest.fixture
def options() -> TransferOptions:
    """Of someone in a hurry."""
    return TransferOptions(jobs=4, timeout_s=0.4, max_retries=2, backoff_s=0.01)


@pytest.fixture
def forged():
    """A function that makes the manifest fit whatever a store now holds."""

    def write_manifest(store: Path) -> Path:
        (store / "MANIFEST.sha256").unlink()
        hashes = {name: hashlib.sha256(text).hexdigest() for name, text in contents(store).items()}
        (store / "MANIFEST.sha256").write_text(format_manifest(hashes))
        return store

    return write_manifest
