"""Putting stores together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import StoreError
from ltd_pipe.stages.console import counter, of_option
from ltd_pipe.stages.options import refuse_overlap
from ltd_pipe.stages.store.made import data_option, made_options, read_images, show_made

if TYPE_CHECKING:
    from ltd_pipe.labels.foreign import ProvenStore

__all__ = ["merge"]


class _Weights(click.ParamType[tuple[float, ...]]):
    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list such as 0.7,0.3", param, ctx)


@click.command()
@click.argument(
    "paths", metavar="STORE STORE …", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@data_option("Beton, or folder of images, of all samples: put the rows into its order, by hash.")
@click.option("--average", is_flag=True, help="Average stores of the same images.")
@click.option("--weights", type=_Weights(), help="Of the average, as 0.7,0.3; by default equal.")
@click.option(
    "--by-hash", is_flag=True, help="Average: find the same images by hash, in whatever order."
)
@made_options
def merge(
    paths: tuple[Path, ...],
    data: Path | None,
    average: bool,
    weights: tuple[float, ...] | None,
    by_hash: bool,
    out: Path,
    force: bool,
    as_json: bool,
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
    from ltd_pipe.labels.foreign import ProvenStore
    from ltd_pipe.labels.merge import normalised_weights
    from ltd_pipe.labels.writer import require_replaceable

    if len(paths) < 2:
        raise click.UsageError("two stores or more are needed")
    if (weights or by_hash) and not average:
        raise click.UsageError("--weights and --by-hash belong to --average")
    if average and data:
        raise click.UsageError("--data belongs to parts; an average is in the first store's order")
    with of_option("--weights"):
        normalised_weights(weights, len(paths))
    require_replaceable(out, replace=force)
    refuse_overlap(out, *paths, *([data] if data else []))
    sources = [ProvenStore(path) for path in paths]
    if average:
        identity = _averaged(sources, out, weights, by_hash=by_hash, force=force)
    else:
        identity = _merged(sources, out, data, force=force)
    show_made(out, identity, as_json=as_json)


def _averaged(
    sources: list[ProvenStore],
    out: Path,
    weights: tuple[float, ...] | None,
    *,
    by_hash: bool,
    force: bool,
) -> str:
    from ltd_pipe.labels.merge import average_stores

    _refuse_repeated(sources)
    with counter("average", sources[0].store.num_samples) as progress:
        return average_stores(
            sources, out, weights=weights, by_hash=by_hash, replace=force, progress=progress
        )


def _refuse_repeated(sources: list[ProvenStore]) -> None:
    # By identity: a copy under another name is the same teacher's answers, too.
    found: dict[str, ProvenStore] = {}
    for source in sources:
        first = found.setdefault(source.store.identity, source)
        if first is not source:
            raise StoreError(
                source.store.path,
                f"is the same store as {first.store.path}",
                remedy="Name each store once; --weights says whose answers count for more.",
            )


def _merged(sources: list[ProvenStore], out: Path, data: Path | None, *, force: bool) -> str:
    from ltd_pipe.labels.merge import merge_stores

    images = read_images(data, sources[0].store.attributes.class_names)
    with counter("merge", sum(source.store.num_samples for source in sources)) as progress:
        return merge_stores(
            sources, out, images=images, data=str(data), replace=force, progress=progress
        )
