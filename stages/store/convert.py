"""Labels of other formats made into stores, and stores into tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.console import counter, refuse_given
from ltd_pipe.stages.options import TABLE, refuse_existing, refuse_overlap
from ltd_pipe.stages.store.made import data_option, made_options, show_made

if TYPE_CHECKING:
    from ltd_pipe.labels.derive import Origin
    from ltd_pipe.labels.join import ImagesLike

__all__ = ["convert"]

# What files of each kind begin with.
_TABLES = {"npz": b"PK\x03\x04", "parquet": b"PAR1"}
_FOLDERS = ("fkd", "relabel", "tinyvit")


@click.command()
@click.argument("path", metavar="IN", type=click.Path(path_type=Path))
@click.option("--from", "origin_kind", type=click.Choice((*_TABLES, *_FOLDERS)), help="What IN is.")
@click.option("--to", "target_kind", type=click.Choice(tuple(_TABLES)), help="What --out becomes.")
@data_option("The labelled images: a folder with one folder per class; for tables also a beton.")
@click.option(
    "--temperature", type=float, help="That the labels were made at.  [default: 1 where unknown]"
)
@click.option("--teacher-sha256", help="Of the teacher's weights; without it none is named.")
@click.option("--architecture", help="The teacher's.")
@click.option("--licence", help="Of the labels, as SPDX names it where it does.")
@click.option("--citation", help="How to cite the labels.")
@click.option(
    "--average-crops",
    is_flag=True,
    help="fkd, tinyvit: average the labels of each image's crops into one of the image.",
)
@click.option("--top-k", type=click.IntRange(1), help="Keep so many probabilities per row.")
@click.option(
    "--trust-order",
    is_flag=True,
    help="tinyvit: its keys are the images' places in sorted order, which nothing proves.",
)
@made_options
def convert(
    path: Path, origin_kind: str | None, target_kind: str | None, as_json: bool, **options: Any
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
    out, force, data = options["out"], options["force"], options["data"]
    refuse_overlap(out, path, *([data] if data else []))
    if target_kind is not None:
        made = set(options) - {"out", "force"}
        refuse_given(made, "has no meaning for --to: a table carries what the store says")
        _export(path, target_kind, out, force=force, as_json=as_json)
        return
    from ltd_pipe.labels.writer import require_replaceable

    require_replaceable(out, replace=force)
    origin = _origin(options)
    if origin_kind in _TABLES:
        identity = _from_table(path, origin_kind, origin, options)
    else:
        assert origin_kind is not None  # noqa: S101
        identity = _from_folder(path, origin_kind, origin, options)
    show_made(out, identity, as_json=as_json, judged=True)


def _origin(options: dict[str, Any]) -> Origin:
    from ltd_pipe.labels.derive import Origin

    return Origin.told(
        options["teacher_sha256"],
        options["architecture"],
        options["temperature"],
        options["licence"],
        options["citation"],
    )


def _export(path: Path, kind: str, out: Path, *, force: bool, as_json: bool) -> None:
    from ltd_pipe.labels.foreign import ProvenStore
    from ltd_pipe.labels.tables import write_npz, write_parquet
    from ltd_pipe.provenance import sha256_file

    refuse_existing(out, force=force, kind=TABLE)
    source = ProvenStore(path)
    write = {"npz": write_npz, "parquet": write_parquet}[kind]
    with counter("convert", source.store.num_samples) as progress:
        write(source, out, progress)
    size = out.stat().st_size
    if as_json:
        facts = {
            "file": str(out),
            "sha256": sha256_file(out),
            "bytes": size,
            "num_samples": source.store.num_samples,
            "identity": source.store.identity,
        }
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"{out}: {source.store.num_samples:,} rows, {size / 2**20:,.1f} MiB")
    click.echo(f"  of {path}, identity {source.store.identity[:12]}")


def _from_table(path: Path, kind: str | None, origin: Origin, options: dict[str, Any]) -> str:
    from ltd_pipe.labels.tables import NpzColumns, ParquetColumns, store_of_table

    _refuse_unused(options, ("average_crops", "top_k", "trust_order"), f"a {kind} file")
    columns = NpzColumns(path) if kind == "npz" else ParquetColumns(path)
    try:
        if columns.carried is not None:
            told = ("data", "temperature", "teacher_sha256", "architecture", "licence", "citation")
            _refuse_unused(options, told, "a file that was made of a store and says it itself")
        with counter("convert", columns.num_samples) as progress:
            return store_of_table(
                columns,
                options["out"],
                origin=origin,
                images=_images(options["data"]),
                replace=options["force"],
                progress=progress,
            )
    finally:
        columns.close()


def _images(data: Path | None) -> ImagesLike | None:
    from ltd_pipe.images.beton import open_beton
    from ltd_pipe.labels.foreign import HashedImages

    if data is None:
        return None
    if not data.is_dir():
        return open_beton(data)
    with counter("look at the images", None) as progress:
        return HashedImages.read(data, progress=progress)


def _from_folder(path: Path, kind: str, origin: Origin, options: dict[str, Any]) -> str:
    from ltd_pipe.labels.foreign import (
        FkdLabels,
        HashedImages,
        ImageLabels,
        RelabelLabels,
        TinyVitLabels,
        store_of_images,
    )

    data, average = options["data"], options["average_crops"]
    if data is None or not data.is_dir():
        raise click.UsageError(
            f"--from {kind} needs the images as a folder (--data): its labels are found by their "
            "names"
        )
    _refuse_unused(options, ("trust_order",) if kind != "tinyvit" else (), f"--from {kind}")
    _refuse_unused(options, ("average_crops",) if kind == "relabel" else (), f"--from {kind}")
    with counter("look at the images", None) as progress:
        images = HashedImages.read(data, progress=progress)
    labels: ImageLabels
    if kind == "fkd":
        labels = FkdLabels(path, images, average_crops=average)
    elif kind == "relabel":
        labels = RelabelLabels(path, images)
    else:
        trust = options["trust_order"]
        labels = TinyVitLabels(path, images, average_crops=average, trust_order=trust)
    with counter("convert", images.manifest.num_samples) as progress:
        return store_of_images(
            labels,
            images,
            options["out"],
            origin,
            top_k=options["top_k"],
            replace=options["force"],
            progress=progress,
        )


def _refuse_unused(options: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in names:
        if options[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning for {where}")
