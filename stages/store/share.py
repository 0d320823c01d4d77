"""What passes between people: a store that is fetched, and a name that is put to one."""

from __future__ import annotations

from pathlib import Path

import click

from ltd_pipe.stages import options
from ltd_pipe.stages.console import counter, json_option, say, tell, transfer
from ltd_pipe.stages.store.derive import row_range


@click.command()
@click.argument("url")
@options.path(
    "--out", help="The store's folder. [default: the cache, ~/.cache/ltd-pipe/stores/IDENTITY]"
)
@click.option(
    "--rows", type=row_range, metavar="A:B", help="Only rows A to B - 1, such as 0:50000."
)
@click.option("--arrays", help="Only these arrays, such as soft_labels; the labels always come.")
@click.option(
    "--identity",
    default="",
    show_default=False,
    help="What it must be: the digits that 'store info' prints.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=8, help="Transfers.")
@click.option(
    "--timeout",
    "stall_s",
    type=click.FloatRange(0.1, 3600),
    default=30.0,
    help="Seconds without a byte before asking again.",
)
@options.flag("--force", help="Replace what is there, or fetch it again.")
@json_option("Print as JSON.")
def pull(
    url: str,
    out: Path | None,
    rows: tuple[int | None, int | None] | None,
    arrays: str | None,
    identity: str,
    jobs: int,
    stall_s: float,
    force: bool,
) -> None:
    """Fetch a store, verify each byte while it comes, and print its folder.

    URL begins with https://, http://, s3://, gs://, hf:// or file://. With #sha256=IDENTITY at
    its end no other store is accepted. Interrupted, it goes on where it was when run again.

    \b
    Examples:
      ltd-pipe store pull https://example.org/labels.zarr
      ltd-pipe store pull s3://bucket/labels.zarr --out labels.zarr
      ltd-pipe store pull s3://bucket/labels.zarr --out part.zarr --rows 0:50000

    With --rows or --arrays only the chunks that are needed are fetched, and the result is the
    store that 'store subset' would make of the whole one.
    """
    from ltd_pipe.labels import remote
    from ltd_pipe.labels.reader import SoftLabels

    part = rows is not None or arrays is not None
    if part and out is None:
        raise click.UsageError("--rows and --arrays make a new store: give it a folder with --out")
    location, how = remote.parse_location(url, identity), remote.TransferOptions(jobs, stall_s)
    if out is not None and location.folder is not None:
        options.refuse_overlap(out, location.folder)
    with transfer(f"fetch {location}") as progress:
        if out is None:
            out = remote.cached_store(
                location, how, force=force, proven=True, progress=progress, waiting=tell
            )
        elif part:
            kept, ends = arrays.split(",") if arrays else None, rows or (None, None)
            remote.pull_excerpt(location, out, ends, kept, how, force=force, progress=progress)
        else:
            remote.pull_store(location, out, how, force=force, progress=progress)
    store = SoftLabels.open(out)
    facts = {"path": str(out), "identity": store.identity, "num_samples": store.num_samples}
    say(facts, [f"{out}: {store.num_samples:,} × {store.num_classes:,}, {store.identity}"])


@click.command()
@click.argument("path", metavar="STORE", type=options.PATH)
@options.file(
    "--key",
    required=True,
    help="SSH key: a private one, or the public half of one in an agent. ssh-keygen asks for its "
    "passphrase, or takes that of LTD_PIPE_KEY_PASSPHRASE.",
)
@options.flag("--force", help="Replace a signature that is there.")
@json_option("Print as JSON.")
def sign(path: Path, key: Path, force: bool) -> None:
    """Verify a store, then sign its manifest: writes MANIFEST.sha256.sig into it.

    OpenSSH's ssh-keygen makes the signature, with namespace ltd-soft-labels and any kind of key:
    Ed25519, RSA, ECDSA, in an agent or on a token. Nothing else of the store changes, its identity
    neither.

    \b
    Examples:
      ltd-pipe store sign labels.zarr --key ~/.ssh/id_ed25519
      ltd-pipe store sign labels.zarr --key id_ed25519_sk --force
    """
    from ltd_pipe.labels.signature import sign_store

    with counter("verify", None) as progress:
        identity, signer = sign_store(path, key.expanduser(), replace=force, progress=progress)
    lines = (
        f"{path}: identity {identity[:12]}… is signed by {signer}",
        "  others check it with: ltd-pipe store verify STORE --public-key YOUR_KEY.pub",
    )
    facts = {"store": str(path), "identity": identity, "signer": signer.fingerprint}
    say(facts, lines, indent=None)
