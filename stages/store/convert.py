"""Labels of other formats made into stores, and stores into tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ltd_pipe.stages import options
from ltd_pipe.stages.console import counter, say, tell, wants_json
from ltd_pipe.stages.store.derive import make_store, output_options, read_images

if TYPE_CHECKING:
    from ltd_pipe.labels.convert import HashedImages, LabelFiles, Origin
    from ltd_pipe.labels.derive import DerivedStore

_TABLES = ("npz", "parquet")
_FOLDERS = ("fkd", "relabel", "tinyvit")
# Options that mean nothing for some formats.
_OF_CROPS = ("average_crops", "top_k", "trust_order")
_ORIGIN = ("teacher_sha256", "architecture", "temperature", "licence", "citation")


@click.command()
@click.argument("path", metavar="IN", type=options.PATH)
@click.option("--from", "origin_kind", type=click.Choice((*_TABLES, *_FOLDERS)), help="What IN is.")
@click.option("--to", "target_kind", type=click.Choice(tuple(_TABLES)), help="What --out becomes.")
@options.path(
    "--data",
    help="The labelled images: a folder with one folder per class; for tables also a beton.",
)
@click.option(
    "--temperature", type=float, help="That the labels were made at.  [default: 1 where unknown]"
)
@click.option("--teacher-sha256", help="Of the teacher's weights; without it none is named.")
@click.option("--architecture", help="The teacher's.")
@click.option("--licence", help="Of the labels, as SPDX names it where it does.")
@click.option("--citation", help="How to cite the labels.")
@options.flag(
    "--average-crops",
    help="fkd, tinyvit: average the labels of each image's crops into one of the image.",
)
@click.option("--top-k", type=click.IntRange(1), help="Keep so many probabilities per row.")
@options.flag(
    "--trust-order",
    help="tinyvit: its keys are the images' places in sorted order, which nothing proves.",
)
@output_options
def convert(
    path: Path,
    origin_kind: str | None,
    target_kind: str | None,
    out: Path,
    force: bool,
    **given: Any,
) -> None:
    """Make a store of labels in another format, or a table of a store.

    Formats: npz and parquet, tables that carry all of a store, so that converting back gives it
    again to the byte; fkd, relabel and tinyvit, the published labels of those projects. Nothing
    in a file is ever unpickled beyond tensors and arrays. What the files do not say, such as
    the teacher, is unknown in the store unless you name it.

    \b
    Examples:
      ltd-pipe store convert labels.zarr --to parquet --out labels.parquet
      ltd-pipe store convert labels.npz --from npz --out labels.zarr
      ltd-pipe store convert FKD/train --from fkd --average-crops --data imagenet/train \\
          --out fkd.zarr
    """
    if (origin_kind is None) == (target_kind is None):
        raise click.UsageError("one of --from and --to is needed")
    if target_kind is not None:
        carries = "has no meaning for --to: a table carries what the store says"
        options.refuse_options(given, carries)
        options.refuse_overlap(out, path)
        _write_table(path, target_kind, out, force=force)
        return
    kind, inputs = str(origin_kind), [one for one in (path, given["data"]) if one is not None]

    def derive() -> DerivedStore:
        from ltd_pipe.labels.convert import Origin

        known = {name: given[name] for name in _ORIGIN if given[name] is not None}
        origin = Origin(**known)
        from_file = _from_table if kind in _TABLES else _from_folder
        return from_file(path, kind, origin, given)

    make_store(derive, *inputs, out=out, force=force, judged=True)


def _write_table(path: Path, kind: str, out: Path, *, force: bool) -> None:
    from ltd_pipe.labels import SoftLabels
    from ltd_pipe.labels.tables import write_npz, write_parquet
    from ltd_pipe.provenance import sha256_file

    write, replaced = {
        "npz": (write_npz, options.NPZ),
        "parquet": (write_parquet, options.PARQUET),
    }[kind]
    options.refuse_existing(out, force=force, kind=replaced)
    store = SoftLabels.open(path)
    with counter("convert", store.num_samples) as progress:
        write(store, out, progress)
    size = out.stat().st_size
    facts = {
        "file": str(out),
        "sha256": sha256_file(out) if wants_json() else None,
        "bytes": size,
        "num_samples": store.num_samples,
        "identity": store.identity,
    }
    rows = f"{out}: {store.num_samples:,} rows, {size / 2**20:,.1f} MiB"
    say(facts, [rows, f"  of {path}, identity {store.identity[:12]}"])


def _from_table(path: Path, kind: str, origin: Origin, given: dict[str, Any]) -> DerivedStore:
    from ltd_pipe.labels.tables import NpzTable, ParquetTable

    options.refuse_options(_OF_CROPS, f"has no meaning for a {kind} file")
    table = NpzTable(path) if kind == "npz" else ParquetTable(path)
    # It is read while the store is written.
    click.get_current_context().call_on_close(table.close)
    if table.carried is not None:
        carried = "has no meaning for a file that was made of a store and says it itself"
        options.refuse_options((*_ORIGIN, "data"), carried)
    images = read_images(given["data"])
    store = table.to_store(origin, images)
    if images is not None and len(images.labels) > table.num_samples:
        missing = len(images.labels) - table.num_samples
        tell(f"note: {missing:,} of {len(images.labels):,} images have no row in {path}")
    return store


def _from_folder(path: Path, kind: str, origin: Origin, given: dict[str, Any]) -> DerivedStore:
    from ltd_pipe.labels.foreign import FkdLabels, RelabelLabels, TinyVitLabels, store_of_images

    data = given["data"]
    if data is None or not data.is_dir():
        raise click.UsageError(
            f"--from {kind} needs the images as a folder (--data): its labels are found by their "
            "names"
        )
    formats: dict[str, tuple[Callable[..., LabelFiles], set[str]]] = {
        "fkd": (FkdLabels, {"average_crops"}),
        "relabel": (RelabelLabels, set()),
        "tinyvit": (TinyVitLabels, {"average_crops", "trust_order"}),
    }
    read, takes = formats[kind]
    options.refuse_options({*_OF_CROPS} - takes - {"top_k"}, f"has no meaning for --from {kind}")
    images = cast("HashedImages", read_images(data))
    labels = read(path, images, **{name: given[name] for name in takes})
    return store_of_images(labels, images, origin, top_k=given["top_k"])
