"""Proving a store."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stages.fetched import local_folder
from stages.progress import counter

__all__ = ["verify"]


@click.command()
@click.argument("store", metavar="STORE")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Beton that the labels should belong to."
)
@click.option(
    "--public-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Who must have signed it: a .pub file, or ssh-keygen's list of allowed signers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def verify(store: str, data: Path | None, public_key: Path | None, as_json: bool) -> None:
    """Check a store's manifest, checksums, schema, rows, images and signature.

    Exits with 1 at the first thing that is wrong. Whether it belongs to the images, and whether
    it is signed by whom it should be, are checked with --data and --public-key.

    \b
    Examples:
      ltd-pipe store verify labels.zarr --data train.beton
      ltd-pipe store verify labels.zarr --public-key alice.pub

    STORE is a folder, or a URL that 'store pull' takes.
    """
    from pipeline.images.beton import open_beton
    from pipeline.labels.verify import verify_store
    from pipeline.sharing.signature import read_signers, signature_check, verify_signature

    path = local_folder(store)
    # The signature first: it takes a moment, and without it the rest may not matter.
    signer = verify_signature(path, read_signers(public_key)) if public_key is not None else None
    images = open_beton(data) if data is not None else None
    with counter("verify", None) as progress:
        checks = verify_store(path, images, progress)
    checks = sorted([*checks, signature_check(path, signer)], key=lambda check: not check.done)
    if as_json:
        click.echo(json.dumps([vars(check) for check in checks], indent=2))
        return
    for check in checks:
        click.echo(f"{'ok     ' if check.done else 'not    '} {check.name}: {check.detail}")
