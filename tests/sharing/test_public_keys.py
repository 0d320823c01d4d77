"""Whom a file of keys trusts: what ssh-keygen would, and never more."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.errors import KeyFileError, MissingError
from pipeline.sharing.public_keys import read_public_keys

NAMESPACE = "ltd-soft-labels"


@pytest.fixture
def public(key_file):
    """Alice's public key: kind, base64, comment."""
    return key_file.with_suffix(".pub").read_text().split()


@pytest.fixture
def read(tmp_path):
    """A function that writes a file of keys and reads it."""

    def write_and_read(text):
        (tmp_path / "keys").write_text(text)
        return read_public_keys(tmp_path / "keys", NAMESPACE)

    return write_and_read


def test_a_public_key_file_gives_its_key_and_comment(public, key, read):
    """As ssh-keygen leaves it beside the private one."""
    found = read(" ".join(public))
    assert [str(one) for one in found] == [f"{key.public.fingerprint} (alice@example.com)"]
    assert found[0].raw == key.public.raw


def test_a_comment_may_have_words_or_be_missing(public, read):
    """It is whatever its owner wrote."""
    assert read(f"{public[0]} {public[1]} Alice of  the lab")[0].name == "Alice of the lab"
    assert read(f"{public[0]} {public[1]}")[0].name == ""


def test_allowed_signers_give_names(public, read):
    """Comments and empty lines are passed over; the name is the one before the key."""
    found = read(f"# the lab\n\nalice@lab.org,a@home {public[0]} {public[1]} a comment\n")
    assert found[0].name == "alice@lab.org,a@home"


def test_ssh_keygen_has_the_same_fingerprint(key_file, read, ssh_keygen):
    """`ssh-keygen -l` is what people compare with."""
    printed = ssh_keygen("-l", "-f", key_file.with_suffix(".pub"))
    found = read(key_file.with_suffix(".pub").read_text())
    assert found[0].fingerprint == printed.split()[1]


def day(days):
    """A day before or after today, as ssh-keygen writes it in UTC."""
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y%m%d") + "Z"


PERMITTED = {
    "no options": "",
    "our namespace": 'namespaces="ltd-soft-labels"',
    "one of several": 'namespaces="git,ltd-soft-labels"',
    "a pattern": 'namespaces="ltd-*"',
    "a question mark": 'namespaces="ltd?soft?labels"',
    "in capitals": 'NAMESPACES="ltd-soft-labels"',
    "after yesterday": f'valid-after="{day(-2)}"',
    "before tomorrow": f'valid-before="{day(2)}"',
    "all of it": f'namespaces="*",valid-after="{day(-2)}",valid-before="{day(2)}"',
    "local time, to the second": 'valid-after="20200229235959"',
    "to the minute": 'valid-after="202002292359Z"',
}
FORBIDDEN = {
    "another namespace": 'namespaces="git"',
    "a part of it": 'namespaces="ltd"',
    "excluded": 'namespaces="*,!ltd-soft-labels"',
    "excluded by a pattern": 'namespaces="ltd-soft-labels,!ltd-*"',
    "brackets are no pattern": 'namespaces="ltd-soft-label[s]"',
    "not yet": f'valid-after="{day(2)}"',
    "no longer": f'valid-before="{day(-2)}"',
    "one of two": f'namespaces="*",valid-before="{day(-2)}"',
    "signs certificates": "cert-authority",
}


@pytest.mark.parametrize("options", PERMITTED.values(), ids=PERMITTED.keys())
def test_options_that_permit(public, read, options):
    """The key may sign labels today."""
    assert len(read(f"alice {options} {public[0]} {public[1]}")) == 1


@pytest.mark.parametrize("options", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_options_that_forbid(public, read, options):
    """The key is there, and may not sign labels today."""
    with pytest.raises(KeyFileError, match="no key that could have signed: .*may not sign this"):
        read(f"alice {options} {public[0]} {public[1]}")


@pytest.mark.parametrize("table", [PERMITTED, FORBIDDEN], ids=["permitted", "forbidden"])
def test_ssh_keygen_agrees(table, public, key_file, ssh_keygen, tmp_path):
    """The same lines, the same answer, from the program that defines them."""
    (tmp_path / "message").write_text("m")
    ssh_keygen("-Y", "sign", "-f", key_file, "-n", NAMESPACE, tmp_path / "message")
    for options in table.values():
        (tmp_path / "allowed").write_text(f"alice {options} {public[0]} {public[1]}\n")
        words = ["-f", tmp_path / "allowed", "-I", "alice", "-n", NAMESPACE]
        signature = ["-s", tmp_path / "message.sig"]
        code = 0 if table is PERMITTED else 255
        ssh_keygen("-Y", "verify", *words, *signature, stdin=tmp_path / "message", code=code)


MISREAD = {
    "an unknown option": "alice touch-required KIND KEY",
    "an unknown option with a value": 'alice from="10.0.0.1" KIND KEY',
    "a time that is none": 'alice valid-before="tomorrow" KIND KEY',
    "a month that is none": 'alice valid-before="20201301" KIND KEY',
    "an open quote": 'alice namespaces="git KIND KEY',
    "options without commas": 'alice namespaces="git"cert-authority KIND KEY',
    "no key": "alice",
    "no base64": "KIND ????",
    "a key cut short": "KIND AAAAC3NzaC1lZDI1NTE5AAAAIA==",
    "another kind than it says": "alice ssh-rsa KEY",
    "a web page": "<!DOCTYPE html>",
}


@pytest.mark.parametrize("line", MISREAD.values(), ids=MISREAD.keys())
def test_a_line_that_is_not_understood_is_refused(public, read, line):
    """Even beside one that is: it may have been meant to forbid something."""
    wrong = line.replace("KIND", public[0]).replace("KEY", public[1])
    with pytest.raises(KeyFileError, match="line 2 .*: expected 'ssh-ed25519 KEY COMMENT', or"):
        read(f"{' '.join(public)}\n{wrong}\n")


def test_other_kinds_of_key_are_passed_over(public, read, make_key):
    """A list may hold them; alone they are refused, by name."""
    other = make_key("rsa").with_suffix(".pub").read_text()
    assert len(read(f"bob {other}alice {public[0]} {public[1]}")) == 1
    with pytest.raises(KeyFileError, match="expected a key of type ssh-ed25519.*found ssh-rsa"):
        read(other)
    with pytest.raises(KeyFileError, match="found nothing"):
        read("# nobody\n")


def test_a_private_key_is_refused(key_file):
    """Given by mistake; the public one is named."""
    with pytest.raises(
        KeyFileError, match=r"is a private key. Give the public one, .*id_ed25519.pub"
    ):
        read_public_keys(key_file, NAMESPACE)


def test_files_that_are_none_are_refused(tmp_path, read):
    """Missing, a folder, or endless."""
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(MissingError, match="no such public key"):
            read_public_keys(path, NAMESPACE)
    with pytest.raises(KeyFileError, match="is too large: expected at most 1048576 bytes"):
        read("#" * 2**20 + "#")


def test_a_comment_cannot_reach_the_terminal(public, read):
    """Control characters are shown as signs of their own."""
    assert read(f"{public[0]} {public[1]} a\x1b[2Jb")[0].name == "a\N{REPLACEMENT CHARACTER}[2Jb"
