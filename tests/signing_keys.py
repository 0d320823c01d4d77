"""Keys to sign stores with, and signatures made to harm, with the real ssh-keygen."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["forged", "key_file", "make_key", "signable", "ssh_keygen"]

GOLDEN = Path(__file__).parent / "labels" / "golden.zarr"
PASSPHRASE = "open sesame"  # noqa: S105


@pytest.fixture
def signable(tmp_path) -> Path:
    """A sound store without a signature."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "labels.zarr"))


@pytest.fixture
def ssh_keygen():
    """A function that runs ssh-keygen and returns what it printed."""

    def run(*words, stdin=None, code=0) -> str:
        given = stdin.read_bytes() if stdin is not None else b""
        done = subprocess.run(
            ["ssh-keygen", *map(str, words)], input=given, capture_output=True, check=False
        )
        assert done.returncode == code, done.stderr.decode()
        return (done.stdout + done.stderr).decode()

    return run


@pytest.fixture
def make_key(tmp_path, ssh_keygen):
    """A function that makes a key pair, and returns the private file."""

    def make(name="ed25519", *, kind="ed25519", locked=False) -> Path:
        path = tmp_path / f"id_{name}"
        words = ["-t", kind, "-N", PASSPHRASE if locked else "", "-C", "alice@example.com"]
        ssh_keygen("-q", *words, "-f", path)
        return path

    return make


@pytest.fixture
def key_file(make_key) -> Path:
    """Alice's private key; the public one lies beside it with `.pub`."""
    return make_key()


def packed(*strings):
    """Strings as SSH writes them: four bytes of length, then the bytes."""
    return b"".join(len(string).to_bytes(4, "big") + string for string in strings)


def taken(content):
    """The strings of such a text."""
    strings = []
    while content:
        length = int.from_bytes(content[:4], "big")
        strings.append(content[4 : 4 + length])
        content = content[4 + length :]
    return strings


def forged(original: bytes, **fields: bytes) -> str:
    """A signature file with some of its fields replaced.

    `public_key`, `namespace`, `reserved`, `hash_algorithm` and `signature` of OpenSSH's
    PROTOCOL.sshsig, and `tail`, which follows them.
    """
    body = b"".join(original.splitlines()[1:-1])
    blob = base64.b64decode(body)
    names = ("public_key", "namespace", "reserved", "hash_algorithm", "signature")
    found = dict(zip(names, taken(blob[10:]), strict=True)) | {"tail": b""} | fields
    blob = blob[:10] + packed(*(found[name] for name in names)) + found["tail"]
    text = base64.b64encode(blob).decode()
    lines = "\n".join(text[at : at + 70] for at in range(0, len(text), 70))
    return f"-----BEGIN SSH SIGNATURE-----\n{lines}\n-----END SSH SIGNATURE-----\n"
