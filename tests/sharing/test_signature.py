"""Signing a store, and proving who did; in both directions with the real ssh-keygen."""

import shutil

import pytest

from pipeline.errors import MissingError, SignatureError, StoreError, WriteError
from pipeline.labels import SoftLabels
from pipeline.labels.verify import verify_store
from pipeline.sharing.private_key import read_signing_key
from pipeline.sharing.public_keys import PublicKey
from pipeline.sharing.signature import (
    NAMESPACE,
    find_signature,
    read_signers,
    sign_store,
    signature_check,
    verify_signature,
)
from pipeline.sharing.sshsig import SshSignature, armour, fingerprint

FILE = "MANIFEST.sha256.sig"


@pytest.fixture
def store(signable):
    """A sound store without a signature."""
    return signable


def sign_as(store, key, message=None, namespace=NAMESPACE):
    """Put any signature into a store."""
    manifest = (store / "MANIFEST.sha256").read_bytes() if message is None else message
    (store / FILE).write_text(armour(key.sign(manifest, namespace)))


def test_a_signed_store_says_who_signed(store, key, key_file):
    """By the public key file, with its comment; the identity is as it was."""
    identity = SoftLabels.open(store).identity
    assert sign_store(store, key) == identity
    signer = verify_signature(store, read_signers(key_file.with_suffix(".pub")))
    assert signer == PublicKey(key.public.blob, "alice@example.com")
    assert SoftLabels.open(store).identity == identity
    verify_store(store)


def test_signing_adds_one_file_and_changes_none(store, key, tmp_path):
    """The signature, beside the manifest that does not list it."""
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    sign_store(store, key)
    after = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} == {FILE}
    assert all(after[path] == content for path, content in before.items())


def test_the_same_store_and_key_give_the_same_signature(store, key, tmp_path):
    """Nothing random or of the day is in it."""
    other = shutil.copytree(store, tmp_path / "elsewhere.zarr")
    sign_store(store, key)
    sign_store(other, key)
    assert (store / FILE).read_bytes() == (other / FILE).read_bytes()


# ---------------------------------------------------------------- ssh-keygen


def test_ssh_keygen_verifies_what_we_sign(store, key, key_file, ssh_keygen, tmp_path):
    """With no software of ours: structure, and the signer among those allowed."""
    sign_store(store, key)
    manifest, signature = store / "MANIFEST.sha256", store / FILE
    common = ["-n", NAMESPACE, "-s", signature]
    said = ssh_keygen("-Y", "check-novalidate", *common, stdin=manifest)
    assert f'Good "{NAMESPACE}" signature' in said
    assert key.public.fingerprint in said
    allowed = tmp_path / "allowed"
    allowed.write_text(f"alice@example.com {key_file.with_suffix('.pub').read_text()}")
    words = ["-Y", "verify", "-f", allowed, "-I", "alice@example.com", *common]
    assert "Good" in ssh_keygen(*words, stdin=manifest)
    manifest.write_bytes(manifest.read_bytes() + b"x")
    ssh_keygen(*words, stdin=manifest, code=255)


@pytest.mark.parametrize("options", [[], ["-O", "hashalg=sha256"]], ids=["sha512", "sha256"])
def test_we_verify_what_ssh_keygen_signs(store, key_file, ssh_keygen, options):
    """It writes the file under the name that we look for."""
    words = ["-Y", "sign", "-f", key_file, "-n", NAMESPACE, *options]
    ssh_keygen(*words, store / "MANIFEST.sha256")
    signer = verify_signature(store, read_signers(key_file.with_suffix(".pub")))
    assert signer.name == "alice@example.com"
    verify_store(store)


def test_our_file_is_that_of_ssh_keygen_to_the_byte(store, key, key_file, ssh_keygen):
    """Ed25519 signs without chance, and the armour is the same."""
    sign_store(store, key)
    ours = (store / FILE).read_bytes()
    (store / FILE).unlink()
    words = ["-Y", "sign", "-f", key_file, "-n", NAMESPACE]
    ssh_keygen(*words, store / "MANIFEST.sha256")
    assert (store / FILE).read_bytes() == ours


def test_a_key_made_by_ssh_keygen_signs(store, ssh_keygen, tmp_path):
    """The file that most people have in ~/.ssh."""
    words = ["-q", "-t", "ed25519", "-N", "", "-C", "bob@example.com", "-f", tmp_path / "id"]
    ssh_keygen(*words)
    key = read_signing_key(tmp_path / "id", str)
    sign_store(store, key)
    assert verify_signature(store, read_signers(tmp_path / "id.pub")).name == "bob@example.com"
    assert key.public.fingerprint in ssh_keygen("-l", "-f", tmp_path / "id.pub")


# ---------------------------------------------------------------- refusals to sign


def test_a_damaged_store_is_not_signed(store, key):
    """Nobody puts their name to it, and no signature appears."""
    chunk = store / "soft_labels/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(StoreError, match="soft_labels/c/0/0 is damaged"):
        sign_store(store, key)
    assert not (store / FILE).exists()


def test_what_is_no_store_is_not_signed(tmp_path, key):
    """A folder without a manifest, and nothing at all."""
    with pytest.raises(StoreError, match="is no soft-label store: it holds neither"):
        sign_store(tmp_path, key)
    with pytest.raises(MissingError, match="no such soft-label store"):
        sign_store(tmp_path / "absent", key)


