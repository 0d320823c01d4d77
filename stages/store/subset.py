"""Cutting rows or arrays out of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.console import counter, of_option
from ltd_pipe.stages.options import refuse_overlap
from ltd_pipe.stages.store.made import data_option, made_options, read_images, show_made

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ltd_pipe.labels.join import ImagesLike
    from ltd_pipe.labels.reader import SoftLabels

__all__ = ["RowRange", "subset"]


class RowRange(click.ParamType[tuple[int | None, int | None]]):
    """Rows as A:B, with either end left out."""

    name = "A:B"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Both numbers, None where one is left out."""
        first, colon, last = value.partition(":")
        if not colon or not all(part == "" or part.isdecimal() for part in (first, last)):
            self.fail(f"'{value}' is no range such as 0:1000, 500: or :500", param, ctx)
        if last and int(last) <= int(first or 0):
            self.fail(f"'{value}' holds no row: A:B are rows A to B - 1", param, ctx)
        return tuple(int(part) if part else None for part in (first, last))


@click.command()
@click.argument("path", metavar="STORE", type=click.Path(path_type=Path))
@click.option("--rows", type=RowRange(), help="Rows A to B - 1, such as 0:1000 or 500:.")
@data_option("Beton, or folder of images: its rows, in its order, found by hash.")
@click.option("--class", "classes", multiple=True, help="Rows of this class; may be repeated.")
@click.option(
    "--arrays",
    help="Arrays to keep, as soft_labels,logits; by default all. The labels and the samples' "
    "hashes are always kept.",
)
@click.option("--view", type=click.IntRange(0), help="Keep only this view.")
@made_options
def subset(
    path: Path,
    rows: tuple[int | None, int | None] | None,
    data: Path | None,
    classes: tuple[str, ...],
    arrays: str | None,
    view: int | None,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Write some rows, or some arrays, of a store into a new one.

    The columns stay: also rows of few classes are distributions over all of them. With --data
    the new store has the data's fingerprint and trains on it.

    \b
    Examples:
      ltd-pipe store subset labels.zarr --rows 0:1000 --out part.zarr
      ltd-pipe store subset labels.zarr --data part.beton --out part.zarr
      ltd-pipe store subset labels.zarr --arrays soft_labels --out small.zarr
    """
    from ltd_pipe.labels.derive import subset_store
    from ltd_pipe.labels.foreign import ProvenStore
    from ltd_pipe.labels.writer import require_replaceable

    if sum((rows is not None, data is not None, bool(classes))) > 1:
        raise click.UsageError("--rows, --data and --class exclude each other")
    require_replaceable(out, replace=force)
    refuse_overlap(out, path, *([data] if data else []))
    source = ProvenStore(path)
    images = read_images(data, source.store.attributes.class_names)
    chosen = _chosen(source.store, rows, images, data, classes)
    with counter("subset", len(chosen)) as progress:
        identity = subset_store(
            source,
            out,
            chosen,
            images=images,
            arrays=arrays.split(",") if arrays else None,
            view=view,
            replace=force,
            progress=progress,
        )
    show_made(out, identity, as_json=as_json)


def _chosen(
    store: SoftLabels,
    rows: tuple[int | None, int | None] | None,
    images: ImagesLike | None,
    data: Path | None,
    classes: tuple[str, ...],
) -> NDArray[np.int64]:
    from ltd_pipe.labels.derive import rows_of_classes, rows_of_images, rows_of_range

    if images is not None:
        return rows_of_images(store, images, str(data))
    if classes:
        return rows_of_classes(store, classes)
    with of_option("--rows"):
        return rows_of_range(store, *(rows or (None, None)))
