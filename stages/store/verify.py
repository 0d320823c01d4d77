"""Proving a store."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stages.progress import counter

__all__ = ["verify"]


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Beton that the labels should belong to."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def verify(path: Path, data: Path | None, as_json: bool) -> None:
    """Check a store's manifest, checksums, schema, rows, and that it belongs to the images.

    Exits with 1 at the first thing that is wrong.

    \b
    Example:
      ltd-pipe store verify labels.zarr --data train.beton
    """
    from pipeline.images.beton import open_beton
    from pipeline.labels.verify import verify_store

    images = open_beton(data) if data is not None else None
    with counter("verify", None) as progress:
        checks = verify_store(path, images, progress)
    if as_json:
        click.echo(json.dumps([vars(check) for check in checks], indent=2))
        return
    for check in checks:
        click.echo(f"{'ok     ' if check.done else 'not    '} {check.name}: {check.detail}")
