"""The signature format of `ssh-keygen -Y`: a few strings, their lengths before them, in armour.

Written from OpenSSH's PROTOCOL.sshsig and RFC 4251, section 5, and stricter than ssh-keygen in
what it accepts: every byte that is not covered by the signature has just one right value.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

__all__ = [
    "HASH_ALGORITHMS",
    "SshSignature",
    "armour",
    "dearmour",
    "fingerprint",
    "key_type",
    "pack",
    "signed_data",
    "take",
]

HASH_ALGORITHMS = ("sha512", "sha256")
_MAGIC = b"SSHSIG"
_VERSION = 1
_HEADER, _FOOTER = "-----BEGIN SSH SIGNATURE-----\n", "\n-----END SSH SIGNATURE-----\n"
# ssh-keygen's own, so that its file and ours are the same to the byte.
_LINE_LENGTH = 70


@dataclass(frozen=True)
class SshSignature:
    """A signature, which says who claims to have made it; it proves nothing until verified.

    Attributes
    ----------
    public_key : bytes
        The signer's key as SSH writes it; see `key_type` and `fingerprint`.
    namespace : str
        What the signature is for, so that one of a mail is none of a file.
    hash_algorithm : str
        Of the message: sha512 or sha256.
    algorithm : str
        Of the signature, such as ssh-ed25519.
    value : bytes
        The signature of `signed_data`.
    """

    public_key: bytes
    namespace: str
    hash_algorithm: str
    algorithm: str
    value: bytes


def pack(*strings: bytes) -> bytes:
    """Strings as SSH writes them: four bytes of length, big-endian, then the bytes."""
    return b"".join(len(string).to_bytes(4, "big") + string for string in strings)


def take(content: bytes, what: str) -> tuple[bytes, bytes]:
    """The first string and what follows it.

    Raises
    ------
    ValueError
        When fewer bytes are there than its length says.
    """
    length, rest = int.from_bytes(content[:4], "big"), content[4:]
    if len(content) < 4 or length > len(rest):
        raise ValueError(f"is cut short in its {what}")
    return rest[:length], rest[length:]


def key_type(public_key: bytes) -> str:
    """The kind of a key as SSH writes it, such as ssh-ed25519.

    Raises
    ------
    ValueError
        When it is no key.
    """
    return _word(take(public_key, "public key")[0], "kind of key")


def _word(content: bytes, what: str) -> str:
    # What will be shown or compared: no line feeds, no terminal's control characters.
    text = content.decode("latin-1")
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= 200):
        raise ValueError(f"has a {what} that is no plain text")
    return text


def fingerprint(public_key: bytes) -> str:
    """`SHA256:…` of a key, as `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(public_key).digest()).decode()
    return f"SHA256:{digest.rstrip('=')}"


def signed_data(namespace: str, hash_algorithm: str, message: bytes) -> bytes:
    """What the key signs: never the message itself, so that it can be nothing else's signature.

    Parameters
    ----------
    namespace : str
    hash_algorithm : str
        One of `HASH_ALGORITHMS`.
    message : bytes
    """
    digest = hashlib.new(hash_algorithm, message).digest()
    return _MAGIC + pack(namespace.encode(), b"", hash_algorithm.encode(), digest)


def armour(signature: SshSignature) -> str:
    """The text of a signature file."""
    fields = pack(
        signature.public_key,
        signature.namespace.encode(),
        b"",
        signature.hash_algorithm.encode(),
        pack(signature.algorithm.encode(), signature.value),
    )
    text = base64.b64encode(_MAGIC + _VERSION.to_bytes(4, "big") + fields).decode()
    lines = (text[at : at + _LINE_LENGTH] for at in range(0, len(text), _LINE_LENGTH))
    return _HEADER + "\n".join(lines) + _FOOTER


def dearmour(content: bytes) -> SshSignature:
    """Parse a signature file.

    Parameters
    ----------
    content : bytes
        From anyone; of bounded size.

    Raises
    ------
    ValueError
        When it is no signature, saying why in words that follow the file's name.
    """
    text = content.decode("latin-1")
    if not (text.startswith(_HEADER) and text.endswith(_FOOTER)):
        raise ValueError("is no SSH signature, or cut short")
    try:
        body = text[len(_HEADER) : -len(_FOOTER)].replace("\n", "")
        blob = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("is damaged: its base64 cannot be decoded") from error
    return _parse(blob)


def _parse(blob: bytes) -> SshSignature:
    if blob[:6] != _MAGIC:
        raise ValueError("is no SSH signature")
    version = int.from_bytes(blob[6:10], "big")
    if version != _VERSION:
        raise ValueError(f"is of version {version}, and we read version {_VERSION}")
    public_key, rest = take(blob[10:], "public key")
    namespace, rest = take(rest, "namespace")
    reserved, rest = take(rest, "reserved field")
    hash_algorithm, rest = take(rest, "hash algorithm")
    signature, rest = take(rest, "signature")
    algorithm, value = take(signature, "signature")
    value, left = take(value, "signature")
    # The reserved field is not covered by the signature: what is in it could be anyone's.
    if reserved or rest or left:
        raise ValueError("holds more than a signature")
    if hash_algorithm.decode("latin-1") not in HASH_ALGORITHMS:
        raise ValueError(f"has another hash algorithm than {' or '.join(HASH_ALGORITHMS)}")
    key_type(public_key)
    return SshSignature(
        public_key,
        _word(namespace, "namespace"),
        hash_algorithm.decode(),
        _word(algorithm, "algorithm"),
        value,
    )
