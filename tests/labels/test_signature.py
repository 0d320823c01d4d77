"""Signing a store, and proving who did, by the real ssh-keygen."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from refusals import refused
from signing_keys import PASSPHRASE, forged

from ltd_pipe.errors import (
    KeyFileError,
    MachineError,
    MissingError,
    SignatureError,
    StoreError,
    WriteError,
)
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.signature import (
    NAMESPACE,
    PASSPHRASE_VARIABLE,
    claimed_signer,
    sign_store,
    signature_check,
    verify_signature,
)
from ltd_pipe.labels.verify import verify_store

FILE = "MANIFEST.sha256.sig"


@pytest.fixture
def store(signable):
    """A sound store without a signature."""
    return signable


def public(key):
    return key.with_suffix(".pub")


def fingerprint(key, ssh_keygen):
    return ssh_keygen("-l", "-f", public(key)).split()[1]


def test_a_signed_store_says_who_signed(store, key_file, ssh_keygen):
    """By the public key file, with its comment; the identity is as it was."""
    identity = SoftLabels.open(store).identity
    signed, signer = sign_store(store, key_file)
    assert signed == identity == SoftLabels.open(store).identity
    assert signer.fingerprint == fingerprint(key_file, ssh_keygen)
    found = verify_signature(store, public(key_file))
    assert (found.fingerprint, found.name) == (signer.fingerprint, "alice@example.com")
    verify_store(store)


def test_signing_adds_one_file_and_changes_none(store, key_file):
    """The signature, beside the manifest that does not list it."""
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    sign_store(store, key_file)
    after = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} == {FILE}
    assert all(after[path] == content for path, content in before.items())


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_any_kind_of_key_signs(store, make_key, kind):
    """What ssh-keygen signs with it verifies."""
    key = make_key(kind, kind=kind)
    sign_store(store, key)
    assert verify_signature(store, public(key)).kind.lower() == kind


def test_a_key_in_an_agent_signs(store, key_file, monkeypatch, tmp_path):
    """Named by its public half; the private file may be elsewhere, or nowhere."""
    socket = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        while not socket.exists():
            assert agent.poll() is None
        subprocess.run(["ssh-add", "-q", key_file], check=True)
        key_file.unlink()
        sign_store(store, public(key_file))
        agent.terminate()
    assert verify_signature(store, public(key_file)).name == "alice@example.com"


def test_a_signature_that_ssh_keygen_made_is_verified(store, key_file, ssh_keygen):
    """It writes the file under the name that we look for, as earlier versions of ours did."""
    words = ["-Y", "sign", "-f", key_file, "-n", NAMESPACE, "-O", "hashalg=sha256"]
    ssh_keygen(*words, store / "MANIFEST.sha256")
    assert verify_signature(store, public(key_file)).name == "alice@example.com"
    ours = shutil.copytree(store, store.with_name("ours"))
    sign_store(ours, key_file, replace=True)
    (store / FILE).unlink()
    ssh_keygen("-Y", "sign", "-f", key_file, "-n", NAMESPACE, store / "MANIFEST.sha256")
    assert (ours / FILE).read_bytes() == (store / FILE).read_bytes()


# ---------------------------------------------------------------- refusals to sign


def test_a_damaged_store_is_not_signed(store, key_file):
    """Nobody puts their name to it, and no signature appears."""
    chunk = store / "soft_labels/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        sign_store(store, key_file)
    assert "soft_labels/c/0/0" in str(caught.value)
    assert not (store / FILE).exists()


def test_a_signature_is_replaced_only_on_request(store, key_file, make_key):
    """Somebody else's name does not vanish by accident."""
    sign_store(store, key_file)
    other = make_key("other")
    with pytest.raises(WriteError) as caught:
        sign_store(store, other)
    assert caught.value.where == str(store / FILE)
    sign_store(store, other, replace=True)
    verify_signature(store, public(other))


def test_a_passphrase_comes_from_the_environment(store, make_key, monkeypatch):
    """For machines that nobody sits at; a wrong one, or none, ends in one line."""
    key = make_key("locked", locked=True)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    sign_store(store, key)
    (store / FILE).unlink()
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong")
    with pytest.raises(KeyFileError) as caught:
        sign_store(store, key)
    assert "incorrect passphrase" in caught.value.what
    assert PASSPHRASE_VARIABLE in caught.value.remedy
    assert not (store / FILE).exists()


