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
from refusals import refused
from shared_store import contents, make_store

from ltd_pipe.errors import MissingError, StoreError, TransferError, WriteError
from ltd_pipe.labels.remote import RemoteStore, TransferOptions, parse_location, pull_store
from ltd_pipe.labels.verify import verify_store

CHUNK = "logits/c/2/0"


def pull(url, target, options, **settings):
    """Fetch a store."""
    pull_store(parse_location(url), target, options, **settings)
    return target


ONE_BY_ONE = TransferOptions(jobs=1, timeout_s=0.4, max_retries=2, backoff_s=0.01)


def test_what_arrives_is_what_was_published(server, published, tmp_path, options):
    """The same bytes under the same names, each asked for once; a sound store."""
    target = pull(server.url, tmp_path / "a.zarr", options)
    assert contents(target) == contents(published)
    verify_store(target)
    names = [name for name, _ in server.log]
    assert sorted(names) == sorted({*contents(published), "MANIFEST.sha256.sig"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("kind", [{"keep_logits": False}, {"top_k": 3}], ids=str)
def test_stores_of_other_kinds_arrive_too(tmp_path, options, kind):
    """The arrays come from the metadata, not from a list."""
    made = make_store(tmp_path / "served", **kind)
    with FaultyServer(made) as server:
        assert contents(pull(server.url, tmp_path / "a.zarr", options)) == contents(made)


def test_extra_files_and_a_signature_come_along(own, key_file, tmp_path, options):
    """A signed store's signature is fetched, and is no part of the identity."""
    from ltd_pipe.labels.signature import claimed_signer, sign_store

    sign_store(own, key_file)
    with FaultyServer(own) as server:
        target = pull(server.url, tmp_path / "a.zarr", options)
    assert contents(target) == contents(own)
    assert claimed_signer(target) is not None


def test_progress_ends_at_the_size_of_all_chunks(server, published, tmp_path, options):
    """In bytes, with the total from the first call on."""
    steps = []
    pull(server.url, tmp_path / "a.zarr", options, progress=lambda *step: steps.append(step))
    size = sum(len(text) for name, text in contents(published).items() if "/c/" in name)
    assert steps[-1] == (size, size)
    assert {total for _, total in steps} == {size}


def test_what_appears_at_the_target_meanwhile_is_not_replaced(server, tmp_path, options):
    """It was not there when --force was not passed; what has come is kept for another time."""
    target = tmp_path / "a.zarr"

    def write(*_):
        target.mkdir(exist_ok=True)
        (target / "thesis.tex").write_text("years")

    with refused(WriteError, where=target, what="exists already", remedy="--force"):
        pull(server.url, target, options, progress=write)
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]
    (target / "thesis.tex").unlink()
    target.rmdir()
    asked = len(server.log)
    verify_store(pull(server.url, target, options))
    assert not any("/c/" in name for name, _ in server.log[asked:])


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
}


@pytest.mark.parametrize("name", [CHUNK, "zarr.json", "MANIFEST.sha256"])
@pytest.mark.parametrize("fault", MENDED.values(), ids=MENDED.keys())
def test_what_may_pass_is_tried_again(server, published, tmp_path, options, fault, name):
    """Of a chunk, of metadata, and of the manifest itself."""
    if name == "MANIFEST.sha256" and fault is MENDED["wrong bytes once"]:
        pytest.skip("a manifest has nothing that it is compared with")
    server.faults[name] = [fault]
    assert contents(pull(server.url, tmp_path / "a.zarr", options)) == contents(published)
    assert len(server.asked(name)) == 2


REFUSED = {
    "404": (status(404), MissingError, "no such file"),
    "403": (status(403), TransferError, "access is refused"),
    "401": (status(401), TransferError, "access is refused"),
    "400": (status(400), TransferError, "the server answers HTTP 400"),
    "resets": (reset(0), TransferError, "the connection failed"),
    "stalls": (stall(0), TransferError, "nothing came in time"),
    "short": (short(0), TransferError, "the connection failed"),
    "500": (status(500), TransferError, "the server answers HTTP 500"),
    "429": (status(429, Retry_After="86400"), TransferError, "the server answers HTTP 429"),
    "wrong bytes": (replaced(flipped), StoreError, "is not the file that its manifest lists"),
    "too long": (replaced(lambda x: x + b"x"), StoreError, "is damaged at its source"),
    "too short": (replaced(lambda x: x[:-1]), StoreError, "is damaged at its source"),
    "another range": (
        status(206, Content_Range="bytes 7-9/10"),
        StoreError,
        "is damaged at its source",
    ),
    "endless": (endless, TransferError, "the server does not say how long it is"),
    "compressed": (
        replaced(lambda content: content, Content_Encoding="gzip"),
        TransferError,
        "the server sends it compressed",
    ),
    "redirects for ever": (
        status(302, Location=f"/{CHUNK}"),
        TransferError,
        "is redirected for ever",
    ),
    "redirects to a file": (
        status(302, Location="file:///etc/passwd"),
        TransferError,
        "to another kind of place",
    ),
}


