"""What a publisher of ill will can put at a URL, with every hash right."""

import json
import re
import resource

import pytest
from faulty_server import (
    FaultyServer,
    endless_page,
    page_in_parts,
    replaced,
    reset,
    stall,
    status,
)
from refusals import refused
from shared_store import contents

from ltd_pipe.errors import LocationError, StoreError, TransferError
from ltd_pipe.labels.remote import RemoteStore, parse_location, pull_store


def pull(store, tmp_path, options, identity=""):
    """Fetch what lies in a folder into out/a.zarr, from a server."""
    with FaultyServer(store) as server:
        pull_store(parse_location(server.url, identity), tmp_path / "out" / "a.zarr", options)


def refused_pull(store, tmp_path, options, **fields):
    """It is refused with these fields, and nothing at all was written."""
    with refused(StoreError, **fields) as caught:
        pull(store, tmp_path, options)
    assert not (tmp_path / "out").exists()
    assert len(str(caught.value)) < 600


def list_too(store, *lines):
    """Add lines to a manifest, sorted as it must be."""
    manifest = store / "MANIFEST.sha256"
    known = [*manifest.read_text().splitlines(), *lines]
    manifest.write_text("".join(f"{line}\n" for line in sorted(known, key=lambda x: x[66:])))


HASH = "0" * 64


def test_a_million_files_are_refused_before_they_are_parsed(own, tmp_path, options):
    """By the number of lines, before one of them is parsed."""
    lines = [f"{HASH}  x/{number:07}" for number in range(10**6)]
    with (own / "MANIFEST.sha256").open("a") as manifest:
        manifest.write("".join(f"{line}\n" for line in lines))
    lines.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    others = re.compile(r"^29 .* at most 16 others")
    refused_pull(own, tmp_path, options, what="files", expected=others)
    # The manifest has 76 MB: it and one copy of it may be in memory, not a million objects.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000


def test_rows_without_end_are_refused_by_their_files(own, tmp_path, options, forged):
    """10^12 samples in chunks of one row: never counted one by one."""
    change_sizes(own, num_samples=2**40, rows=1)
    refused_pull(forged(own), tmp_path, options, what="files")


def test_chunks_of_a_terabyte_are_refused(own, tmp_path, options, forged):
    """By the limit of the format."""
    change_sizes(own, num_samples=2**40, rows=2**40)
    refused_pull(forged(own), tmp_path, options, what="chunks")


def change_sizes(store, num_samples, rows):
    """Another N and other rows per chunk, everywhere."""
    group = json.loads((store / "zarr.json").read_text())
    group["attributes"]["ltd_pipe"]["num_samples"] = num_samples
    for name, array in group["consolidated_metadata"]["metadata"].items():
        array["shape"][0] = num_samples
        array["chunk_grid"]["configuration"]["chunk_shape"][0] = rows
        (store / name / "zarr.json").write_text(json.dumps(array))
    (store / "zarr.json").write_text(json.dumps(group))


NO_LINE = {"what": "MANIFEST.sha256: line", "expected": re.compile("^a hash")}
LINES = {
    "outside": (f"{HASH}  ../evil", NO_LINE),
    "absolute": (f"{HASH}  /etc/cron.d/evil", NO_LINE),
    "hidden": (f"{HASH}  .bashrc", NO_LINE),
    "our own part": (f"{HASH}  labels/c/.0.part", NO_LINE),
    "a file where a folder is": (f"{HASH}  labels/c", {"what": "labels/c is"}),
    "a file below a file": (f"{HASH}  labels/c/0/evil", {"what": "evil is listed"}),
    "a name of 300 letters": (f"{HASH}  {'x' * 300}", {"what": "long"}),
    "twice": (f"{HASH}  zarr.json", NO_LINE),
    "the manifest itself": (f"{HASH}  MANIFEST.sha256", NO_LINE),
}


@pytest.mark.parametrize(("line", "fields"), LINES.values(), ids=LINES.keys())
def test_a_name_that_no_store_has_is_refused(own, tmp_path, options, line, fields):
    """Before a byte is written anywhere."""
    list_too(own, line)
    refused_pull(own, tmp_path, options, **fields)


def test_a_chunk_that_is_not_listed_is_refused(own, tmp_path, options):
    """Another file in its place keeps the number right."""
    text = (own / "MANIFEST.sha256").read_text().replace("  logits/c/2/0\n", "  logits/c/2/1\n")
    (own / "MANIFEST.sha256").write_text(text)
    refused_pull(own, tmp_path, options, what="logits/c/2/0")


def test_metadata_that_are_not_listed_are_refused(own, tmp_path, options):
    """They would not be part of the identity."""
    text = (own / "MANIFEST.sha256").read_text().replace("  logits/zarr.json\n", "  logits/x\n")
    (own / "MANIFEST.sha256").write_text(text)
    refused_pull(own, tmp_path, options, what="logits/zarr.json")