def test_a_key_that_cannot_sign_is_refused(store, key_file, tmp_path, monkeypatch):
    """Absent; readable by others; no key; a public one without an agent."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(MissingError):
        sign_store(store, tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    alone = shutil.copy(public(key_file), tmp_path / "alone.pub")
    for wrong in (tmp_path / "text", alone):
        with pytest.raises(KeyFileError) as caught:
            sign_store(store, wrong)
        assert "\n" not in str(caught.value)
    key_file.chmod(0o644)
    with pytest.raises(KeyFileError) as caught:
        sign_store(store, key_file)
    assert "too open" in caught.value.what


def test_without_openssh_it_is_said_how_to_get_it(store, key_file, monkeypatch, tmp_path):
    """For signing and for verifying."""
    sign_store(store, key_file)
    monkeypatch.setenv("PATH", str(tmp_path))
    for use in (
        lambda: sign_store(store, key_file, replace=True),
        lambda: verify_signature(store, public(key_file)),
    ):
        with pytest.raises(MachineError) as caught:
            use()
        assert caught.value.where == "ssh-keygen"
        assert "openssh-client" in caught.value.remedy
    assert signature_check(store, None).detail.startswith("present;")


# ---------------------------------------------------------------- refusals to believe


def test_an_unsigned_store_is_refused(store, key_file):
    """Whoever asks for a signature gets one or an error."""
    with pytest.raises(SignatureError) as caught:
        verify_signature(store, public(key_file))
    assert caught.value.what.startswith("is not signed")
    assert claimed_signer(store) is None


def changed_manifest(store, ssh_keygen, keys):
    manifest = store / "MANIFEST.sha256"
    manifest.write_bytes(manifest.read_bytes().replace(b"a", b"b", 1))


def another_namespace(store, ssh_keygen, keys):
    (store / FILE).unlink()
    ssh_keygen("-q", "-Y", "sign", "-f", keys[0], "-n", "git", store / "MANIFEST.sha256")


def renamed_namespace(store, ssh_keygen, keys):
    another_namespace(store, ssh_keygen, keys)
    (store / FILE).write_text(forged((store / FILE).read_bytes(), namespace=NAMESPACE.encode()))


def borrowed_name(store, ssh_keygen, keys):
    trusted = (store / FILE).read_bytes()
    sign_store(store, keys[1], replace=True)
    untrusted = (store / FILE).read_bytes()
    (store / FILE).write_text(forged(untrusted, public_key=key_of(trusted)))


def key_of(signature):
    import base64

    from signing_keys import taken

    return taken(base64.b64decode(b"".join(signature.splitlines()[1:-1]))[10:])[0]


def cut_short(store, ssh_keygen, keys):
    (store / FILE).write_bytes((store / FILE).read_bytes()[:-10])


def nothing(store, ssh_keygen, keys):
    (store / FILE).write_bytes(b"")


@pytest.mark.parametrize(
    "harm",
    [changed_manifest, another_namespace, renamed_namespace, borrowed_name, cut_short, nothing],
)
def test_what_is_not_a_signature_of_this_manifest_is_refused(
    store, key_file, make_key, ssh_keygen, harm
):
    """Whether it is to be verified or only looked at; ssh-keygen's reason is in the line."""
    other = make_key("other")
    sign_store(store, key_file)
    verify_signature(store, public(key_file))
    harm(store, ssh_keygen, (key_file, other))
    for look in (lambda: verify_signature(store, public(key_file)), lambda: claimed_signer(store)):
        with pytest.raises(SignatureError) as caught:
            look()
        assert caught.value.found
        assert "\n" not in str(caught.value)


def test_another_key_is_refused(store, key_file, make_key, ssh_keygen):
    """The error names who signed; a list of both keys is enough."""
    other = make_key("other")
    sign_store(store, other)
    with pytest.raises(SignatureError) as caught:
        verify_signature(store, public(key_file))
    assert "not trusted" in caught.value.what
    assert fingerprint(other, ssh_keygen) in caught.value.found
    both = store.with_name("both.pub")
    both.write_text(public(key_file).read_text() + public(other).read_text())
    assert verify_signature(store, both).fingerprint == fingerprint(other, ssh_keygen)


# ---------------------------------------------------------------- who is trusted


def day(days):
    """A day before or after today, as ssh-keygen writes it in UTC."""
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y%m%d") + "Z"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("alice@lab.org KEY a comment", "alice@lab.org"),
        ("# the lab\n\nalice@lab.org,a@home KEY", "alice@lab.org"),
        ("*@lab.org KEY", "*@lab.org"),
        (f'alice namespaces="{NAMESPACE}" KEY', "alice"),
        (f'alice namespaces="git,{NAMESPACE}",valid-before="{day(2)}" KEY', "alice"),
        (f'alice valid-after="{day(-2)}" KEY', "alice"),
        ("sk-alice@lab.org KEY", "sk-alice@lab.org"),
        ("ssh-alice KEY", "ssh-alice"),
        ("no key at all\nalice KEY", "alice"),
    ],
)
def test_a_list_of_allowed_signers_gives_names(store, key_file, line, name):
    """As ssh-keygen reads it."""
    sign_store(store, key_file)
    allowed = store.with_name("allowed")
    allowed.write_text(line.replace("KEY", " ".join(public(key_file).read_text().split()[:2])))
    assert verify_signature(store, allowed).name == name


