"""The key to sign with: opened when it is safe and ours to use, refused in one line otherwise."""

import sys

import pytest
from signing_keys import PASSPHRASE

from pipeline.errors import KeyFileError, MachineError, MissingError
from pipeline.sharing.private_key import read_signing_key


def never(fingerprint):
    """For keys that have no passphrase."""
    raise AssertionError("asked for a passphrase")


def test_a_key_without_a_passphrase_opens_without_a_question(key_file, key):
    """And has the public key that lies beside it."""
    opened = read_signing_key(key_file, never)
    assert opened.public == key.public


def test_a_passphrase_is_asked_for_by_fingerprint(make_key):
    """So that people know which key they unlock."""
    pytest.importorskip("bcrypt", reason="locked keys need bcrypt")
    asked = []

    def ask(fingerprint):
        asked.append(fingerprint)
        return PASSPHRASE

    opened = read_signing_key(make_key(locked=True), ask)
    assert asked == [opened.public.fingerprint]


def test_keys_that_ssh_keygen_locked_are_opened(ssh_keygen, tmp_path):
    """With its own cipher and rounds."""
    pytest.importorskip("bcrypt", reason="locked keys need bcrypt")
    ssh_keygen("-q", "-t", "ed25519", "-N", PASSPHRASE, "-f", tmp_path / "id")
    key = read_signing_key(tmp_path / "id", lambda _: PASSPHRASE)
    assert key.public.fingerprint in ssh_keygen("-l", "-f", tmp_path / "id.pub")


def test_a_wrong_passphrase_is_refused(make_key):
    """Neither empty nor another."""
    pytest.importorskip("bcrypt", reason="locked keys need bcrypt")
    path = make_key(locked=True)
    for wrong in ("", "another"):
        with pytest.raises(KeyFileError, match="passphrase is wrong|is damaged"):
            read_signing_key(path, lambda _, wrong=wrong: wrong)


def test_without_bcrypt_a_locked_key_says_what_to_install(ssh_keygen, tmp_path, monkeypatch):
    """The package that derives the key from the passphrase is named."""
    ssh_keygen("-q", "-t", "ed25519", "-N", PASSPHRASE, "-f", tmp_path / "id")
    module = "cryptography.hazmat.primitives.serialization.ssh"
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    for name in [name for name in sys.modules if name.startswith(module)]:
        monkeypatch.delitem(sys.modules, name)
    package = sys.modules["cryptography.hazmat.primitives.serialization"]
    import importlib

    fresh = importlib.import_module(module)
    monkeypatch.setattr(package, "load_ssh_private_key", fresh.load_ssh_private_key)
    with pytest.raises(MachineError, match="bcrypt: this package is missing.*pip install bcrypt"):
        read_signing_key(tmp_path / "id", lambda _: PASSPHRASE)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_can_use_is_refused(key_file, mode):
    """As ssh refuses it, saying how to mend it."""
    key_file.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"others: expected mode 600, found {mode:o}. Run 'chm"):
        read_signing_key(key_file, never)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_key_that_is_its_owners_opens(key_file, mode):
    """Write-protected ones too."""
    key_file.chmod(mode)
    read_signing_key(key_file, never)


@pytest.mark.parametrize(("kind", "name"), [("rsa", "ssh-rsa"), ("ecdsa", "ecdsa-sha2-nistp256")])
def test_other_kinds_are_refused_before_the_passphrase(make_key, kind, name):
    """By name, with the command that makes the right one."""
    with pytest.raises(KeyFileError, match=f"expected ssh-ed25519, found {name}. Make one with"):
        read_signing_key(make_key(kind), never)


def test_a_public_key_is_refused(key_file):
    """Given by mistake; the private one is named."""
    with pytest.raises(
        KeyFileError, match=r"is a public key. Give the private one, .*id_ed25519\."
    ):
        read_signing_key(key_file.with_suffix(".pub"), never)


def test_a_missing_key_is_refused(tmp_path):
    """With the command that makes one."""
    with pytest.raises(MissingError, match="no such key. Make one with 'ssh-keygen -t ed25519'"):
        read_signing_key(tmp_path / "absent", never)


def test_what_is_no_key_is_refused(tmp_path):
    """Noise, another armour, an empty file, a file without end."""
    path = tmp_path / "key"
    for content in (b"", b"\xff" * 100, b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n"):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyFileError, match="is no private key of OpenSSH, or damaged"):
            read_signing_key(path, never)
    path.write_bytes(bytes(2**17))
    with pytest.raises(KeyFileError, match="is too large for a key"):
        read_signing_key(path, never)


@pytest.mark.parametrize("place", range(5, 300, 23))
def test_a_damaged_key_is_refused(key_file, place):
    """One changed letter: never a traceback, never another key."""
    text = key_file.read_text()
    lines = text.splitlines()
    body = "".join(lines[1:-1])
    wrong = body[:place] + ("A" if body[place] != "A" else "B") + body[place + 1 :]
    key_file.write_text("\n".join([lines[0], wrong, lines[-1], ""]))
    try:
        opened = read_signing_key(key_file, lambda _: "x")
    except (KeyFileError, MachineError):
        return
    # Only the comment and the padding are free to change.
    assert place > 200
    assert opened.public.raw == read_public(key_file)


def read_public(key_file):
    """The raw public key that lies beside a private one."""
    from pipeline.sharing.public_keys import read_public_keys

    return read_public_keys(key_file.with_suffix(".pub"), "any")[0].raw
