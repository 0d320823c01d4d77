"""Stores of several chunks, the servers that they are fetched from, and a cache of one's own."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from faulty_server import FaultyServer

from pipeline.images.fingerprint import fingerprint
from pipeline.labels.format import DatasetFacts, StoreAttributes, TeacherFacts
from pipeline.labels.manifest import format_manifest
from pipeline.labels.write import write_store
from pipeline.sharing.patience import Patience


def make_store(target: Path, num_samples=600, num_classes=20, rows=100, **options) -> Path:
    """A store with logits, of six chunks of 4 KiB each."""
    rng = np.random.default_rng(0)
    names = tuple(f"class {number}" for number in range(num_classes))
    labels = rng.integers(-1, num_classes, num_samples).astype(np.int32)
    hashes = rng.integers(0, 2**64, num_samples, dtype=np.uint64)
    attributes = StoreAttributes(
        temperature=2.0,
        num_samples=num_samples,
        num_classes=num_classes,
        class_names=names,
        dataset=DatasetFacts(
            name="digits", split="train", fingerprint=fingerprint(names, labels, hashes)
        ),
        teachers=(TeacherFacts(sha256="ab" * 32, architecture="small-cnn"),),
    )
    logits = rng.standard_normal((num_samples, num_classes)).astype(np.float32) * 3
    options = {"keep_logits": "top_k" not in options} | options
    write_store(target, attributes, logits, labels, hashes, rows=rows, **options)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


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
def patience() -> Patience:
    """Of someone in a hurry."""
    return Patience(stall_s=0.4, attempts=3, pause_s=0.01, min_bytes_per_s=1000)


@pytest.fixture
def forged():
    """A function that makes the manifest fit whatever a store now holds."""

    def write_manifest(store: Path) -> Path:
        (store / "MANIFEST.sha256").unlink()
        hashes = {name: hashlib.sha256(text).hexdigest() for name, text in contents(store).items()}
        (store / "MANIFEST.sha256").write_text(format_manifest(hashes))
        return store

    return write_manifest
