"""A store arrives whole or not at all, whatever the server does meanwhile."""

import json

import pytest
from faulty_server import (
    FaultyServer,
    drip,
    endless,
    flipped,
    replaced,
    reset,
    short,
    stall,
    status,
)
from shared_store import contents, make_store

from ltd_pipe.errors import MissingError, StoreError, TransferError
from ltd_pipe.labels.verify import verify_store
from ltd_pipe.sharing.location import parse_location
from ltd_pipe.sharing.pull import pull_store
from ltd_pipe.sharing.remote import RemoteStore

CHUNK = "logits/c/2/0"


def pull(url, target, patience, jobs=4, progress=None):
    """Fetch a store."""
    with RemoteStore(parse_location(url), patience, jobs) as remote:
        pull_store(remote, target, progress)
    return target


def test_what_arrives_is_what_was_published(server, published, tmp_path, patience):
    """The same bytes under the same names, each asked for once; a sound store."""
    target = pull(server.url, tmp_path / "a.zarr", patience)
    assert contents(target) == contents(published)
    verify_store(target)
    names = [name for name, _ in server.log]
    assert sorted(names) == sorted({*contents(published), "MANIFEST.sha256.sig"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("options", [{"keep_logits": False}, {"top_k": 3}], ids=str)
def test_stores_of_other_kinds_arrive_too(tmp_path, patience, options):
    """The arrays come from the metadata, not from a list."""
    made = make_store(tmp_path / "served", **options)
    with FaultyServer(made) as server:
        assert contents(pull(server.url, tmp_path / "a.zarr", patience)) == contents(made)


def test_extra_files_and_a_signature_come_along(own, key_file, tmp_path, patience):
    """A signed store's signature is fetched, and is no part of the identity."""
    from ltd_pipe.labels.signature import claimed_signer, sign_store

    sign_store(own, key_file)
    with FaultyServer(own) as server:
        target = pull(server.url, tmp_path / "a.zarr", patience)
    assert contents(target) == contents(own)
    assert claimed_signer(target) is not None


def test_progress_ends_at_the_size_of_all_chunks(server, published, tmp_path, patience):
    """In bytes, with the total from the first call on."""
    steps = []
    pull(server.url, tmp_path / "a.zarr", patience, progress=lambda *step: steps.append(step))
    size = sum(len(text) for name, text in contents(published).items() if "/c/" in name)
    assert steps[-1] == (size, size)
    assert {total for _, total in steps} == {size}


MENDED = {
    "reset": reset(),
    "reset at once": reset(0),
    "short body": short(),
    "stalled": stall(),
    "a byte now and then": drip,
    "500": status(500),
    "502": status(502),
    "503 with Retry-After": status(503, Retry_After="0"),
    "503 with a date": status(503, Retry_After="Mon, 01 Jan 2024 00:00:00 GMT"),
    "503 with nonsense": status(503, Retry_After="soon"),
    "429": status(429),
    "wrong bytes once": replaced(flipped),
    "another range": status(206, Content_Range="bytes 7-9/10"),
}


@pytest.mark.parametrize("name", [CHUNK, "zarr.json", "MANIFEST.sha256"])
@pytest.mark.parametrize("fault", MENDED.values(), ids=MENDED.keys())
def test_what_may_pass_is_tried_again(server, published, tmp_path, patience, fault, name):
    """Of a chunk, of metadata, and of the manifest itself."""
    if name == "MANIFEST.sha256" and fault is MENDED["wrong bytes once"]:
        pytest.skip("a manifest has nothing that it is compared with")
    server.faults[name] = [fault]
    assert contents(pull(server.url, tmp_path / "a.zarr", patience)) == contents(published)
    assert len(server.asked(name)) == 2


REFUSED = {
    "404": (status(404), MissingError, r"logits/c/2/0: no such file .HTTP 404."),
    "403": (status(403), TransferError, r"access is refused .HTTP 403.*Is it public"),
    "401": (status(401), TransferError, "access is refused"),
    "400": (status(400), TransferError, "cannot be fetched .HTTP 400."),
    "resets": (reset(0), TransferError, "failed, in each of 3 attempts. Run it again later"),
    "stalls": (stall(0), TransferError, "nothing came in time, in each of 3 attempts"),
    "short": (short(0), TransferError, "in the middle of the file, in each of 3 attempts"),
    "500": (status(500), TransferError, "HTTP 500, in each of 3 attempts"),
    "come back tomorrow": (
        status(503, Retry_After="86400"),
        TransferError,
        "HTTP 503, and the server asks to come back in 86400 s",
    ),
    "wrong bytes": (
        replaced(flipped),
        StoreError,
        r"logits/c/2/0: is not the file that its manifest lists: expected SHA-256 .*, found",
    ),
    "too long": (
        replaced(lambda content: content + b"x"),
        StoreError,
        "is damaged at its source: expected 4004 bytes, found 4005. Nothing was published",
    ),
    "too short": (
        replaced(lambda content: content[:-1]),
        StoreError,
        "is damaged at its source: expected 4004 bytes, found 4003",
    ),
    "endless": (endless, StoreError, "is damaged at its source: expected 4004 bytes, found more"),
    "compressed": (
        replaced(lambda content: content, Content_Encoding="gzip"),
        TransferError,
        "sends it compressed: expected the bytes of the file, found gzip",
    ),
    "redirects for ever": (
        status(302, Location=f"/{CHUNK}"),
        TransferError,
        "redirects more than 5 times",
    ),
    "redirects to a file": (
        status(302, Location="file:///etc/passwd"),
        TransferError,
        "expected http:// or https://, found file://",
    ),
}


@pytest.mark.parametrize(("fault", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_pass_is_refused(server, tmp_path, patience, fault, error, message):
    """One line that names the file; nothing under the store's name; the rest is kept."""
    server.faults[CHUNK] = [fault] * 50
    with pytest.raises(error, match=message) as caught:
        pull(server.url, tmp_path / "a.zarr", patience)
    assert "\n" not in str(caught.value)
    (state,) = tmp_path.iterdir()
    assert state.name.startswith(".a.zarr.")
    assert len(server.asked(CHUNK)) <= 6


@pytest.mark.parametrize("name", ["MANIFEST.sha256", "zarr.json"])
def test_an_endless_small_file_is_refused(server, tmp_path, patience, name, monkeypatch):
    """It is read up to its limit, not into all memory."""
    monkeypatch.setattr("ltd_pipe.sharing.remote.MAX_MANIFEST_BYTES", 2**20)
    server.faults[name] = [endless]
    with pytest.raises(StoreError, match=f"{name}: is too large: expected at most"):
        pull(server.url, tmp_path / "a.zarr", patience)
    assert list(tmp_path.iterdir()) == []


def test_a_place_without_a_store_is_one_clear_line(server, tmp_path, patience):
    """The manifest is what is asked for first."""
    with pytest.raises(MissingError, match=r"/nothing/MANIFEST.sha256: no such file .HTTP 404."):
        pull(f"{server.url}/nothing", tmp_path / "a.zarr", patience)


def test_nobody_listening_is_one_clear_line(server, tmp_path, patience):
    """Tried three times, then given up."""
    server.__exit__()
    with pytest.raises(TransferError, match="the connection failed, in each of 3 attempts"):
        pull(server.url, tmp_path / "a.zarr", patience)


def test_an_interrupted_file_is_continued(server, published, tmp_path, patience):
    """The second request asks for the rest only."""
    server.faults[CHUNK] = [short(0.5)]
    target = pull(server.url, tmp_path / "a.zarr", patience)
    assert server.asked(CHUNK) == ["", "bytes=2002-"]
    assert contents(target) == contents(published)


def test_a_server_without_ranges_sends_all_of_it_again(server, published, tmp_path, patience):
    """What was there is not taken for the beginning of what comes."""
    server.ranges, server.faults[CHUNK] = False, [short(0.5)]
    assert contents(pull(server.url, tmp_path / "a.zarr", patience)) == contents(published)
    assert server.asked(CHUNK) == ["", "bytes=2002-"]


def test_the_next_run_fetches_what_is_missing(server, published, tmp_path, patience):
    """Whole files are kept by their hash, the begun one is continued."""
    server.faults[CHUNK] = [short(0.25), *[status(500)] * 2]
    with pytest.raises(TransferError):
        pull(server.url, tmp_path / "a.zarr", patience, jobs=1)
    whole = {name for name, _ in server.log if "/c/" in name} - {CHUNK}
    server.log.clear()
    assert contents(pull(server.url, tmp_path / "a.zarr", patience)) == contents(published)
    assert server.asked(CHUNK) == ["bytes=1001-"]
    assert not whole & {name for name, _ in server.log}


DAMAGE = {
    "flipped": flipped,
    "zeros of a power cut": lambda content: bytes(len(content)),
    "cut": lambda content: content[:100],
    "longer": lambda content: content + b"x",
}


@pytest.mark.parametrize("part", [False, True], ids=["whole", "part"])
@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_was_damaged_meanwhile_is_fetched_again(
    server, published, tmp_path, patience, change, part
):
    """On disk, between two runs: a whole file and one that was begun."""
    server.faults["logits/c/5/0"] = [status(404)]
    with pytest.raises(MissingError):
        pull(server.url, tmp_path / "a.zarr", patience, jobs=1)
    (state,) = tmp_path.iterdir()
    path = state / CHUNK
    damaged = change(path.read_bytes())
    path.unlink()
    (path.with_name(".0.part") if part else path).write_bytes(damaged)
    assert contents(pull(server.url, tmp_path / "a.zarr", patience)) == contents(published)


def test_another_store_at_the_same_place_is_no_continuation(own, tmp_path, patience):
    """A publisher who replaces a store: the old one's files are not mixed in."""
    with FaultyServer(own) as server:
        server.faults[CHUNK] = [status(404)]
        with pytest.raises(MissingError):
            pull(server.url, tmp_path / "out" / "a.zarr", patience)
        server.folder = make_store(tmp_path / "new.zarr", num_samples=500)
        target = pull(server.url, tmp_path / "out" / "a.zarr", patience)
        assert contents(target) == contents(server.folder)
    assert [path.name for path in target.parent.iterdir()] == ["a.zarr"]


def test_a_store_replaced_while_it_is_fetched_is_refused(own, tmp_path, patience):
    """Its manifest is the old one's: nothing of the new one is taken for it."""
    new = make_store(tmp_path / "new.zarr", num_classes=21)
    with (
        FaultyServer(own) as server,
        RemoteStore(parse_location(server.url), patience, 4) as remote,
        pytest.raises(StoreError, match="not the file that its manifest lists"),
    ):
        server.folder = new
        pull_store(remote, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_a_full_disk_is_refused_before_the_chunks_come(server, tmp_path, patience, monkeypatch):
    """By the size that the metadata imply."""
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="not enough disk space"):
        pull(server.url, tmp_path / "a.zarr", patience)
    assert not any("/c/" in name for name, _ in server.log)


SECRETS = {
    "gone": status(404),
    "forbidden": status(403),
    "broken": status(500),
    "reset": reset(0),
    "wrong": replaced(flipped),
    "long": replaced(lambda content: content + b"x"),
    "elsewhere": status(302, Location="ftp://user:hunter2@example.org/?sig=hunter2"),
}


@pytest.mark.parametrize("name", [CHUNK, "MANIFEST.sha256", "zarr.json"])
@pytest.mark.parametrize("fault", SECRETS.values(), ids=SECRETS.keys())
def test_no_message_holds_a_password(server, tmp_path, patience, fault, name):
    """Neither one in the URL nor a signature in its query."""
    url = server.url.replace("http://", "http://user:hunter2@") + "?sig=hunter2"
    server.faults[name] = [fault] * 50
    if name == "MANIFEST.sha256" and fault in (SECRETS["wrong"], SECRETS["long"]):
        name = "zarr.json"
    with pytest.raises((StoreError, TransferError, MissingError)) as caught:
        pull(url, tmp_path / "a.zarr", patience)
    assert "hunter2" not in str(caught.value)
    assert server.url.removeprefix("http://") in str(caught.value)


def test_user_password_and_query_reach_the_server(server, published, tmp_path, patience):
    """Basic authentication, and a signed query repeated for each file."""
    seen = []

    def check(handler, content):
        seen.append((handler.headers["Authorization"], handler.path))
        handler.answer(200, content)

    for name in contents(published):
        server.faults[name] = [check]
    url = server.url.replace("http://", "http://user:hunter2@") + "?sig=a%2Fb"
    assert contents(pull(url, tmp_path / "a.zarr", patience)) == contents(published)
    assert {credentials for credentials, _ in seen} == {"Basic dXNlcjpodW50ZXIy"}
    assert all(path.endswith("?sig=a%2Fb") for _, path in seen)


def test_a_redirection_to_another_host_gets_no_password(server, published, tmp_path, patience):
    """The second server is asked without credentials."""
    seen = []
    with FaultyServer(published) as other:
        path = f"{other.url.replace('127.0.0.1', 'localhost')}/{CHUNK}"
        server.faults[CHUNK] = [status(302, Location=path)]

        def check(handler, content):
            seen.append(handler.headers["Authorization"])
            handler.answer(200, content)

        other.faults[CHUNK] = [check]
        url = server.url.replace("http://", "http://user:hunter2@")
        assert contents(pull(url, tmp_path / "a.zarr", patience)) == contents(published)
    assert seen == [None]


def test_a_proxy_is_not_asked_for_this_machine(server, published, tmp_path, patience, monkeypatch):
    """HTTP_PROXY without NO_PROXY, as many machines have it."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    assert contents(pull(server.url, tmp_path / "a.zarr", patience)) == contents(published)


def test_a_proxy_is_asked_for_others(server, published, tmp_path, patience, monkeypatch):
    """The user's proxy gets the whole URL."""
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(MissingError, match="http://example.org/labels.zarr/MANIFEST.sha256"):
        pull("http://example.org/labels.zarr", tmp_path / "a.zarr", patience)
    assert server.log[0][0] == "http://example.org/labels.zarr/MANIFEST.sha256"


def test_metadata_are_judged_before_chunks_come(own, tmp_path, patience, forged):
    """A store of another version: nothing but its metadata was asked for."""
    group = json.loads((own / "zarr.json").read_text())
    group["attributes"]["ltd_pipe"]["version"] = "2.0"
    (own / "zarr.json").write_text(json.dumps(group))
    with FaultyServer(forged(own)) as server:
        with pytest.raises(StoreError, match="of a version that this ltd-pipe does not read"):
            pull(server.url, tmp_path / "a.zarr", patience)
        assert [name for name, _ in server.log] == ["MANIFEST.sha256", "zarr.json"]