@pytest.mark.parametrize(
    ("lines", "named", "others"),
    [
        ("alice@lab,bob@lab KEY", ["alice@lab", "bob@lab"], ["carol@lab", "alice", "lab"]),
        ("*@lab KEY", ["alice@lab", "bob@lab"], ["alice@home"]),
        ("*@lab,!bob@lab KEY", ["alice@lab"], ["bob@lab"]),
        ("alice@lab KEY\nbob@lab KEY", ["alice@lab", "bob@lab"], ["carol@lab"]),
        ("KEY alice@lab\nbob@lab KEY", ["alice@lab", "bob@lab"], ["key-0"]),
        ("KEY Alice  of  the lab", ["Alice  of  the lab"], ["Alice"]),
        (f'alice valid-before="{day(-2)}" KEY\nbob KEY', ["bob"], ["alice"]),
    ],
)
def test_every_name_that_a_list_gives_a_key_is_its_signers(store, key_file, lines, named, others):
    """As for ssh-keygen: several to a line, by a pattern, on a later line."""
    sign_store(store, key_file)
    allowed = store.with_name("allowed")
    allowed.write_text(lines.replace("KEY", " ".join(public(key_file).read_text().split()[:2])))
    for name in named:
        assert verify_signature(store, allowed, name).name == " ".join(name.split())
    for name in others:
        with refused(SignatureError, what="somebody else", expected=f"'{name}' of {allowed}"):
            verify_signature(store, allowed, name)


@pytest.mark.parametrize(
    "line",
    [
        'alice namespaces="git" KEY',
        f'alice valid-before="{day(-2)}" KEY',
        f'alice valid-after="{day(2)}" KEY',
        'alice unknown="1" KEY',
        "alice cert-authority KEY",
        "alice ssh-ed25519 AAAA",
    ],
)
def test_a_line_that_does_not_allow_it_is_no_trust(store, key_file, line):
    """Of another purpose or time, or not understood: it allows nobody."""
    sign_store(store, key_file)
    allowed = store.with_name("allowed")
    allowed.write_text(line.replace("KEY", " ".join(public(key_file).read_text().split()[:2])))
    with pytest.raises(SignatureError):
        verify_signature(store, allowed)


@pytest.mark.parametrize(
    "options",
    ['valid-before="20200101"', 'namespaces="git",valid-after="20200101"', "CERT-AUTHORITY"],
)
def test_options_without_a_name_are_refused(store, key_file, options):
    """ssh-keygen would take them for the name, so that a key that has expired would be good."""
    sign_store(store, key_file)
    allowed = store.with_name("allowed")
    allowed.write_text(f"{options} {public(key_file).read_text()}")
    with refused(
        KeyFileError, where=allowed, what="would not be heeded", found=re.compile(options)
    ):
        verify_signature(store, allowed)


@pytest.mark.parametrize("name", ["key-0", "key-*", "alice2"])
def test_a_comment_is_of_its_own_key_alone(store, key_file, make_key, name):
    """A key without a name gets one for ssh-keygen, which no other line has or allows."""
    other = make_key("other")
    sign_store(store, other)
    mine, theirs = (" ".join(public(key).read_text().split()[:2]) for key in (key_file, other))
    allowed = store.with_name("allowed")
    allowed.write_text(f"{mine} alice\n{name} {theirs}\n")
    with refused(SignatureError, what="somebody else", found=name):
        verify_signature(store, allowed, "alice")


def test_a_key_for_other_purposes_is_named(store, key_file):
    """The files are right, so that to fetch them again would not help."""
    sign_store(store, key_file)
    allowed = store.with_name("allowed")
    key = " ".join(public(key_file).read_text().split()[:2])
    allowed.write_text(f'alice namespaces="git" {key}')
    with refused(SignatureError, what="is by a key that is trusted, but not", remedy="that list"):
        verify_signature(store, allowed)


def test_what_is_no_list_of_keys_is_refused(store, key_file):
    """A private key, an empty file, a huge one, none."""
    sign_store(store, key_file)
    place = store.with_name("place")
    for content, error in (
        (key_file.read_bytes(), "is a private key"),
        (b"\n# nothing\n", "holds no key"),
        (b"x" * 2**21, "is too large"),
    ):
        place.write_bytes(content)
        with pytest.raises(KeyFileError) as caught:
            verify_signature(store, place)
        assert caught.value.what.startswith(error)
    with pytest.raises(MissingError):
        verify_signature(store, store.with_name("absent"))


# ---------------------------------------------------------------- what is said of it


def test_the_report_says_what_was_not_checked(store, key_file):
    """Absent; present with a claim; verified."""
    assert signature_check(store, None).detail == "absent"
    _, signer = sign_store(store, key_file)
    check = signature_check(store, None)
    assert not check.done
    assert check.detail.startswith(f"present, by {signer.fingerprint}")
    check = signature_check(store, verify_signature(store, public(key_file)))
    assert check.done
    assert check.detail == f"MANIFEST.sha256 is signed by {signer.fingerprint} (alice@example.com)"


def test_a_name_cannot_write_on_the_terminal(store, key_file):
    """A comment comes from whoever sent the key."""
    sign_store(store, key_file)
    place = store.with_name("place.pub")
    key = " ".join(public(key_file).read_text().split()[:2])
    place.write_text(f"{key} \x1b[31malice\n")
    assert str(verify_signature(store, place)).isprintable()
    assert os.fspath(place) not in str(verify_signature(store, place))
