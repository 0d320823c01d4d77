"""Signature files made to harm: refused as every other file of a store, in little memory."""

import os
import tracemalloc

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.errors import SignatureError, StoreError
from pipeline.labels import SoftLabels
from pipeline.labels.verify import verify_store
from pipeline.sharing.private_key import SigningKey
from pipeline.sharing.public_keys import PublicKey
from pipeline.sharing.signature import NAMESPACE, find_signature, sign_store, verify_signature
from pipeline.sharing.sshsig import SshSignature, armour, pack

FILE = "MANIFEST.sha256.sig"


@pytest.fixture
def key():
    """A key that is trusted."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))


def link(path):
    target = path.parents[1] / "outside"
    target.write_text("x")
    path.symlink_to(target)


def sparse(path):
    path.touch()
    os.truncate(path, 2**40)


PLANTED = {
    "a link out of the store": (link, "is a symbolic link"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "is a symbolic link"),
    "a pipe that blocks": (os.mkfifo, "is not a regular file"),
    "a terabyte": (sparse, "is too large: expected at most 16384 bytes"),
}


@pytest.mark.parametrize(("plant", "message"), PLANTED.values(), ids=PLANTED.keys())
def test_what_is_no_small_file_is_refused(forge, key, plant, message):
    """By verification with and without a key, and by whoever only looks."""
    forge.sign()
    plant(forge.path / FILE)
    tracemalloc.start()
    for use in (verify_store, find_signature, lambda path: verify_signature(path, [key.public])):
        with pytest.raises(StoreError, match=f"{FILE} {message}"):
            use(forge.path)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_a_folder_in_its_place_is_refused(forge, key):
    """It is no file, whatever is in it."""
    forge.sign()
    (forge.path / FILE).mkdir()
    with pytest.raises(SignatureError, match="is not a regular file"):
        verify_signature(forge.path, [key.public])
    (forge.path / FILE / "more").touch()
    with pytest.raises(StoreError, match=f"{FILE} is not a regular file"):
        verify_store(forge.path)


@pytest.mark.parametrize("name", [f"labels/{FILE}", f"{FILE}.sig", f".{FILE}", FILE.lower()])
def test_only_the_one_place_is_exempt_from_the_manifest(forge, name):
    """A file of that name elsewhere is unlisted like any other."""
    forge.sign()
    (forge.path / name).write_text("x")
    with pytest.raises(StoreError, match="is not listed in MANIFEST"):
        verify_store(forge.path)


def test_a_manifest_that_lists_its_signature_is_refused(forge):
    """It could never be signed, and would hide what the signature covers."""
    (forge.path / FILE).write_text("x")
    forge.sign()
    with pytest.raises(StoreError, match=r"MANIFEST.sha256: line 1"):
        SoftLabels.open(forge.path)


def test_a_signature_moved_to_another_store_is_refused(forge, key):
    """Signed once, then the labels were changed and the manifest made to fit."""
    sign_store(forge.sign(), key)
    signature = (forge.path / FILE).read_bytes()
    (forge.path / FILE).unlink()
    forge.chunk("labels/c/0", bytes(16))
    forge.sign()
    (forge.path / FILE).write_bytes(signature)
    with pytest.raises(SignatureError, match="is not SHA256:.*'s for this MANIFEST"):
        verify_signature(forge.path, [key.public])


def test_a_signature_with_a_scalar_out_of_range_is_refused(forge, key):
    """S + L verifies where S is not reduced: two signatures would be one (RFC 8032, 5.1.7)."""
    order = 2**252 + 27742317777372353535851937790883648493
    made = key.sign((forge.sign() / "MANIFEST.sha256").read_bytes(), NAMESPACE)
    scalar = int.from_bytes(made.value[32:], "little") + order
    value = made.value[:32] + scalar.to_bytes(32, "little")
    forged = SshSignature(made.public_key, NAMESPACE, "sha512", made.algorithm, value)
    (forge.path / FILE).write_text(armour(forged))
    with pytest.raises(SignatureError, match="is not SHA256"):
        verify_signature(forge.path, [key.public])


def test_a_certificate_is_no_key(forge, key):
    """Of whatever authority: we read none."""
    blob = pack(b"ssh-ed25519-cert-v01@openssh.com", bytes(32))
    made = key.sign((forge.sign() / "MANIFEST.sha256").read_bytes(), NAMESPACE)
    forged = SshSignature(blob, NAMESPACE, "sha512", made.algorithm, made.value)
    (forge.path / FILE).write_text(armour(forged))
    with pytest.raises(
        SignatureError, match="key of another type: expected ssh-ed25519, found ssh"
    ):
        verify_signature(forge.path, [key.public, PublicKey(blob)])


def test_a_namespace_cannot_write_on_the_terminal(forge):
    """Nothing of the file reaches an error but plain text."""
    forged = SshSignature(pack(b"ssh-ed25519", bytes(32)), "\x1b[31mok", "sha512", "x", b"")
    (forge.sign() / FILE).write_text(armour(forged))
    with pytest.raises(SignatureError) as caught:
        find_signature(forge.path)
    assert str(caught.value).isprintable()
