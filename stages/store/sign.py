"""Putting one's name to a store."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ltd_pipe.stages.console import counter
from ltd_pipe.stages.options import FILE, PATH


@click.command()
@click.argument("path", metavar="STORE", type=PATH)
@click.option(
    "--key",
    type=FILE,
    required=True,
    help="SSH key: a private one, or the public half of one in an agent. ssh-keygen asks for its "
    "passphrase, or takes that of LTD_PIPE_KEY_PASSPHRASE.",
)
@click.option("--force", is_flag=True, help="Replace a signature that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def sign(path: Path, key: Path, force: bool, as_json: bool) -> None:
    """Verify a store, then sign its manifest: writes MANIFEST.sha256.sig into it.

    OpenSSH's ssh-keygen makes the signature, with namespace ltd-soft-labels and any kind of key:
    Ed25519, RSA, ECDSA, in an agent or on a token. Nothing else of the store changes, its identity
    neither.

    \b
    Examples:
      ltd-pipe store sign labels.zarr --key ~/.ssh/id_ed25519
      ltd-pipe store sign labels.zarr --key id_ed25519_sk --force
    """
    from ltd_pipe.labels.signature import require_unsigned, sign_store

    require_unsigned(path, replace=force)
    with counter("verify", None) as progress:
        identity, signer = sign_store(path, key.expanduser(), replace=force, progress=progress)
    if as_json:
        content = {"store": str(path), "identity": identity, "signer": signer.fingerprint}
        click.echo(json.dumps(content))
        return
    click.echo(f"{path}: identity {identity[:12]}… is signed by {signer}")
    click.echo("  others check it with: ltd-pipe store verify STORE --public-key YOUR_KEY.pub")
