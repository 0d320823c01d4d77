"""Signature files made to harm: refused as every other file of a store, in little memory."""

import os
import tracemalloc

import pytest
from refusals import refused
from signing_keys import forged, packed

from ltd_pipe.errors import SignatureError, StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.signature import claimed_signer, sign_store, verify_signature
from ltd_pipe.labels.verify import verify_store

FILE = "MANIFEST.sha256.sig"


def verify_by(key_file):
    return lambda path: verify_signature(path, key_file.with_suffix(".pub"))


def link(path):
    target = path.parents[1] / "outside"
    target.write_text("x")
    path.symlink_to(target)


def sparse(path):
    path.touch()
    os.truncate(path, 2**40)


PLANTED = {
    "a link out of the store": (link, {"what": "symbolic"}),
    "a link to a device": (
        lambda path: path.symlink_to("/dev/zero"),
        {"what": "symbolic"},
    ),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), {"what": "symbolic"}),
    "a pipe that blocks": (os.mkfifo, {"what": "regular"}),
    "a terabyte": (
        sparse,
        {"what": "large", "expected": "at most 16384 bytes", "found": 1099511627776},
    ),
}


@pytest.mark.parametrize(("plant", "fields"), PLANTED.values(), ids=PLANTED.keys())
def test_what_is_no_small_file_is_refused(forge, key_file, plant, fields):
    """By verification with and without a key, and by whoever only looks."""
    forge.sign()
    plant(forge.path / FILE)
    tracemalloc.start()
    for use in (verify_store, claimed_signer, verify_by(key_file)):
        with refused(StoreError, where="hostile.zarr", **fields):
            use(forge.path)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_a_folder_in_its_place_is_refused(forge, key_file):
    """It is no file, whatever is in it."""
    forge.sign()
    (forge.path / FILE).mkdir()
    with refused(SignatureError, where="hostile.zarr", what="regular"):
        verify_by(key_file)(forge.path)
    (forge.path / FILE / "more").touch()
    with refused(StoreError, where="hostile.zarr", what=f"{FILE} is not a regular"):
        verify_store(forge.path)


@pytest.mark.parametrize("name", [f"labels/{FILE}", f"{FILE}.sig", f".{FILE}", FILE.lower()])
def test_only_the_one_place_is_exempt_from_the_manifest(forge, name):
    """A file of that name elsewhere is unlisted like any other."""
    forge.sign()
    (forge.path / name).write_text("x")
    with refused(StoreError, where="hostile.zarr", what="MANIFEST"):
        verify_store(forge.path)


def test_a_manifest_that_lists_its_signature_is_refused(forge):
    """It could never be signed, and would hide what the signature covers."""
    (forge.path / FILE).write_text("x")
    forge.sign()
    with refused(StoreError, where="hostile.zarr", what="line 1"):
        SoftLabels.open(forge.path)


def test_a_signature_moved_to_another_store_is_refused(forge, key_file):
    """Signed once, then the labels were changed and the manifest made to fit."""
    sign_store(forge.sign(), key_file)
    signature = (forge.path / FILE).read_bytes()
    (forge.path / FILE).unlink()
    forge.chunk("labels/c/0", bytes(16))
    forge.sign()
    (forge.path / FILE).write_bytes(signature)
    refused_signature(forge, key_file)


FORGED = {
    "a value of another length": {"signature": packed(b"ssh-ed25519", bytes(65))},
    "no value": {"signature": packed(b"ssh-ed25519", b"")},
    "a certificate": {"public_key": packed(b"ssh-ed25519-cert-v01@openssh.com", bytes(32))},
    "a key of nothing": {"public_key": b""},
    "another hash": {"hash_algorithm": b"sha256"},
    "a hash that nobody knows": {"hash_algorithm": b"md5"},
    "a namespace that moves the cursor": {"namespace": b"\x1b[31mok\n"},
    "a length beyond the end": {"tail": b"\xff\xff\xff\xff"},
}


@pytest.mark.parametrize("fields", FORGED.values(), ids=FORGED.keys())
def test_a_forged_signature_is_refused(forge, key_file, fields):
    """In one line of plain text."""
    sign_store(forge.sign(), key_file)
    signature = (forge.path / FILE).read_bytes()
    (forge.path / FILE).write_text(forged(signature, **fields))
    refused_signature(forge, key_file)


def refused_signature(forge, key_file):
    for look in (claimed_signer, verify_by(key_file)):
        with refused(SignatureError, where=forge.path) as caught:
            look(forge.path)
        assert str(caught.value).isprintable()