@pytest.mark.parametrize(("fault", "error", "what"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_pass_is_refused(server, tmp_path, options, fault, error, what):
    """One line that names the file; nothing under the store's name; the rest is kept."""
    server.faults[CHUNK] = [fault] * 50
    with pytest.raises(error) as caught:
        pull(server.url, tmp_path / "a.zarr", options)
    assert what in caught.value.what
    assert caught.value.where == f"{server.url}/{CHUNK}"
    assert "\n" not in str(caught.value)
    (state,) = tmp_path.iterdir()
    assert state.name.startswith(".a.zarr.")
    assert len(server.asked(CHUNK)) <= 11


@pytest.mark.parametrize("name", ["MANIFEST.sha256", "zarr.json"])
def test_a_small_file_that_is_too_large_is_refused(server, tmp_path, options, name, monkeypatch):
    """Before its bytes are read."""
    monkeypatch.setattr("ltd_pipe.labels.remote.MAX_MANIFEST_BYTES", 2**20)
    server.faults[name] = [replaced(lambda _: bytes(2**25))]
    with pytest.raises(StoreError) as caught:
        pull(server.url, tmp_path / "a.zarr", options)
    assert caught.value.what == "is too large"
    assert caught.value.found == 2**25
    assert list(tmp_path.iterdir()) == []


def test_a_place_without_a_store_is_one_clear_line(server, tmp_path, options):
    """The manifest is what is asked for first."""
    with refused(MissingError, where="MANIFEST.sha256", what="file"):
        pull(f"{server.url}/nothing", tmp_path / "a.zarr", options)


def test_nobody_listening_is_one_clear_line(server, tmp_path, options):
    """Tried a few times, then given up."""
    server.__exit__()
    with pytest.raises(TransferError) as caught:
        pull(server.url, tmp_path / "a.zarr", options)
    assert caught.value.what == "the connection failed"


@pytest.mark.parametrize("fault", [short(), reset(), stall()], ids=["end", "reset", "stall"])
def test_a_body_that_breaks_off_is_continued(server, published, tmp_path, options, fault):
    """Where the server names the file's version, only the rest is asked for."""
    server.etags, server.faults[CHUNK] = True, [fault]
    target = pull(server.url, tmp_path / "a.zarr", options)
    assert server.asked(CHUNK) == ["", "bytes=2002-4003"]
    assert contents(target) == contents(published)


def test_a_server_without_ranges_sends_all_of_it_again(server, published, tmp_path, options):
    """What was there is not taken for the beginning of what comes."""
    server.etags, server.ranges, server.faults[CHUNK] = True, False, [short(0.5)]
    assert contents(pull(server.url, tmp_path / "a.zarr", options)) == contents(published)
    assert server.asked(CHUNK) == ["", "bytes=2002-4003", ""]


def test_the_next_run_fetches_what_is_missing(server, published, tmp_path, options):
    """Whole files are kept by their hash, the begun one comes anew."""
    server.faults[CHUNK] = [short(0.25)] * 3
    with pytest.raises(TransferError):
        pull(server.url, tmp_path / "a.zarr", ONE_BY_ONE)
    whole = {name for name, _ in server.log if "/c/" in name} - {CHUNK}
    server.log.clear()
    assert contents(pull(server.url, tmp_path / "a.zarr", options)) == contents(published)
    assert server.asked(CHUNK) == [""]
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
    server, published, tmp_path, options, change, part
):
    """On disk, between two runs: a whole file and one that was begun."""
    server.faults["logits/c/5/0"] = [status(404)]
    with pytest.raises(MissingError):
        pull(server.url, tmp_path / "a.zarr", ONE_BY_ONE)
    (state,) = tmp_path.iterdir()
    path = state / CHUNK
    damaged = change(path.read_bytes())
    path.unlink()
    (path.with_name(".0.part") if part else path).write_bytes(damaged)
    assert contents(pull(server.url, tmp_path / "a.zarr", options)) == contents(published)


def test_a_run_to_another_folder_keeps_what_has_arrived(server, tmp_path, options):
    """Its name may begin with this one's; what an older store has left for this one goes."""
    server.faults[CHUNK] = [status(404)]
    with pytest.raises(MissingError):
        pull(server.url, tmp_path / "out" / "a.zarr", ONE_BY_ONE)
    (state,) = (tmp_path / "out").iterdir()
    whole = contents(state)
    (tmp_path / "out" / ".a.0123456789abcdef.pull").mkdir()
    target = pull(server.url, tmp_path / "out" / "a", options)
    assert contents(state) == whole
    assert {*target.parent.iterdir()} == {target, state}


def test_another_store_at_the_same_place_is_no_continuation(own, tmp_path, options):
    """A publisher who replaces a store: the old one's files are not mixed in."""
    with FaultyServer(own) as server:
        server.faults[CHUNK] = [status(404)]
        with pytest.raises(MissingError):
            pull(server.url, tmp_path / "out" / "a.zarr", options)
        server.folder = make_store(tmp_path / "new.zarr", num_samples=500)
        target = pull(server.url, tmp_path / "out" / "a.zarr", options)
        assert contents(target) == contents(server.folder)
    assert [path.name for path in target.parent.iterdir()] == ["a.zarr"]


def test_a_store_replaced_while_it_is_fetched_is_refused(own, tmp_path, options):
    """Its manifest is the old one's: nothing of the new one is taken for it."""
    new = make_store(tmp_path / "new.zarr", num_classes=21)
    with (
        FaultyServer(own) as server,
        RemoteStore(parse_location(server.url), options) as remote,
        refused(StoreError, where="zarr.json", what="manifest"),
    ):
        server.folder = new
        remote.survey()


def test_a_full_disk_is_refused_before_the_chunks_come(server, tmp_path, options, monkeypatch):
    """By the size that the metadata imply."""
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="not enough disk space"):
        pull(server.url, tmp_path / "a.zarr", options)
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
def test_no_message_holds_a_password(server, tmp_path, options, fault, name):
    """Neither one in the URL nor a signature in its query."""
    url = server.url.replace("http://", "http://user:hunter2@") + "?sig=hunter2"
    server.faults[name] = [fault] * 50
    if name == "MANIFEST.sha256" and fault in (SECRETS["wrong"], SECRETS["long"]):
        name = "zarr.json"
    with pytest.raises((StoreError, TransferError, MissingError)) as caught:
        pull(url, tmp_path / "a.zarr", options)
    assert "hunter2" not in str(caught.value)
    assert server.url.removeprefix("http://") in str(caught.value)


