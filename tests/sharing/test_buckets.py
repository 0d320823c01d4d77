"""From object storage: S3 as moto's server speaks it, and the other kinds as far as they go."""

import sys

import fsspec
import pytest
import requests
from running import free_port, running
from shared_store import contents

from ltd_pipe.errors import MachineError, MissingError, StoreError, TransferError
from ltd_pipe.sharing.bucket import BucketSource, open_filesystem
from ltd_pipe.sharing.cache import cached_store
from ltd_pipe.sharing.location import parse_location
from ltd_pipe.sharing.patience import Patience
from ltd_pipe.sharing.pull import pull_store
from ltd_pipe.sharing.remote import RemoteStore

CHUNK = "logits/c/2/0"


def pull(url, target, patience, jobs=4):
    """Fetch a store."""
    with RemoteStore(parse_location(url), patience, jobs) as remote:
        pull_store(remote, target)
    return contents(target)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Endpoint of an S3 server."""
    port = free_port()
    log = tmp_path_factory.mktemp("s3") / "moto.log"
    with running([sys.executable, "-m", "moto.server", "-p", str(port)], port, log):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def bucket(s3, published, monkeypatch):
    """A bucket with the store in it, and the environment that leads there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    requests.post(f"{s3}/moto-api/reset", timeout=10).close()
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    filesystem.mkdir("shared")
    filesystem.put(f"{published}/", "shared/labels.zarr/", recursive=True, ACL="public-read")
    return filesystem


def test_a_store_arrives_from_s3(bucket, published, tmp_path):
    """From the endpoint that the environment names."""
    url = "s3://shared/labels.zarr"
    assert pull(url, tmp_path / "a.zarr", Patience()) == contents(published)


def test_a_cached_one_is_not_fetched_again(bucket, published):
    """With everything but the manifest gone from the bucket."""
    location = parse_location("s3://shared/labels.zarr")
    folder = cached_store(location)
    for name in contents(published):
        if name != "MANIFEST.sha256":
            bucket.rm_file(f"shared/labels.zarr/{name}")
    assert cached_store(location) == folder


CHANGES = {
    "cut": (lambda text: text[:-1], "damaged at its source: expected 4004 bytes, found 4003"),
    "empty": (lambda _: b"", "damaged at its source: expected 4004 bytes, found 0"),
    "flipped": (lambda text: bytes([text[0] ^ 1]) + text[1:], "not the file that its manifest"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_an_object_with_other_bytes_is_refused(bucket, published, tmp_path, change, message):
    """By its size or its hash."""
    bucket.pipe_file(f"shared/labels.zarr/{CHUNK}", change((published / CHUNK).read_bytes()))
    patience = Patience(attempts=2, pause_s=0.01)
    with pytest.raises(StoreError, match=message):
        pull("s3://shared/labels.zarr", tmp_path / "a.zarr", patience)
    assert not (tmp_path / "a.zarr").exists()


def test_an_object_that_is_longer_is_read_no_further(bucket, published, tmp_path):
    """What the manifest lists is all there; the rest is never asked for."""
    bucket.pipe_file(f"shared/labels.zarr/{CHUNK}", (published / CHUNK).read_bytes() + bytes(99))
    url = "s3://shared/labels.zarr"
    assert pull(url, tmp_path / "a.zarr", Patience()) == contents(published)


def test_an_object_that_is_missing_is_named(bucket, tmp_path, patience):
    """A chunk; and the bucket itself."""
    bucket.rm_file(f"shared/labels.zarr/{CHUNK}")
    with pytest.raises(MissingError, match=f"s3://shared/labels.zarr/{CHUNK}: no such file"):
        pull("s3://shared/labels.zarr", tmp_path / "a.zarr", Patience())
    with pytest.raises(MissingError, match="s3://nowhere/labels.zarr/MANIFEST.sha256"):
        pull("s3://nowhere/labels.zarr", tmp_path / "a.zarr", Patience())


def test_without_credentials_a_public_bucket_is_read(bucket, published, tmp_path, monkeypatch):
    """Nobody has to know of `anon`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    url = "s3://shared/labels.zarr"
    assert pull(url, tmp_path / "a.zarr", Patience()) == contents(published)


def test_an_endpoint_that_does_not_answer_is_given_up(monkeypatch, tmp_path):
    """In one line, without the secret."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    patience = Patience(attempts=2, pause_s=0.01)
    with pytest.raises(TransferError, match="the connection failed .*, in each of 2") as caught:
        pull("s3://shared/labels.zarr", tmp_path / "a.zarr", patience)
    assert "hunter2" not in str(caught.value)


def test_a_store_arrives_from_a_folder(published, tmp_path, patience):
    """A mounted share, as file://."""
    assert pull(f"file://{published}", tmp_path / "a.zarr", patience) == contents(published)


def test_a_store_arrives_from_memory(published, tmp_path, patience):
    """Any fsspec file system will do."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{published}/", "/labels.zarr/", recursive=True)
    assert pull("memory://labels.zarr", tmp_path / "a.zarr", patience) == contents(published)
    memory.rm("/labels.zarr", recursive=True)


def test_a_file_that_does_not_exist_is_missing(tmp_path, patience):
    """And is not asked for twice."""
    with pytest.raises(MissingError, match="no such file"):
        pull(f"file://{tmp_path}/nothing", tmp_path / "a.zarr", patience)


def test_hugging_face_urls_name_repository_and_revision(patience):
    """Of the URL and the file system only: the hub cannot be reached from the tests."""
    location = parse_location("hf://datasets/user/name@v1/labels.zarr")
    filesystem = open_filesystem(location, patience)
    assert type(filesystem).__name__ == "HfFileSystem"
    assert filesystem._strip_protocol(location.url) == "datasets/user/name@v1/labels.zarr"


def test_a_package_that_is_not_installed_is_named(patience, monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MachineError, match=r"gs:// needs a package.*pip install 'gcsfs>="):
        open_filesystem(parse_location("gs://bucket/labels.zarr"), patience)


class LostError(Exception):
    """What a library below raises when the connection breaks."""

    __module__ = "botocore.exceptions"


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), LostError()], ids=repr)
def test_a_broken_connection_is_tried_again(published, tmp_path, patience, monkeypatch, error):
    """And the file goes on where it was."""
    asked, broken = [], []
    cat_file = fsspec.get_filesystem_class("file").cat_file

    def flaky(self, path, start=None, end=None):
        asked.append((path, start, end))
        if path.endswith(CHUNK) and start == 1000 and not broken:
            broken.append(path)
            raise error
        return cat_file(self, path, start=start, end=end)

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "cat_file", flaky)
    monkeypatch.setattr("ltd_pipe.sharing.bucket._PIECE_BYTES", 1000)
    found = pull(f"file://{published}", tmp_path / "a.zarr", patience)
    assert found == contents(published)
    starts = [start for path, start, _ in asked if path.endswith(CHUNK)]
    assert starts == [0, 1000, 1000, 2000, 3000, 4000]


def test_an_error_of_our_own_is_not_taken_for_the_networks(published, monkeypatch, patience):
    """A bug ends with its traceback."""

    def broken(*_, **__):
        raise KeyError("bug")

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "cat_file", broken)
    location = parse_location(f"file://{published}")
    with pytest.raises(KeyError, match="bug"):
        RemoteStore(location, patience)
    assert BucketSource(location, patience).location is location
