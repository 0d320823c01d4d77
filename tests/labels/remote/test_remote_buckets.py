"""From object storage: S3 as moto's server speaks it, the others as far as they go offline."""

import functools
import http.client
import http.server
import json
import sys
import threading

import boto3
import pytest
from faulty_server import FaultyServer, status
from running import free_port, running
from shared_store import contents

from ltd_pipe.errors import MissingError, StoreError, TransferError
from ltd_pipe.labels import remote
from ltd_pipe.labels.remote import cached_store, parse_location, pull_store

CHUNK = "logits/c/2/0"
URL = "s3://shared/labels.zarr"


def pull(url, target, options=None):
    """Fetch a store."""
    pull_store(parse_location(url), target, options)
    return contents(target)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Endpoint of an S3 server that asks for credentials."""
    port = free_port()
    log = tmp_path_factory.mktemp("s3") / "moto.log"
    with running([sys.executable, "-m", "moto.server", "-p", str(port)], port, log):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def environment(s3, tmp_path, monkeypatch):
    """What leads to that server, and nothing of this machine's."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket(s3, published):
    """A client of the server, which has the store in a bucket of its own."""
    connection = http.client.HTTPConnection(s3.removeprefix("http://"), timeout=10)
    connection.request("POST", "/moto-api/reset")
    connection.close()
    client = boto3.client("s3")
    client.create_bucket(Bucket="shared")
    for name, content in contents(published).items():
        put(client, name, content)
    return client


def put(client, name, content):
    """Write one file of the store."""
    key = f"labels.zarr/{name}"
    client.put_object(Bucket="shared", Key=key, Body=content, ACL="public-read")


def remove(client, name):
    """Remove one file of the store."""
    client.delete_object(Bucket="shared", Key=f"labels.zarr/{name}")


def test_a_store_arrives_from_s3(bucket, published, tmp_path):
    """From the endpoint that the environment names."""
    assert pull(URL, tmp_path / "a.zarr") == contents(published)


def test_a_cached_one_is_not_fetched_again(bucket, published):
    """With everything but the manifest gone from the bucket."""
    folder = cached_store(parse_location(URL))
    for name in contents(published):
        if name != "MANIFEST.sha256":
            remove(bucket, name)
    assert cached_store(parse_location(URL)) == folder


CHANGES = {
    "cut": (lambda text: text[:-1], "is damaged at its source", 4003),
    "empty": (lambda _: b"", "is damaged at its source", 0),
    "longer": (lambda text: text + bytes(99), "is damaged at its source", 4103),
    "flipped": (
        lambda text: bytes([text[0] ^ 1]) + text[1:],
        "is not the file that its manifest lists",
        None,
    ),
}


@pytest.mark.parametrize(("change", "what", "found"), CHANGES.values(), ids=CHANGES.keys())
def test_an_object_with_other_bytes_is_refused(
    bucket, published, tmp_path, options, change, what, found
):
    """By its size or its hash."""
    put(bucket, CHUNK, change((published / CHUNK).read_bytes()))
    with pytest.raises(StoreError) as caught:
        pull(URL, tmp_path / "a.zarr", options)
    assert caught.value.what == what
    assert found in (None, caught.value.found)
    assert not (tmp_path / "a.zarr").exists()


def test_an_object_that_is_missing_is_named(bucket, tmp_path):
    """A chunk; and the bucket itself."""
    remove(bucket, CHUNK)
    with pytest.raises(MissingError) as caught:
        pull(URL, tmp_path / "a.zarr")
    assert caught.value.where == f"{URL}/{CHUNK}"
    with pytest.raises(MissingError) as caught:
        pull("s3://nowhere/labels.zarr", tmp_path / "a.zarr")
    assert caught.value.where == "s3://nowhere/labels.zarr/MANIFEST.sha256"


