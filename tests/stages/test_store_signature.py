"""`ltd-pipe store sign` and `store verify --public-key`, as people run them."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from signing_keys import PASSPHRASE

OTHER = Path(__file__).parents[1] / "labels" / "golden_views.zarr"


@pytest.fixture
def store(signable):
    """A sound store without a signature."""
    return signable


@pytest.fixture
def signed(ltd_pipe, store, key_file):
    """A store with Alice's signature."""
    assert ltd_pipe("store", "sign", store, "--key", key_file).code == 0
    return store


def test_a_store_is_signed_and_verified(ltd_pipe, store, key_file):
    """Who signed what, on one line; the signature among what was checked."""
    outcome = ltd_pipe("store", "sign", store, "--key", key_file)
    assert outcome.code == 0
    assert f"{store}: identity " in outcome.out
    assert " is signed by SHA256:" in outcome.out
    outcome = ltd_pipe("store", "verify", store, "--public-key", key_file.with_suffix(".pub"))
    assert outcome.code == 0
    assert "ok      signature: MANIFEST.sha256 is signed by SHA256:" in outcome.out
    assert "(alice@example.com)" in outcome.out


def test_without_a_key_the_signature_is_named_as_not_checked(ltd_pipe, store, key_file):
    """Absent or present, and never passed over in silence."""
    assert "not     signature: absent\n" in ltd_pipe("store", "verify", store).out
    ltd_pipe("store", "sign", store, "--key", key_file)
    outcome = ltd_pipe("store", "verify", store)
    assert outcome.code == 0
    assert "not     signature: present, by SHA256:" in outcome.out


def test_json_is_for_scripts(ltd_pipe, store, key_file):
    """Both commands."""
    said = json.loads(ltd_pipe("store", "sign", store, "--key", key_file, "--json").out)
    assert said["signer"].startswith("SHA256:")
    assert len(said["identity"]) == 64
    words = ["--public-key", key_file.with_suffix(".pub"), "--json"]
    checks = json.loads(ltd_pipe("store", "verify", store, *words).out)
    assert [check["done"] for check in checks if check["name"] == "signature"] == [True]
    # What was done stands before what was not.
    assert [check["done"] for check in checks] == sorted((c["done"] for c in checks), reverse=True)


def test_refusals_are_one_line_and_exit_code_1(ltd_pipe, signed, make_key, key_file, tmp_path):
    """Signed already; by another; not at all; with a key that is none."""
    other = make_key("other").with_suffix(".pub")
    (tmp_path / "empty").touch()
    public = key_file.with_suffix(".pub")
    cases = [
        (["sign", signed, "--key", key_file], "exists already. Pass --force"),
        (["sign", signed, "--key", tmp_path / "empty", "--force"], "cannot sign"),
        (["sign", tmp_path / "none.zarr", "--key", key_file], "no such soft-label store"),
        (["verify", signed, "--public-key", other], "is by a key that is not trusted"),
        (["verify", signed, "--public-key", tmp_path / "empty"], "holds no key"),
        (["verify", signed, "--public-key", tmp_path / "absent"], "no such public key"),
    ]
    for words, message in cases:
        outcome = ltd_pipe("store", *words)
        assert outcome.code == 1
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
    (signed / "MANIFEST.sha256.sig").unlink()
    outcome = ltd_pipe("store", "verify", signed, "--public-key", public)
    assert (outcome.code, "is not signed" in outcome.err) == (1, True)


def test_of_several_keys_one_can_be_asked_for(ltd_pipe, signed, make_key, key_file, tmp_path):
    """Bob is trusted, too; but what goes by his name has to be his."""
    keys = tmp_path / "keys.pub"
    keys.write_text("".join(k.with_suffix(".pub").read_text() for k in (key_file, make_key("bob"))))
    words = ["store", "verify", signed, "--public-key", keys, "--signer"]
    assert ltd_pipe(*words, "alice@example.com").code == 0
    outcome = ltd_pipe(*words, "bob@example.com")
    assert outcome.code == 1
    assert "somebody else on the list: expected 'bob@example.com'" in outcome.err
    assert "found alice@example.com" in outcome.err
    assert ltd_pipe(*words[:3], "--signer", "alice@example.com").code == 2