def test_a_signature_is_replaced_only_on_request(store, key, make_key):
    """Somebody else's name does not vanish by accident."""
    sign_store(store, key)
    other = read_signing_key(make_key("other"), str)
    with pytest.raises(WriteError, match=r"MANIFEST.sha256.sig: exists already. Pass --force"):
        sign_store(store, other)
    sign_store(store, other, replace=True)
    assert verify_signature(store, [other.public]) == other.public


# ---------------------------------------------------------------- refusals to believe


def test_an_unsigned_store_is_refused(store, key):
    """Whoever asks for a signature gets one or an error."""
    with pytest.raises(SignatureError, match="is not signed: there is no MANIFEST.sha256.sig. Ask"):
        verify_signature(store, [key.public])


def test_a_signature_of_another_manifest_is_refused(store, key):
    """One changed byte of the manifest."""
    sign_store(store, key)
    manifest = store / "MANIFEST.sha256"
    manifest.write_bytes(manifest.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(SignatureError, match="sig is not SHA256:.*'s for this MANIFEST"):
        verify_signature(store, [key.public])


def test_another_namespace_is_refused(store, key):
    """A signature that ssh-keygen made for git, or for mail, says nothing of labels."""
    sign_as(store, key, namespace="git")
    with pytest.raises(SignatureError, match="for something else: expected ltd-soft-labels, found"):
        verify_signature(store, [key.public])


def test_the_namespace_is_what_was_signed(store, key):
    """Renaming it in the file does not make a signature for something else one of labels."""
    manifest = (store / "MANIFEST.sha256").read_bytes()
    made = key.sign(manifest, "git")
    forged = SshSignature(made.public_key, NAMESPACE, "sha512", made.algorithm, made.value)
    (store / FILE).write_text(armour(forged))
    with pytest.raises(SignatureError, match="is not SHA256:.* for this MANIFEST"):
        verify_signature(store, [key.public])


def test_another_key_is_refused(store, key, make_key):
    """The error names who is trusted and who signed."""
    other = read_signing_key(make_key("other"), str)
    sign_store(store, other)
    with pytest.raises(SignatureError, match="not trusted: expected SHA256:.*, found") as caught:
        verify_signature(store, [key.public])
    assert f"expected {key.public.fingerprint}" in str(caught.value)
    assert f"found {other.public.fingerprint}" in str(caught.value)
    assert verify_signature(store, [key.public, other.public]) == other.public


def test_a_borrowed_name_is_refused(store, key, make_key):
    """A trusted public key written over an untrusted signature."""
    other = read_signing_key(make_key("other"), str)
    made = other.sign((store / "MANIFEST.sha256").read_bytes(), NAMESPACE)
    forged = SshSignature(key.public.blob, NAMESPACE, "sha512", made.algorithm, made.value)
    (store / FILE).write_text(armour(forged))
    with pytest.raises(SignatureError, match="One of the two was changed"):
        verify_signature(store, [key.public])


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_a_key_of_another_kind_is_refused(store, key, make_key, ssh_keygen, kind):
    """ssh-keygen signs with them; one kind of key is one thing less to get wrong."""
    other = make_key(kind)
    ssh_keygen("-Y", "sign", "-f", other, "-n", NAMESPACE, store / "MANIFEST.sha256")
    with pytest.raises(SignatureError, match="of another type: expected ssh-ed25519, found"):
        verify_signature(store, [key.public])
    verify_store(store)


def test_a_signature_of_another_length_is_refused(store, key):
    """65 bytes, and none."""
    for value in (bytes(65), b""):
        forged = SshSignature(key.public.blob, NAMESPACE, "sha512", "ssh-ed25519", value)
        (store / FILE).write_text(armour(forged))
        with pytest.raises(SignatureError, match="is not SHA256"):
            verify_signature(store, [key.public])


def test_a_damaged_signature_is_refused(store, key):
    """Whether it is to be verified or only looked at."""
    sign_store(store, key)
    text = (store / FILE).read_bytes()
    (store / FILE).write_bytes(text[:-10])
    with pytest.raises(SignatureError, match=r"sig is no SSH signature, or cut short"):
        verify_signature(store, [key.public])
    with pytest.raises(SignatureError, match=r"sig is no SSH signature, or cut short"):
        find_signature(store)


# ---------------------------------------------------------------- what is said of it


def test_the_report_says_what_was_not_checked(store, key):
    """Absent; present with a claim; verified."""
    assert signature_check(store, None).detail == "absent"
    sign_store(store, key)
    check = signature_check(store, None)
    assert not check.done
    assert check.detail.startswith(f"present, claims to be by {key.public.fingerprint}")
    check = signature_check(store, PublicKey(key.public.blob, "alice"))
    assert check.done
    assert check.detail == f"MANIFEST.sha256 is signed by {key.public.fingerprint} (alice)"


def test_a_signature_shows_its_maker_unverified(store, key):
    """What `store info` prints."""
    assert find_signature(store) is None
    sign_store(store, key)
    found = find_signature(store)
    assert fingerprint(found.public_key) == key.public.fingerprint
