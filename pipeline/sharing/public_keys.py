"""Whose signature is accepted: a `.pub` file, or a list of allowed signers as ssh-keygen has it."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import translate
from typing import TYPE_CHECKING

from pipeline.errors import KeyFileError, MissingError
from pipeline.printable import one_line
from pipeline.sharing.sshsig import fingerprint, key_type, take

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ED25519", "PublicKey", "read_public_keys"]

ED25519 = "ssh-ed25519"
# Thousands of signers.
_MAX_BYTES = 2**20
# A kind of key, its base64, and a comment to the end of the line.
_KEY = re.compile(r"([a-z][a-z0-9@.-]*) +([A-Za-z0-9+/]+={0,2})(?: +(.*))?")
# Names, then a key, with options between them or not; options may hold blanks in quotes.
_SIGNER = re.compile(rf'(\S+) +(?:((?:[^\s"]|"[^"]*")+) +)?({_KEY.pattern})')
_OPTION = re.compile(r'([a-zA-Z-]+)(?:="([^"]*)")?(?:,|$)')
_FORMATS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 key whose signatures are accepted.

    Attributes
    ----------
    blob : bytes
        As SSH writes it.
    name : str
        The signer's, from the list of signers, or the key's comment; may be empty.
    """

    blob: bytes
    name: str = ""

    @property
    def fingerprint(self) -> str:
        """`SHA256:…`, as `ssh-keygen -l` prints it."""
        return fingerprint(self.blob)

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the key itself."""
        return take(take(self.blob, "public key")[1], "public key")[0]

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.name})" if self.name else self.fingerprint


def read_public_keys(path: Path, namespace: str) -> tuple[PublicKey, ...]:
    """The Ed25519 keys of a file that may sign in a namespace today.

    Parameters
    ----------
    path : Path
        A `.pub` file of one key or more; or lines of `ssh-keygen`'s ALLOWED SIGNERS:
        names, options (`namespaces`, `valid-after`, `valid-before`), key.
    namespace : str
        What the signatures are for.

    Raises
    ------
    MissingError
        When there is no such file.
    KeyFileError
        When a line is not understood, or no line gives such a key: a rule that is overlooked
        would accept what its author meant to refuse.
    """
    keys, others = [], []
    for number, line in enumerate(_lines(path), 1):
        words = " ".join(line.split())
        if not words or words.startswith("#"):
            continue
        try:
            key, kind, usable = _parse_line(words, namespace)
        except ValueError as error:
            raise KeyFileError(
                path,
                f"line {number} {error}",
                expected="'ssh-ed25519 KEY COMMENT', or a line of allowed signers",
                found=repr(words)[:60],
            ) from error
        if kind == ED25519 and usable:
            keys.append(key)
        else:
            others.append(kind if kind != ED25519 else "a key that may not sign this now")
    if not keys:
        raise KeyFileError(
            path,
            "holds no key that could have signed",
            expected=f"a key of type {ED25519} for namespace {namespace}",
            found=", ".join(sorted(set(others))) or "nothing",
        )
    return tuple(keys)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingError(path, "no such public key")
    if path.stat().st_size > _MAX_BYTES:
        raise KeyFileError(path, "is too large", expected=f"at most {_MAX_BYTES} bytes")
    text = path.read_bytes().decode("utf-8", errors="replace")
    if "PRIVATE KEY-----" in text:
        raise KeyFileError(
            path, "is a private key", remedy=f"Give the public one, such as {path}.pub."
        )
    return text.split("\n")


def _parse_line(line: str, namespace: str) -> tuple[PublicKey, str, bool]:
    # The key, its kind, and whether the line lets it sign.
    alone = _KEY.fullmatch(line)
    if alone and _is_key(alone[1], alone[2]):
        return PublicKey(_decode(alone[1], alone[2]), one_line(alone[3] or "")), alone[1], True
    match = _SIGNER.fullmatch(line)
    if match is None:
        raise ValueError("is no public key")
    names, options, kind, encoded = match[1], match[2] or "", match[4], match[5]
    usable = _permits(options, namespace)
    return PublicKey(_decode(kind, encoded), one_line(names)), kind, usable


def _is_key(kind: str, encoded: str) -> bool:
    # `alice ssh-ed25519 AAAA…` has the form of a key of kind "alice" too.
    try:
        return key_type(base64.b64decode(encoded, validate=True)) == kind
    except ValueError:
        return False


def _decode(kind: str, encoded: str) -> bytes:
    try:
        blob = base64.b64decode(encoded, validate=True)
        found = key_type(blob)
    except (binascii.Error, ValueError) as error:
        raise ValueError("holds a damaged key") from error
    if found != kind:
        raise ValueError(f"says {kind} of a key of type {found}")
    if kind == ED25519:
        point, rest = take(take(blob, "public key")[1], "public key")
        if len(point) != 32 or rest:
            raise ValueError("holds a damaged key")
    return blob


def _permits(options: str, namespace: str) -> bool:
    permitted, at = True, 0
    while at < len(options):
        match = _OPTION.match(options, at)
        if match is None:
            raise ValueError("has options that are not understood")
        at = match.end()
        permitted &= _permits_one(match[1].lower(), match[2], namespace)
    return permitted


def _permits_one(name: str, value: str | None, namespace: str) -> bool:
    if name == "cert-authority" and value is None:
        return False  # signs certificates, and we read none
    if name == "namespaces" and value is not None:
        return _matches(value, namespace)
    if name == "valid-after" and value is not None:
        return datetime.now(UTC) >= _parse_time(value)
    if name == "valid-before" and value is not None:
        return datetime.now(UTC) <= _parse_time(value)
    raise ValueError(f"has an option that is not understood: {one_line(name)}")


def _matches(patterns: str, namespace: str) -> bool:
    # One that begins with "!" excludes, whatever the others say.
    found = False
    for pattern in patterns.split(","):
        # Brackets are themselves in ssh's patterns.
        glob = pattern.removeprefix("!").replace("[", "[[]")
        if re.fullmatch(translate(glob), namespace):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _parse_time(text: str) -> datetime:
    # Of the local time zone unless a Z follows, as ssh-keygen takes it.
    digits = text.removesuffix("Z").removesuffix("z")
    if not digits.isdecimal() or len(digits) not in _FORMATS:
        raise ValueError("has a time that is not understood")
    moment = datetime.strptime(digits, _FORMATS[len(digits)])
    return moment.replace(tzinfo=UTC) if digits != text else moment.astimezone()