def test_a_signed_store_with_a_damaged_chunk_is_refused(ltd_pipe, signed, key_file):
    """The signature is right, and says nothing of a file that differs from the manifest."""
    chunk = signed / "logits/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    outcome = ltd_pipe("store", "verify", signed, "--public-key", key_file.with_suffix(".pub"))
    assert outcome.code == 1
    assert "logits/c/0/0 is damaged" in outcome.err


def test_a_store_that_is_replaced_meanwhile_is_refused(
    ltd_pipe, signed, key_file, tmp_path, monkeypatch
):
    """The signature was of another one's manifest than what was verified after it."""
    program, away = shutil.which("ssh-keygen"), tmp_path / "away"
    swapping = tmp_path / "bin" / "ssh-keygen"
    swapping.parent.mkdir()
    swapping.write_text(
        f"#!/bin/sh\n[ -e {away} ] || {{ mv {signed} {away}; cp -r {OTHER} {signed}; }}\n"
        f'exec {program} "$@"\n'
    )
    swapping.chmod(0o755)
    monkeypatch.setenv("PATH", f"{swapping.parent}:{os.environ['PATH']}")
    outcome = ltd_pipe("store", "verify", signed, "--public-key", key_file.with_suffix(".pub"))
    assert outcome.code == 1
    assert "was replaced while it was verified" in outcome.err


def test_force_replaces_a_signature(ltd_pipe, signed, make_key):
    """Another signer's."""
    other = make_key("other")
    assert ltd_pipe("store", "sign", signed, "--key", other, "--force").code == 0
    words = ["--public-key", other.with_suffix(".pub")]
    assert ltd_pipe("store", "verify", signed, *words).code == 0


# ---------------------------------------------------------------- passphrases


def test_the_passphrase_comes_from_the_environment(ltd_pipe, store, make_key, monkeypatch):
    """For machines that nobody sits at."""
    path = make_key("locked", locked=True)
    monkeypatch.setenv("LTD_PIPE_KEY_PASSPHRASE", PASSPHRASE)
    outcome = ltd_pipe("store", "sign", store, "--key", path)
    assert outcome.code == 0
    assert PASSPHRASE not in outcome.out + outcome.err


def test_without_a_terminal_a_passphrase_is_not_waited_for(store, make_key):
    """A job ends and says what to set, where it would otherwise hang."""
    words = ["store", "sign", str(store), "--key", str(make_key("locked", locked=True))]
    done = subprocess.run(
        [sys.executable, "-m", "ltd_pipe", *words],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert "incorrect passphrase" in done.stderr
    assert "set LTD_PIPE_KEY_PASSPHRASE" in done.stderr


def test_the_passphrase_is_asked_for_and_not_shown(store, make_key):
    """On a real terminal: the question names the key, the answer leaves no trace."""
    words = ["store", "sign", str(store), "--key", str(make_key("locked", locked=True))]
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-m", "ltd_pipe", *words])  # noqa: S606
    screen = _read_until(terminal, b"passphrase")
    # What is typed before the echo is off would be thrown away.
    while termios.tcgetattr(terminal)[3] & termios.ECHO:
        time.sleep(0.01)
    os.write(terminal, f"{PASSPHRASE}\n".encode())
    screen += _read_until(terminal, None)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    assert code == 0
    assert b"is signed by SHA256:" in screen
    assert PASSPHRASE.encode() not in screen
    assert (store / "MANIFEST.sha256.sig").exists()


def _read_until(terminal, words):
    # A terminal whose other end is closed gives EIO, not an end of file.
    screen, end = b"", time.monotonic() + 120
    while words is None or words not in screen:
        assert select.select([terminal], [], [], end - time.monotonic())[0], screen
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        if not part:
            break
        screen += part
    return screen