def test_user_password_and_query_reach_the_server(server, published, tmp_path, options):
    """Basic authentication, and a signed query repeated for each file."""
    seen = []

    def check(handler, content):
        seen.append((handler.headers["Authorization"], handler.path))
        handler.answer(200, content)

    for name in contents(published):
        server.faults[name] = [check]
    url = server.url.replace("http://", "http://user:hunter2@") + "?sig=a%2Fb"
    assert contents(pull(url, tmp_path / "a.zarr", options)) == contents(published)
    assert {credentials for credentials, _ in seen} == {"Basic dXNlcjpodW50ZXIy"}
    assert all(path.endswith("?sig=a%2Fb") for _, path in seen)


def test_a_redirection_to_another_host_gets_no_password(server, published, tmp_path, options):
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
        assert contents(pull(url, tmp_path / "a.zarr", options)) == contents(published)
    assert seen == [None]


def test_a_proxy_is_not_asked_for_this_machine(server, published, tmp_path, options, monkeypatch):
    """HTTP_PROXY without NO_PROXY, as many machines have it."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    assert contents(pull(server.url, tmp_path / "a.zarr", options)) == contents(published)


def test_a_proxy_is_asked_for_others(server, published, tmp_path, options, monkeypatch):
    """The user's proxy gets the whole URL."""
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "")
    with refused(MissingError, where="http://example.org/labels.zarr/MANIFEST.sha256", what="file"):
        pull("http://example.org/labels.zarr", tmp_path / "a.zarr", options)
    assert server.log[0][0] == "http://example.org/labels.zarr/MANIFEST.sha256"


def test_metadata_are_judged_before_chunks_come(own, tmp_path, options, forged):
    """A store of another version: nothing but its metadata was asked for."""
    group = json.loads((own / "zarr.json").read_text())
    group["attributes"]["ltd_pipe"]["version"] = "2.0"
    (own / "zarr.json").write_text(json.dumps(group))
    with FaultyServer(forged(own)) as server:
        with refused(StoreError, what="version", expected="1.x", found="'2.0'"):
            pull(server.url, tmp_path / "a.zarr", options)
        assert [name for name, _ in server.log] == ["MANIFEST.sha256", "zarr.json"]
