"""Putting stores together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import StoreError
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


def _weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"'{text}' is not a list such as 0.7,0.3") from None


@click.command()
@click.argument("paths", metavar="STORE STORE …", nargs=-1, required=True, type=PATH)
@data_option("Beton, or folder of images, of all samples: put the rows into its order, by hash.")
@click.option("--average", is_flag=True, help="Average stores of the same images.")
@click.option(
    "--weights",
    type=Parsed("numbers", _weights),
    help="Of the average, as 0.7,0.3; by default equal.",
)
@click.option(
    "--by-hash", is_flag=True, help="Average: find the same images by hash, in whatever order."
)
@output_options
def merge(
    paths: tuple[Path, ...],
    data: Path | None,
    average: bool,
    weights: tuple[float, ...] | None,
    by_hash: bool,
    **output: Any,
) -> None:
    """Put parts of one data set together, or average several teachers' stores.

    Parts have the same teachers, temperature, classes and arrays, and different samples; their
    rows follow each other in the order given, or in that of --data. An average is of
    probabilities, for the same images in the order of the first store; logits are not kept.

    \b
    Examples:
      ltd-pipe store merge part-0.zarr part-1.zarr --data train.beton --out labels.zarr
      ltd-pipe store merge a.zarr b.zarr --average --weights 0.7,0.3 --out both.zarr
    """
    if len(paths) < 2:
        raise click.UsageError("two stores or more are needed")
    if (weights or by_hash) and not average:
        raise click.UsageError("--weights and --by-hash belong to --average")
    if average and data:
        raise click.UsageError("--data belongs to parts; an average is in the first store's order")

    def combined() -> DerivedStore:
        from ltd_pipe.labels import SoftLabels, derive

        derive.normalised_weights(weights, len(paths))
        stores = [SoftLabels.open(path) for path in paths]
        if not average:
            images = read_images(data, stores[0].attributes.class_names)
            return derive.merge(stores, images=images, data=str(data))
        # By identity: a copy under another name is the same teacher's answers, too.
        found: dict[str, SoftLabels] = {}
        for store in stores:
            first = found.setdefault(store.identity, store)
            if first is not store:
                raise StoreError(
                    store.path,
                    f"is the same store as {first.path}",
                    remedy="Name each store once; --weights says whose answers count for more.",
                )
        return derive.average(stores, weights=weights, by_hash=by_hash)

    make_store(combined, *paths, data, **output)