def test_more_extra_files_than_a_store_needs_are_refused(own, tmp_path, options, forged):
    """A few are welcome: README.md, LICENSE."""
    for number in range(20):
        (own / f"extra-{number}").write_text("x")
    refused_pull(forged(own), tmp_path, options, expected=re.compile("at most 16 others"))


def test_an_extra_file_that_is_too_large_is_refused(own, tmp_path, options, forged):
    """Its size is in no metadata, so that it has a limit of its own."""
    (own / "LICENSE").write_bytes(bytes(5 * 2**20))
    refused_pull(
        forged(own),
        tmp_path,
        options,
        where="LICENSE",
        what="large",
        expected=re.compile("^at most 4194304"),
    )


def test_a_few_extra_files_are_taken(own, tmp_path, options, forged):
    """Also in a folder of their own, and an empty one."""
    (own / "LICENSE").write_text("MIT")
    (own / "docs").mkdir()
    (own / "docs" / "empty").touch()
    pull(forged(own), tmp_path, options)
    assert contents(tmp_path / "out" / "a.zarr") == contents(own)


def test_a_store_that_only_hashes_right_is_not_published(own, tmp_path, options, forged):
    """Chunks whose own checksum is wrong: it is opened before it gets its name."""
    path = own / "labels" / "c" / "0"
    path.write_bytes(path.read_bytes()[::-1])
    with refused(StoreError, what="labels/c/0"):
        pull(forged(own), tmp_path, options)
    assert not (tmp_path / "out" / "a.zarr").exists()


def test_another_identity_is_refused_by_the_manifest_alone(own, tmp_path, options):
    """Nothing else was asked for."""
    with FaultyServer(own) as server:
        with refused(
            LocationError,
            what="asked",
            expected=re.compile(r"identity \S+"),
            found=re.compile(r"\w+"),
        ):
            RemoteStore(parse_location(server.url, HASH), options)
        assert [name for name, _ in server.log] == ["MANIFEST.sha256"]
    assert not (tmp_path / "out").exists()


def test_an_error_page_without_end_does_not_fill_the_memory(own, tmp_path, options, monkeypatch):
    """Left alone, obstore would keep all of it."""
    monkeypatch.setattr("ltd_pipe.labels.remote._MAX_PAGE_BYTES", 2**26)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with FaultyServer(own) as server:
        server.faults["zarr.json"] = [endless_page]
        with pytest.raises(TransferError) as caught:
            pull_store(parse_location(server.url), tmp_path / "a.zarr", options)
    assert caught.value.what == "the server's answer does not end"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


NO_SIGNATURES = {
    "large": bytes(2**20),
    "a web page": b"<!doctype html><title>Not found</title>",
    "empty": b"",
}


@pytest.mark.parametrize("content", NO_SIGNATURES.values(), ids=NO_SIGNATURES.keys())
def test_what_is_no_signature_is_left_out(own, tmp_path, options, content):
    """It is no part of the identity, and anyone at the server can put one there."""
    (own / "MANIFEST.sha256.sig").write_bytes(content)
    pull(own, tmp_path, options)
    assert "MANIFEST.sha256.sig" not in contents(tmp_path / "out" / "a.zarr")


NOT_THERE = {
    "forbidden": status(403),  # as a bucket that may not be listed says
    "gone": status(410),
    "a bad request": status(400),
    "a page without its length": page_in_parts,
    "a compressed page": replaced(lambda _: b"no such page", Content_Encoding="gzip"),
    "redirected for ever": status(302, Location="/MANIFEST.sha256.sig"),
}


@pytest.mark.parametrize("answer", NOT_THERE.values(), ids=NOT_THERE.keys())
def test_any_answer_but_a_signature_is_none(own, tmp_path, options, answer):
    """Servers have their own ways to say that there is no such file."""
    with FaultyServer(own) as server:
        server.faults["MANIFEST.sha256.sig"] = [answer] * 50
        pull_store(parse_location(server.url), tmp_path / "a.zarr", options)
    assert contents(tmp_path / "a.zarr") == contents(own)


@pytest.mark.parametrize("fault", [reset(0), stall(0), status(503)], ids=["reset", "stall", "503"])
def test_a_signature_that_did_not_arrive_is_not_left_out(own, tmp_path, options, fault):
    """It may be there: it is asked for again, and then the pull has failed."""
    (own / "MANIFEST.sha256.sig").write_bytes(b"-----BEGIN SSH SIGNATURE-----")
    with FaultyServer(own) as server:
        server.faults["MANIFEST.sha256.sig"] = [fault] * 50
        with refused(TransferError, where="MANIFEST.sha256.sig"):
            pull_store(parse_location(server.url), tmp_path / "a.zarr", options)
        server.faults["MANIFEST.sha256.sig"] = [fault]
        pull_store(parse_location(server.url), tmp_path / "a.zarr", options)
    assert contents(tmp_path / "a.zarr") == contents(own)
