"""The wire format: what ssh-keygen writes, read and written to the byte."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sharing.sshsig import (
    SshSignature,
    armour,
    dearmour,
    fingerprint,
    key_type,
    pack,
    signed_data,
    take,
)

KEY = pack(b"ssh-ed25519", bytes(range(32)))
SIGNATURE = SshSignature(KEY, "ltd-soft-labels", "sha512", "ssh-ed25519", bytes(64))


def blob(text: bytes) -> bytes:
    """What is inside the armour."""
    return base64.b64decode(b"".join(text.splitlines()[1:-1]))


def wrap(content: bytes) -> bytes:
    """The armour around anything, in one line."""
    body = base64.b64encode(content)
    return b"-----BEGIN SSH SIGNATURE-----\n" + body + b"\n-----END SSH SIGNATURE-----\n"


def test_a_signature_is_written_and_read():
    """What goes in comes out, and the text has ssh-keygen's lines of 70 characters."""
    text = armour(SIGNATURE)
    assert dearmour(text.encode()) == SIGNATURE
    lines = text.splitlines()
    assert {len(line) for line in lines[1:-2]} == {70}
    assert text.endswith("-----END SSH SIGNATURE-----\n")


def test_what_is_signed_is_laid_out_as_openssh_says():
    """PROTOCOL.sshsig, section 3, by hand: a preamble without version, and the hash."""
    digest = bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert signed_data("file", "sha256", b"abc") == (
        b"SSHSIG\0\0\0\x04file\0\0\0\0\0\0\0\x06sha256\0\0\0\x20" + digest
    )


@pytest.mark.parametrize("name", ["sha256", "sha512"])
def test_both_hashes_are_read(name):
    """ssh-keygen writes sha512 unless it is told otherwise."""
    text = armour(SshSignature(KEY, "x", name, "ssh-ed25519", bytes(64)))
    assert dearmour(text.encode()).hash_algorithm == name


def test_a_key_of_any_kind_has_a_fingerprint():
    """So that one that we refuse can be named."""
    assert key_type(pack(b"ssh-rsa", b"\3", b"\5")) == "ssh-rsa"
    assert fingerprint(KEY).startswith("SHA256:")
    assert len(fingerprint(KEY)) == len("SHA256:") + 43


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_strings_are_taken_as_they_were_packed(strings):
    """Length, bytes, and nothing left over."""
    rest = pack(*strings)
    for expected in strings:
        found, rest = take(rest, "x")
        assert found == expected
    assert rest == b""


@given(st.binary(max_size=400))
def test_noise_is_no_signature(noise):
    """Any bytes are refused with ValueError, and nothing else, in armour or without."""
    with pytest.raises(ValueError, match="^(is|has|holds) "):
        dearmour(noise)
    with pytest.raises(ValueError, match="^(is|has|holds) "):
        dearmour(wrap(noise))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_changes_what_is_read_or_is_refused(place, change):
    """No byte of a signature is ignored: there is one way to write each."""
    content = bytearray(blob(armour(SIGNATURE).encode()))
    content[place % len(content)] ^= change
    try:
        found = dearmour(wrap(bytes(content)))
    except ValueError:
        return
    assert found != SIGNATURE


@pytest.mark.parametrize("keep", range(0, 300, 7))
def test_a_signature_cut_short_is_refused(keep):
    """At any place, in armour or inside it."""
    text = armour(SIGNATURE).encode()
    with pytest.raises(ValueError, match="cut short"):
        dearmour(text[: min(keep, len(text) - 1)])
    inside = blob(text)
    with pytest.raises(ValueError, match=r"cut short|no SSH signature|of version"):
        dearmour(wrap(inside[: min(keep, len(inside) - 1)]))


PREAMBLE = b"SSHSIG\0\0\0\1"
VALUE = pack(b"ssh-ed25519", bytes(64))
REFUSED = {
    "another magic": (b"SSHSIH\0\0\0\1", "is no SSH signature"),
    "version 2": (b"SSHSIG\0\0\0\2", "of version 2, and we read version 1"),
    "version 0": (b"SSHSIG\0\0\0\0", "of version 0"),
    "a length beyond the end": (PREAMBLE + b"\xff\xff\xff\xff", "cut short in its public key"),
    "reserved bytes": (PREAMBLE + pack(KEY, b"n", b"?", b"sha512", VALUE), "holds more"),
    "bytes behind it": (PREAMBLE + pack(KEY, b"n", b"", b"sha512", VALUE) + b"x", "holds more"),
    "bytes behind the value": (
        PREAMBLE + pack(KEY, b"n", b"", b"sha512", VALUE + b"x"),
        "holds more",
    ),
    "md5": (PREAMBLE + pack(KEY, b"n", b"", b"md5", VALUE), "has another hash algorithm"),
    "no namespace": (PREAMBLE + pack(KEY, b"", b"", b"sha512", VALUE), "a namespace that is no"),
    "a terminal's namespace": (
        PREAMBLE + pack(KEY, b"\x1b[2J", b"", b"sha512", VALUE),
        "a namespace that is no plain text",
    ),
    "a key of no kind": (PREAMBLE + pack(b"", b"n", b"", b"sha512", VALUE), "cut short"),
    "a key of control characters": (
        PREAMBLE + pack(pack(b"\n\n"), b"n", b"", b"sha512", VALUE),
        "a kind of key that is no plain text",
    ),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_another_layout_is_refused(content, message):
    """Each field has its own refusal."""
    with pytest.raises(ValueError, match=message):
        dearmour(wrap(content))


ARMOUR = {
    "text before": b"x" + armour(SIGNATURE).encode(),
    "text behind": armour(SIGNATURE).encode() + b"x",
    "blanks inside": armour(SIGNATURE).encode().replace(b"\n", b" \n"),
    "another armour": armour(SIGNATURE).encode().replace(b"SSH", b"PGP"),
    "nothing inside": b"-----BEGIN SSH SIGNATURE-----\n\n-----END SSH SIGNATURE-----\n",
    "one line feed for two": b"-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----\n",
    "no base64": wrap(b"").replace(b"\n\n", b"\n????\n"),
}


@pytest.mark.parametrize("text", ARMOUR.values(), ids=ARMOUR.keys())
def test_other_armour_is_refused(text):
    """The file is the signature and nothing else."""
    with pytest.raises(ValueError, match="is no SSH signature|is damaged"):
        dearmour(text)
