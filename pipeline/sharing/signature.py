"""Signing a store's manifest, and proving who did: the format is that of `ssh-keygen -Y`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pipeline.errors import SignatureError, StoreError, WriteError
from pipeline.labels.folder import StoreFolder
from pipeline.labels.manifest import MANIFEST, SIGNATURE, read_manifest, read_signature
from pipeline.labels.verify import Check, verify_store
from pipeline.publish import write_text
from pipeline.sharing.public_keys import ED25519, PublicKey, read_public_keys
from pipeline.sharing.sshsig import armour, dearmour, fingerprint, key_type, signed_data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.sharing.private_key import SigningKey
    from pipeline.sharing.sshsig import SshSignature

__all__ = [
    "NAMESPACE",
    "find_signature",
    "read_signers",
    "require_unsigned",
    "sign_store",
    "signature_check",
    "verify_signature",
]

NAMESPACE = "ltd-soft-labels"


def read_signers(path: Path) -> tuple[PublicKey, ...]:
    """The keys of a file that may sign stores; see `public_keys.read_public_keys`."""
    return read_public_keys(path, NAMESPACE)


def require_unsigned(path: Path, *, replace: bool) -> None:
    """Refuse to sign a store that is signed, unless the signature may be replaced.

    Raises
    ------
    WriteError
        When there is one.
    """
    target = path / SIGNATURE
    if (target.exists() or target.is_symlink()) and not replace:
        raise WriteError(target, "exists already", remedy="Pass --force to replace it.")


def sign_store(
    path: Path,
    key: SigningKey,
    *,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Verify a store, then write the signature of its manifest beside it.

    Parameters
    ----------
    path : Path
        The store; the manifest, and so the identity, stays as it is.
    key : SigningKey
    replace : bool
        Replace a signature that is there.
    progress : callable, optional
        Called with the number of samples just verified, N in all.

    Returns
    -------
    str
        The identity that was signed.

    Raises
    ------
    WriteError
        When the store is signed already, or the disk refuses.
    StoreError
        When the store is damaged: nobody should put their name to that.
    """
    require_unsigned(path, replace=replace)
    folder = StoreFolder(path)
    manifest = read_manifest(folder)
    verify_store(path, progress=progress)
    if read_manifest(folder) != manifest:
        raise StoreError(path, f"{MANIFEST} changed while it was verified", remedy="Run it again.")
    write_text(path / SIGNATURE, armour(key.sign(manifest, NAMESPACE)))
    return hashlib.sha256(manifest).hexdigest()


def find_signature(path: Path) -> SshSignature | None:
    """The signature of a store, unverified: anyone can have made it; None when there is none.

    Raises
    ------
    SignatureError
        When there is a file of that name which is no signature.
    """
    folder = StoreFolder(path)
    if not (path / SIGNATURE).exists() and not (path / SIGNATURE).is_symlink():
        return None
    try:
        return dearmour(read_signature(folder))
    except StoreError as error:
        raise SignatureError(
            path, error.what, expected=error.expected, found=error.found, remedy=error.remedy
        ) from error
    except ValueError as error:
        raise _refused(path, str(error)) from error


def verify_signature(path: Path, signers: Sequence[PublicKey]) -> PublicKey:
    """Prove that a store's manifest is signed by one of these keys.

    That the files are those of the manifest is what `pipeline.labels.verify` proves.

    Parameters
    ----------
    path : Path
        The store.
    signers : sequence of PublicKey
        Who is trusted; see `read_signers`.

    Returns
    -------
    PublicKey
        Whose signature it is.

    Raises
    ------
    SignatureError
        When the signature is missing, damaged, for something else, of another manifest, or by
        another key.
    """
    signature = find_signature(path)
    if signature is None:
        raise SignatureError(
            path,
            f"is not signed: there is no {SIGNATURE}",
            remedy="Ask whoever made it for 'ltd-pipe store sign', or for the identity.",
        )
    if signature.namespace != NAMESPACE:
        raise _refused(path, "is for something else", NAMESPACE, signature.namespace)
    kind = key_type(signature.public_key)
    if kind != ED25519 or signature.algorithm != ED25519:
        raise _refused(path, "is by a key of another type", ED25519, kind)
    for signer in signers:
        if signer.blob == signature.public_key:
            _require_valid(path, signature, signer)
            return signer
    raise _refused(
        path,
        "is by a key that is not trusted",
        " or ".join(map(str, signers[:3])) + (" or others" if len(signers) > 3 else ""),
        fingerprint(signature.public_key),
        "Trust that key only when its owner, not the store, tells you that it is theirs.",
    )


def _require_valid(path: Path, signature: SshSignature, signer: PublicKey) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    manifest = read_manifest(StoreFolder(path))
    message = signed_data(NAMESPACE, signature.hash_algorithm, manifest)
    try:
        Ed25519PublicKey.from_public_bytes(signer.raw).verify(signature.value, message)
    except (InvalidSignature, ValueError) as error:
        raise _refused(
            path,
            f"is not {signer}'s for this {MANIFEST}",
            remedy="One of the two was changed, or the store was made again: sign it again.",
        ) from error


def _refused(
    path: Path, what: str, expected: object = None, found: object = None, remedy: str = ""
) -> SignatureError:
    return SignatureError(
        path, f"{SIGNATURE} {what}", expected=expected, found=found, remedy=remedy
    )


def signature_check(path: Path, signer: PublicKey | None) -> Check:
    """What a report says of a store's signature.

    Parameters
    ----------
    path : Path
        The store.
    signer : PublicKey, optional
        Whom `verify_signature` returned; None when no key was given to verify with.
    """
    if signer is not None:
        return Check("signature", f"{MANIFEST} is signed by {signer}")
    signature = find_signature(path)
    if signature is None:
        return Check("signature", "absent", done=False)
    claimed = f"present, claims to be by {fingerprint(signature.public_key)}"
    return Check("signature", f"{claimed}; no --public-key was given", done=False)