@pytest.mark.parametrize("installed", [True, False], ids=["boto3", "no boto3"])
def test_without_credentials_a_public_bucket_is_read(
    bucket, published, tmp_path, monkeypatch, installed
):
    """Nobody has to know of unsigned requests."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    if not installed:
        monkeypatch.setitem(sys.modules, "obstore.auth.boto3", None)
    assert pull(URL, tmp_path / "a.zarr") == contents(published)


def test_profiles_are_read_where_boto3_is_installed(bucket, published, tmp_path, monkeypatch):
    """From ~/.aws, with their region."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    folder = tmp_path / "home/.aws"
    folder.mkdir(parents=True)
    secrets = "aws_access_key_id = key\naws_secret_access_key = hunter2\n"
    (folder / "credentials").write_text(f"[lab]\n{secrets}")
    (folder / "config").write_text("[profile lab]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert pull(URL, tmp_path / "a.zarr") == contents(published)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(TransferError) as caught:
        pull(URL, tmp_path / "b.zarr")
    assert caught.value.what == "AWS's settings cannot be used (ProfileNotFound)"


def test_the_region_of_a_bucket_is_asked_for(published, monkeypatch):
    """Where nobody has named one: of AWS itself, which says it of every bucket."""
    with FaultyServer(published) as server:
        monkeypatch.setattr(remote, "_AWS_URL", server.url)
        server.faults["ours"] = [status(403, x_amz_bucket_region="eu-central-1")]
        assert remote._bucket_region("ours", 5) == "eu-central-1"
        assert remote._bucket_region("nobodys", 5) == "us-east-1"


def test_an_endpoint_that_does_not_answer_is_given_up(monkeypatch, tmp_path, options):
    """In one line, without the secret."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TransferError) as caught:
        pull(URL, tmp_path / "a.zarr", options)
    assert caught.value.what == "the connection failed"
    assert "hunter2" not in str(caught.value)


def test_a_store_arrives_from_a_folder(published, tmp_path, options):
    """A mounted share, as file://."""
    assert pull(f"file://{published}", tmp_path / "a.zarr", options) == contents(published)


def test_a_folder_that_does_not_exist_is_missing(tmp_path, options):
    """And one that holds no store."""
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(MissingError) as caught:
            pull(f"file://{folder}", tmp_path / "out/a.zarr", options)
        assert caught.value.where == f"file://{folder}/MANIFEST.sha256"


class Hub(http.server.SimpleHTTPRequestHandler):
    """A folder as Hugging Face serves it; remembers who asked for what."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A server with the store in revisions of a data set, where HF_ENDPOINT leads."""
    for place in ("main/labels.zarr", "refs%2Fpr%2F1", "v1"):
        folder = tmp_path / "hub/datasets/user/name/resolve" / place
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(published)
    handler = functools.partial(Hub, directory=str(tmp_path / "hub"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


HUB = {
    "hf://datasets/user/name/labels.zarr": "main/labels.zarr",
    "hf://datasets/user/name@v1": "v1",
}


@pytest.mark.parametrize(("url", "place"), HUB.items(), ids=list(HUB))
def test_a_store_arrives_from_hugging_face(hub, published, tmp_path, url, place):
    """By the web address of each file; here from a mirror."""
    assert pull(url, tmp_path / "a.zarr") == contents(published)
    assert hub.asked[0][0] == f"/datasets/user/name/resolve/{place}/MANIFEST.sha256"


def test_a_slash_in_a_revision_is_no_folder(hub, published, tmp_path):
    """A pull request's, of which the address is escaped."""
    with pytest.raises(MissingError):  # this server unescapes it
        pull("hf://datasets/user/name@refs/pr/1", tmp_path / "a.zarr")
    assert hub.asked[0][0] == "/datasets/user/name/resolve/refs%2Fpr%2F1/MANIFEST.sha256"


def test_a_mirror_gets_no_token(hub, tmp_path, monkeypatch):
    """It is Hugging Face's alone."""
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    pull("hf://datasets/user/name/labels.zarr", tmp_path / "a.zarr")
    assert {token for _, token in hub.asked} == {None}


def test_hugging_face_gets_the_token(monkeypatch):
    """As a header, over https and nowhere else."""
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    location = parse_location("hf://datasets/user/name/labels.zarr")
    url, headers = remote._web_url(location)
    assert url == "https://huggingface.co/datasets/user/name/resolve/main/labels.zarr"
    assert headers == {"Authorization": "Bearer hunter2"}
    assert remote._web_url(parse_location("https://huggingface.co/datasets/user/name"))[1] == {}


def test_google_needs_no_credentials_for_a_public_bucket(monkeypatch, tmp_path):
    """Those of the environment come first; offline nothing else can be seen."""
    for name in list(remote.os.environ):
        if name.startswith("GOOGLE_"):
            monkeypatch.delenv(name)
    assert [access.get("skip_signature") for access in remote._google_access()] == [True, None]
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"type": "service_account"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    assert list(remote._google_access()) == [{}]
