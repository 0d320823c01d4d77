"""Cutting rows or arrays out of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.options import PATH
from ltd_pipe.stages.store.output import (
    Parsed,
    data_option,
    make_store,
    output_options,
    read_images,
)

if TYPE_CHECKING:
    from ltd_pipe.labels.derive import DerivedStore


def _row_range(text: str) -> tuple[int | None, int | None]:
    first, colon, last = text.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (first, last)):
        raise ValueError(f"'{text}' is no range such as 0:1000, 500: or :500")
    if last and int(last) <= int(first or 0):
        raise ValueError(f"'{text}' holds no row: A:B are rows A to B - 1")
    return int(first) if first else None, int(last) if last else None


# Rows as A:B; None where an end is left out.
ROW_RANGE = Parsed("A:B", _row_range)


@click.command()
@click.argument("path", metavar="STORE", type=PATH)
@click.option("--rows", type=ROW_RANGE, help="Rows A to B - 1, such as 0:1000 or 500:.")
@data_option("Beton, or folder of images: its rows, in its order, found by hash.")
@click.option("--class", "classes", multiple=True, help="Rows of this class; may be repeated.")
@click.option(
    "--arrays",
    help="Arrays to keep, as soft_labels,logits; by default all. The labels and the samples' "
    "hashes are always kept.",
)
@click.option("--view", type=click.IntRange(0), help="Keep only this view.")
@output_options
def subset(
    path: Path,
    rows: tuple[int | None, int | None] | None,
    data: Path | None,
    classes: tuple[str, ...],
    arrays: str | None,
    view: int | None,
    **output: Any,
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
    if sum((rows is not None, data is not None, bool(classes))) > 1:
        raise click.UsageError("--rows, --data and --class exclude each other")

    def derive() -> DerivedStore:
        from ltd_pipe.labels import SoftLabels, derive

        store = SoftLabels.open(path)
        images = read_images(data, store.attributes.class_names)
        if images is not None:
            chosen = derive.rows_of_images(store, images, str(data))
        elif classes:
            chosen = derive.rows_of_classes(store, classes)
        else:
            chosen = derive.rows_of_range(store, *(rows or (None, None)))
        kept = arrays.split(",") if arrays else None
        return derive.subset(store, chosen, images=images, arrays=kept, view=view)

    make_store(derive, path, data, **output)
