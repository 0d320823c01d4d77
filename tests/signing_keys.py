"""Keys to sign stores with, as ssh-keygen writes them, and the real ssh-keygen."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pipeline.sharing.private_key import SigningKey, read_signing_key

__all__ = ["key", "key_file", "make_key", "signable", "ssh_keygen"]

GOLDEN = Path(__file__).parent / "labels" / "golden.zarr"
PASSPHRASE = "open sesame"  # noqa: S105


@pytest.fixture
def signable(tmp_path) -> Path:
    """A sound store without a signature."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "labels.zarr"))


KINDS = {
    "ed25519": lambda: Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
    "other": lambda: Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
}


@pytest.fixture
def make_key(tmp_path):
    """A function that writes a key pair as ssh-keygen does, and returns the private file."""

    def make(kind="ed25519", *, locked=False) -> Path:
        private, path = KINDS[kind](), tmp_path / f"id_{kind}"
        lock = BestAvailableEncryption(PASSPHRASE.encode()) if locked else NoEncryption()
        path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, lock))
        path.chmod(0o600)
        public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        path.with_suffix(".pub").write_text(f"{public.decode()} alice@example.com\n")
        return path

    return make


@pytest.fixture
def key_file(make_key) -> Path:
    """Alice's private key; the public one lies beside it with `.pub`."""
    return make_key()


@pytest.fixture
def key(key_file) -> SigningKey:
    """Alice's key, opened."""
    return read_signing_key(key_file, no_passphrase)


def no_passphrase(fingerprint):
    """For keys that have none."""
    raise AssertionError(f"{fingerprint} has no passphrase to ask for")


@pytest.fixture
def ssh_keygen():
    """A function that runs the real ssh-keygen and returns what it printed."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed: nothing to compare with")

    def run(*words, stdin=None, code=0) -> str:
        given = stdin.read_bytes() if stdin is not None else b""
        done = subprocess.run(
            ["ssh-keygen", *map(str, words)], input=given, capture_output=True, check=False
        )
        assert done.returncode == code, done.stderr.decode()
        return (done.stdout + done.stderr).decode()

    return run
