"""Signing a store's manifest, and proving who did: OpenSSH's `ssh-keygen -Y` does both.

So any key that people have for SSH can sign: Ed25519, RSA, ECDSA, one in an agent, one on a token.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ltd_pipe.errors import (
    KeyFileError,
    MachineError,
    MissingError,
    SignatureError,
    StoreError,
    WriteError,
)
from ltd_pipe.labels.manifest import MANIFEST, SIGNATURE, StoreFolder, read_manifest, read_signature
from ltd_pipe.labels.verify import Check, verify_store
from ltd_pipe.publish import write_text
from ltd_pipe.text import one_line, quoted

NAMESPACE = "ltd-soft-labels"
PASSPHRASE_VARIABLE = "LTD_PIPE_KEY_PASSPHRASE"  # noqa: S105  its name

# Thousands of signers.
_MAX_KEY_BYTES = 2**20
_GOOD = re.compile(r'Good "[^"]*" signature (?:for (.*) )?with (\S+) key (SHA256:\S+)')
# A line of a `.pub` file; in a list of allowed signers a name comes first.
_PUBLIC_KEY = re.compile(r"((?:ssh|ecdsa|sk)-[a-z0-9@.-]+ +AAAA[A-Za-z0-9+/]+=*) *(.*)")
# Without a name before it, ssh-keygen takes an option for the name, and heeds it no more.
_OPTION = re.compile(r"(?i)cert-authority\b|(?:namespaces|valid-after|valid-before)=")
# What ssh-keygen says beside what is wrong.
_NOISE = re.compile(r"@|Signing data|Confirm user presence|User presence confirmed|\s*$")


@dataclass(frozen=True)
class Signer:
    """Whose signature it is.

    Attributes
    ----------
    fingerprint : str
        `SHA256:…`, as `ssh-keygen -l` prints it.
    kind : str
        Of the key, such as ED25519.
    name : str
        From the list of signers, or the key's comment; may be empty.
    """

    fingerprint: str
    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.name})" if self.name else self.fingerprint


def sign_store(
    path: Path,
    key: Path,
    *,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[str, Signer]:
    """Sign a store's manifest, verify the store, and write the signature beside the manifest.

    Parameters
    ----------
    path : Path
        The store; the manifest, and so the identity, stays as it is.
    key : Path
        A private key, or the public half of one in an agent. ssh-keygen asks for a passphrase on
        the terminal, or takes that of `PASSPHRASE_VARIABLE`.
    replace : bool
        Replace a signature that is there.
    progress : callable, optional
        Called with the number of samples just verified, N in all.

    Returns
    -------
    tuple of str and Signer
        The identity that was signed, and by whom.

    Raises
    ------
    WriteError
        When the store is signed already, or the disk refuses.
    KeyFileError, MissingError
        When the key cannot sign.
    StoreError
        When the store is damaged: nobody should put their name to that.
    MachineError
        When there is no OpenSSH.
    """
    target, folder = path / SIGNATURE, StoreFolder(path)
    if (target.exists() or target.is_symlink()) and not replace:
        raise WriteError(target, "exists already", remedy="Pass --force to replace it.")
    manifest = read_manifest(folder)
    # First, so that a passphrase is asked for at once.
    signature = _sign(key, manifest)
    verify_store(path, progress=progress)
    if read_manifest(folder) != manifest:
        raise StoreError(path, f"{MANIFEST} changed while it was verified", remedy="Run it again.")
    write_text(target, signature.decode("ascii"))
    signer = _signer(path, "check-novalidate", manifest=manifest, signature=signature)
    return hashlib.sha256(manifest).hexdigest(), signer


def claimed_signer(path: Path) -> Signer | None:
    """Who signed a store, by a key that anyone can have made; None when it is not signed."""
    files = _signed_files(path)
    return _signer(path, "check-novalidate", **files) if files else None


def verify_signature(path: Path, trusted: Path, name: str | None = None) -> Signer:
    """Prove that a store's manifest is signed by one of some keys.

    That the files are those of the manifest is what `ltd_pipe.labels.verify` proves.

    Parameters
    ----------
    path : Path
        The store.
    trusted : Path
        A `.pub` file of one key or more, or ssh-keygen's list of allowed signers, with its options
        (`namespaces`, `valid-after`, `valid-before`). A line that is not understood allows nobody.
    name : str, optional
        Whose of these keys it must be: whom a line of the list allows, by a pattern, too, or as a
        `.pub` file's comment has it.

    Returns
    -------
    Signer

    Raises
    ------
    SignatureError
        When the signature is missing, damaged, for something else, of another manifest, or by
        another key.
    MissingError, KeyFileError
        When there is no such file, or no key in it.
    MachineError
        When there is no OpenSSH.
    """
    lines, names = _allowed_signers(trusted)
    files = _signed_files(path)
    if files is None:
        raise SignatureError(
            path,
            f"is not signed: there is no {SIGNATURE}",
            remedy="Ask whoever made it for 'ltd-pipe store sign', or for the identity.",
        )
    claimed = _signer(path, "check-novalidate", **files)
    whole = "\n".join(lines).encode()
    if name is not None:
        # Every line that allows this name is asked, and, each alone since a pattern may allow any
        # name, those of our own names whose comment it is.
        own = {given for given, comment in names.items() if comment == one_line(name)}
        asked = [(first, line.encode()) for line in lines if (first := line.split()[0]) in own]
        for identity, allowed in (*asked, (name, whole)):
            files["allowed"] = allowed
            with contextlib.suppress(SignatureError):
                signer = _signer(path, "verify", "-f", "allowed", "-I", identity, **files)
                return Signer(signer.fingerprint, signer.kind, one_line(name))
    files["allowed"] = whole
    found = _keygen("find-principals", "-s", "signature", "-f", "allowed", **files)
    principals = found.stdout.decode(errors="replace").splitlines()
    if principals:
        whose = names.get(principals[0], one_line(principals[0]))
        if name is not None:
            raise SignatureError(
                path,
                f"{SIGNATURE} is by somebody else on the list",
                expected=f"{quoted(name)} of {trusted}",
                found=whose,
                remedy="Use it only if it is meant to be theirs.",
            )
        try:
            signer = _signer(path, "verify", "-f", "allowed", "-I", principals[0], **files)
        except SignatureError as error:
            raise SignatureError(
                path,
                f"{SIGNATURE} is by a key that is trusted, but not with this, or not now",
                expected=f"an entry of {trusted} for namespace {NAMESPACE}",
                found=f"{whose}: {error.found}",
                remedy="Ask whoever keeps that list.",
            ) from error
        return Signer(signer.fingerprint, signer.kind, whose)
    raise SignatureError(
        path,
        f"{SIGNATURE} is by a key that is not trusted",
        expected=f"one of {trusted}",
        found=f"{claimed}: {_complaint(found.stderr)}",
        remedy="Trust that key only when its owner, not the store, tells you that it is theirs.",
    )


def signature_check(path: Path, signer: Signer | None) -> Check:
    """What a report says of a store's signature.

    `signer` is whom `verify_signature` returned, None when no key was given to verify with.
    """
    if signer is not None:
        return Check("signature", f"{MANIFEST} is signed by {signer}")
    if not (path / SIGNATURE).exists():
        return Check("signature", "absent", done=False)
    try:
        claimed = f"present, by {claimed_signer(path)}"
    except MachineError:
        claimed = "present"
    return Check("signature", f"{claimed}; no --public-key was given", done=False)


def _sign(key: Path, manifest: bytes) -> bytes:
    if not key.is_file():
        raise MissingError(key, "no such key", remedy="Make one with 'ssh-keygen -t ed25519'.")
    done = _keygen("sign", "-f", str(key.absolute()), manifest=manifest)
    if done.returncode:
        raise KeyFileError(
            key,
            f"cannot sign: {_complaint(done.stderr)}",
            remedy=f"Without a terminal, set {PASSPHRASE_VARIABLE} to the key's passphrase. A "
            "public key signs where an agent holds the private one.",
        )
    return done.stdout


def _signed_files(path: Path) -> dict[str, bytes] | None:
    """The manifest and its signature; None when it is not signed."""
    # A small regular file in the store, or nothing: no link, pipe or terabyte.
    folder = StoreFolder(path)
    if not (path / SIGNATURE).exists() and not (path / SIGNATURE).is_symlink():
        return None
    try:
        signature = read_signature(folder)
    except StoreError as error:
        raise SignatureError(
            path, error.what, expected=error.expected, found=error.found, remedy=error.remedy
        ) from error
    return {"manifest": read_manifest(folder), "signature": signature}


def _signer(path: Path, how: str, *words: str, **files: bytes) -> Signer:
    done = _keygen(how, "-s", "signature", *words, **files)
    good = _GOOD.match(done.stdout.decode(errors="replace"))
    if done.returncode or good is None:
        raise SignatureError(
            path,
            f"{SIGNATURE} is not one of this {MANIFEST} for {NAMESPACE}",
            found=_complaint(done.stderr),
            remedy="One of the two was changed, or the store was made again: fetch both "
            "again, or ask its maker to sign it again.",
        )
    return Signer(good[3], good[2])


def _allowed_signers(path: Path) -> tuple[list[str], dict[str, str]]:
    """The lines of a list as ssh-keygen takes it, and what names of ours in it stand for."""
    if not path.is_file():
        raise MissingError(path, "no such public key")
    if path.stat().st_size > _MAX_KEY_BYTES:
        raise KeyFileError(path, "is too large", expected=f"at most {_MAX_KEY_BYTES} bytes")
    text = path.read_bytes().decode("utf-8", errors="replace")
    if "PRIVATE KEY-----" in text:
        raise KeyFileError(
            path, "is a private key", remedy=f"Give the public one, such as {path}.pub."
        )
    lines, names = list[str](), dict[str, str]()
    for line in text.splitlines():
        words = line.strip()
        if words and not words.startswith("#"):
            alone = _PUBLIC_KEY.fullmatch(words)
            if _OPTION.match(words):
                raise KeyFileError(
                    path,
                    "has options without a name before them, which would not be heeded",
                    found=one_line(words, 40),
                    remedy="Put whose key it is, such as alice@lab.org, at the line's beginning.",
                )
            if alone:
                # No name that another line of the list could have.
                name = f"key-{secrets.token_hex(8)}"
                names[name] = one_line(alone[2])
                words = f"{name} {alone[1]}"
            lines.append(words)
    if not lines:
        raise KeyFileError(path, "holds no key", expected="a .pub file, or a list of signers")
    return lines, names


def _keygen(how: str, *words: str, **files: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run ssh-keygen in a folder that holds these files; it is given the manifest."""
    command = ["ssh-keygen", "-Y", how, "-n", NAMESPACE, *words]
    environment, pipe, said = {**os.environ, "LC_ALL": "C"}, subprocess.PIPE, []
    with tempfile.TemporaryDirectory(prefix="ltd-pipe-") as scratch:
        folder = Path(scratch)
        if PASSPHRASE_VARIABLE in os.environ:
            environment |= {"SSH_ASKPASS": "./answer", "SSH_ASKPASS_REQUIRE": "force"}
            files["answer"] = f"#!/bin/sh\nprintf '%s\\n' \"${PASSPHRASE_VARIABLE}\"\n".encode()
        for name, content in files.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o700)
        with (folder / "manifest").open("rb") as manifest:
            try:
                running = subprocess.Popen(  # noqa: S603
                    command, stdin=manifest, stdout=pipe, stderr=pipe, env=environment, cwd=folder
                )
            except FileNotFoundError as error:
                raise MachineError(
                    "ssh-keygen",
                    "is not installed, and it makes and verifies signatures",
                    remedy="Install OpenSSH's client: openssh-client on Debian and Ubuntu, "
                    "openssh-clients on Fedora.",
                ) from error
        with running:
            for line in running.stderr or ():
                # A token's owner has to know that it waits.
                if line.startswith(b"Confirm user presence"):
                    sys.stderr.buffer.write(line)
                    sys.stderr.flush()
                said.append(line)
            output = running.stdout.read() if running.stdout else b""
    return subprocess.CompletedProcess(command, running.returncode, output, b"".join(said))


def _complaint(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").splitlines()
    telling = [line for line in lines if not _NOISE.match(line)]
    return one_line(telling[0]).rstrip(".") if telling else "ssh-keygen does not say why"
