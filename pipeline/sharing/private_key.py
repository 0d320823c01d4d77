"""The key to sign with: an Ed25519 key as ssh-keygen writes it, locked by a passphrase or not."""

from __future__ import annotations

import base64
import os
import re
import stat
from typing import TYPE_CHECKING

from pipeline.errors import KeyFileError, MachineError, MissingError
from pipeline.sharing.public_keys import ED25519, PublicKey
from pipeline.sharing.sshsig import SshSignature, key_type, pack, signed_data, take

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["SigningKey", "read_signing_key"]

_MAX_BYTES = 2**16
_PEM = re.compile(
    r"\s*-----BEGIN OPENSSH PRIVATE KEY-----\s+([A-Za-z0-9+/=\s]+)"
    r"-----END OPENSSH PRIVATE KEY-----\s*"
)
_MAGIC = b"openssh-key-v1\0"
_MAKE_ONE = "Make one with 'ssh-keygen -t ed25519'."


class SigningKey:
    """An unlocked key.

    Parameters
    ----------
    private : Ed25519PrivateKey

    Attributes
    ----------
    public : PublicKey
        What others verify with.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        raw = private.public_key().public_bytes_raw()
        self.public = PublicKey(pack(ED25519.encode(), raw))
        self._private = private

    def sign(self, message: bytes, namespace: str) -> SshSignature:
        """Sign a message; the same one always gives the same signature."""
        algorithm = "sha512"
        value = self._private.sign(signed_data(namespace, algorithm, message))
        return SshSignature(self.public.blob, namespace, algorithm, ED25519, value)


def read_signing_key(path: Path, ask: Callable[[str], str]) -> SigningKey:
    """Open a private key file.

    Parameters
    ----------
    path : Path
        In OpenSSH's format.
    ask : callable
        Given the key's fingerprint, returns its passphrase; called only for a key that has one.

    Raises
    ------
    MissingError
        When there is no such file.
    KeyFileError
        When others may read it, it is of another kind, damaged, or the passphrase is wrong.
    MachineError
        When a locked key needs a package that is missing.
    """
    content = _read_private_file(path)
    try:
        public, locked = _parse_header(content)
        kind = key_type(public)
    except ValueError as error:
        raise KeyFileError(
            path, "is no private key of OpenSSH, or damaged", remedy=_MAKE_ONE
        ) from error
    if kind != ED25519:
        raise KeyFileError(
            path, "is a key of another type", expected=ED25519, found=kind, remedy=_MAKE_ONE
        )
    passphrase = ask(PublicKey(public).fingerprint).encode() if locked else None
    return _unlock(path, content, public, passphrase)


def _read_private_file(path: Path) -> bytes:
    if not path.is_file():
        raise MissingError(path, "no such key", remedy=_MAKE_ONE)
    status = path.stat()
    if path.suffix == ".pub":
        raise KeyFileError(
            path, "is a public key", remedy=f"Give the private one, such as {path.with_suffix('')}."
        )
    # As ssh does: who else can read the key can sign in its owner's name.
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        raise KeyFileError(
            path,
            "can be read or written by others",
            expected="mode 600",
            found=f"{stat.S_IMODE(status.st_mode):o}",
            remedy=f"Run 'chmod 600 {path}', if it is still a secret.",
        )
    if status.st_size > _MAX_BYTES:
        raise KeyFileError(path, "is too large for a key", expected=f"at most {_MAX_BYTES} bytes")
    return path.read_bytes()


def _parse_header(content: bytes) -> tuple[bytes, bool]:
    # The public key, and whether there is a passphrase: both stand before the locked part.
    match = _PEM.fullmatch(content.decode("latin-1"))
    if match is None:
        raise ValueError("no OpenSSH private key")
    blob = base64.b64decode("".join(match[1].split()), validate=True)
    if not blob.startswith(_MAGIC):
        raise ValueError("no OpenSSH private key")
    cipher, rest = take(blob[len(_MAGIC) :], "cipher")
    _, rest = take(rest, "key derivation")
    _, rest = take(rest, "its options")
    if rest[:4] != b"\0\0\0\1":
        raise ValueError("more than one key")
    return take(rest[4:], "public key")[0], cipher != b"none"


def _unlock(path: Path, content: bytes, public: bytes, passphrase: bytes | None) -> SigningKey:
    from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        private = load_ssh_private_key(content, passphrase)
    except UnsupportedAlgorithm as error:
        if "bcrypt" not in str(error):
            raise KeyFileError(path, f"cannot be unlocked ({error})") from error
        raise MachineError(
            "bcrypt",
            f"this package is missing, and {path} has a passphrase",
            remedy="Run 'pip install bcrypt', or sign with 'ssh-keygen -Y sign'.",
        ) from error
    except (ValueError, InvalidTag, TypeError) as error:
        what = "the passphrase is wrong, or the key is damaged" if passphrase else "is damaged"
        raise KeyFileError(path, what) from error
    # A file whose two halves are of different keys would sign in a name that nobody expects.
    if not isinstance(private, Ed25519PrivateKey) or SigningKey(private).public.blob != public:
        raise KeyFileError(path, "is damaged: its public and private parts differ")
    return SigningKey(private)
