"""Putting one's name to a store."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from stages.progress import counter

__all__ = ["sign"]

_VARIABLE = "LTD_PIPE_KEY_PASSPHRASE"


@click.command()
@click.argument("path", metavar="STORE", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Ed25519 private key, as ssh-keygen makes it. Its passphrase is asked for, or taken from "
    f"{_VARIABLE}.",
)
@click.option("--force", is_flag=True, help="Replace a signature that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def sign(path: Path, key: Path, force: bool, as_json: bool) -> None:
    """Verify a store, then sign its manifest: writes MANIFEST.sha256.sig into it.

    The signature is ssh-keygen's, with namespace ltd-soft-labels; nothing else of the store
    changes, its identity neither. For a key in an agent or on a token, ssh-keygen makes the same
    file.

    \b
    Examples:
      ltd-pipe store sign labels.zarr --key ~/.ssh/id_ed25519
      ssh-keygen -Y sign -n ltd-soft-labels -f ~/.ssh/id_ed25519 labels.zarr/MANIFEST.sha256
    """
    from pipeline.sharing.private_key import read_signing_key
    from pipeline.sharing.signature import require_unsigned, sign_store

    require_unsigned(path, replace=force)
    signing = read_signing_key(key.expanduser(), lambda name: _ask(key, name))
    with counter("verify", None) as progress:
        identity = sign_store(path, signing, replace=force, progress=progress)
    signer = signing.public.fingerprint
    if as_json:
        click.echo(json.dumps({"store": str(path), "identity": identity, "signer": signer}))
        return
    click.echo(f"{path}: identity {identity[:12]}… is signed by {signer}")
    click.echo("  others check it with: ltd-pipe store verify STORE --public-key YOUR_KEY.pub")


def _ask(key: Path, fingerprint: str) -> str:
    from pipeline.errors import KeyFileError

    given = os.environ.get(_VARIABLE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise KeyFileError(
            key,
            "has a passphrase, and there is no terminal to ask for it",
            remedy=f"Set {_VARIABLE}.",
        )
    passphrase: str = click.prompt(f"Passphrase of {fingerprint}", hide_input=True, err=True)
    return passphrase
