"""Stores made of other stores: cut, put together, softened; and the frame of such commands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import StoreError
from ltd_pipe.params import parse_standalone
from ltd_pipe.params.sections import CALIBRATED
from ltd_pipe.stages import options
from ltd_pipe.stages.console import counter, json_option, say, tell

if TYPE_CHECKING:
    from click.decorators import FC

    from ltd_pipe.labels.derive import DerivedStore
    from ltd_pipe.labels.join import ImagesLike
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.params.sections import LabelParams

# A teacher that is wrong more often than right is rarely what was meant.
_ODD = 0.5


def output_options(command: FC) -> FC:
    """Add --out, --force and --json; the command gets `out` and `force`."""
    for option in (
        json_option("Print the summary as JSON."),
        options.flag("--force", help="Replace an existing store."),
        options.path("--out", required=True, help="The new store."),
    ):
        command = option(command)
    return command


def _makes_store(derive: Callable[..., DerivedStore]) -> Callable[..., None]:
    """Make a command of a function that opens stores and gives a new one: it goes into --out."""

    @functools.wraps(derive)
    def command(*, out: Path, force: bool, **given: Any) -> None:
        values = [one for value in given.values() for one in _each(value)]
        inputs = [value for value in values if isinstance(value, Path)]
        make_store(lambda: derive(**given), *inputs, out=out, force=force)

    return output_options(command)


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def make_store(
    derive: Callable[[], DerivedStore],
    *inputs: Path,
    out: Path,
    force: bool,
    judged: bool = False,
) -> None:
    """Write the store that `derive` gives, which opens the inputs, and say what it is.

    The inputs are not written over. Of labels that are `judged`, since they came from elsewhere,
    it is said what is odd about them.
    """
    from ltd_pipe.labels.files import require_replaceable
    from ltd_pipe.labels.reader import SoftLabels

    require_replaceable(out, replace=force)
    options.refuse_overlap(out, *inputs)
    with options.usage_errors():
        derived = derive()
    verb = str(click.get_current_context().info_name)
    with counter(verb, derived.attributes.num_samples) as progress:
        identity = derived.write(out, replace=force, progress=progress)
    store = SoftLabels.open(out)
    if judged:
        found = store.summary()
        warnings = list(found.warnings)
        if found.disagreement is not None and found.disagreement > _ODD:
            warnings.append(f"they contradict the ground truth for {found.disagreement:.2%}")
        for line in warnings:
            tell(f"warning: {out}: {line}")
    _print_store(store, identity)


def _print_store(store: SoftLabels, identity: str) -> None:
    known = store.attributes
    summary = {
        "store": str(store.path),
        "identity": identity,
        "num_samples": store.num_samples,
        "num_classes": store.num_classes,
        "num_views": store.num_views,
        "top_k": known.top_k.model_dump() if known.top_k else None,
        "temperature": known.temperature,
        "logits": store.has_logits,
        "fingerprint": known.dataset.fingerprint,
        "derived_from": known.derived_from.model_dump() if known.derived_from else None,
    }
    ranks = f", the {store.top_k} largest of each" if store.top_k else ""
    views = f" of {store.num_views} views" if store.num_views > 1 else ""
    lines = [
        (
            f"{store.path}: {store.num_samples:,} soft labels{views} over {store.num_classes:,} "
            f"classes{ranks}, identity {identity[:12]}"
        ),
        f"  temperature  {known.temperature:g}",
    ]
    if known.top_k and (lost := known.top_k.total_variation):
        lines.append(f"  left out     {lost.mean:.4g} on average, {lost.worst:.4g} at most")
    say(summary, lines)


def read_images(data: Path | None, class_names: tuple[str, ...] | None = None) -> ImagesLike | None:
    """Open what --data names, which may take the time of reading all images."""
    from ltd_pipe.labels.convert import open_images

    if data is None:
        return None
    with counter("look at the images", None) as progress:
        return open_images(data, class_names, progress)


# --- Rows and arrays of a store.


def row_range(text: str) -> tuple[int | None, int | None]:
    """Rows as A:B; None where an end is left out."""
    first, colon, last = text.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (first, last)):
        raise click.BadParameter(f"'{text}' is no range such as 0:1000, 500: or :500")
    if last and int(last) <= int(first or 0):
        raise click.BadParameter(f"'{text}' holds no row: A:B are rows A to B - 1")
    return int(first) if first else None, int(last) if last else None


@click.command()
@click.argument("path", metavar="STORE", type=options.PATH)
@click.option(
    "--rows", type=row_range, metavar="A:B", help="Rows A to B - 1, such as 0:1000 or 500:."
)
@options.path("--data", help="Beton, or folder of images: its rows, in its order, found by hash.")
@click.option("--class", "classes", multiple=True, help="Rows of this class; may be repeated.")
@click.option(
    "--arrays",
    help="Arrays to keep, as soft_labels,logits; by default all. The labels and the samples' "
    "hashes are always kept.",
)
@click.option("--view", type=click.IntRange(0), help="Keep only this view.")
@_makes_store
def subset(
    path: Path,
    rows: tuple[int | None, int | None] | None,
    data: Path | None,
    classes: tuple[str, ...],
    arrays: str | None,
    view: int | None,
) -> DerivedStore:
    """Write some rows, or some arrays, of a store into a new one.

    The columns stay: also rows of few classes are distributions over all of them. With --data
    the new store has the data's fingerprint and trains on it.

    \b
    Examples:
      ltd-pipe store subset labels.zarr --rows 0:1000 --out part.zarr
      ltd-pipe store subset labels.zarr --data part.beton --out part.zarr
      ltd-pipe store subset labels.zarr --arrays soft_labels --out small.zarr
    """
    from ltd_pipe.labels import SoftLabels, derive

    if sum((rows is not None, data is not None, bool(classes))) > 1:
        raise click.UsageError("--rows, --data and --class exclude each other")
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


# --- Several stores.


@click.command()
@click.argument("paths", metavar="STORE STORE …", nargs=-1, required=True, type=options.PATH)
@options.path(
    "--data",
    help="Beton, or folder of images, of all samples: put the rows into its order, by hash.",
)
@options.flag("--average", help="Average stores of the same images.")
@click.option(
    "--weights",
    type=options.numbers("0.7,0.3"),
    metavar="NUMBERS",
    help="Of the average, as 0.7,0.3; by default equal.",
)
@options.flag("--by-hash", help="Average: find the same images by hash, in whatever order.")
@_makes_store
def merge(
    paths: tuple[Path, ...],
    data: Path | None,
    average: bool,
    weights: tuple[float, ...] | None,
    by_hash: bool,
) -> DerivedStore:
    """Put parts of one data set together, or average several teachers' stores.

    Parts have the same teachers, temperature, classes and arrays, and different samples; their
    rows follow each other in the order given, or in that of --data. An average is of
    probabilities, for the same images in the order of the first store; logits are not kept.

    \b
    Examples:
      ltd-pipe store merge part-0.zarr part-1.zarr --data train.beton --out labels.zarr
      ltd-pipe store merge a.zarr b.zarr --average --weights 0.7,0.3 --out both.zarr
    """
    from ltd_pipe.labels import SoftLabels, derive

    if len(paths) < 2:
        raise click.UsageError("two stores or more are needed")
    if (weights or by_hash) and not average:
        raise click.UsageError("--weights and --by-hash belong to --average")
    if average and data:
        raise click.UsageError("--data belongs to parts; an average is in the first store's order")
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


# --- Another temperature.


def _temperature(store: SoftLabels, asked: LabelParams) -> float | None:
    """The number that is meant; None: that of the store, which is calibrated."""
    from ltd_pipe.labels import derive

    if target := asked.target_top_probability():
        return derive.temperature_for(store, target)
    if isinstance(asked.temperature, float):
        return asked.temperature
    if store.attributes.calibration is None:
        raise StoreError(
            store.path,
            f"does not say which images its teachers left out, on which {CALIBRATED} measures",
            remedy=f"Label again with 'ltd-pipe label --temperature {CALIBRATED}', or ask for "
            "auto:P, such as auto:0.95.",
        )
    return None


@click.command()
@click.argument("path", metavar="STORE", type=options.PATH)
@click.option(
    "--temperature",
    metavar="NUMBER|auto:P",
    help="Divide the stored logits by it; auto:0.9 solves for that mean top probability; "
    "auto:calibrated is for a store that was labelled so. By default as the store has it.",
)
@click.option(
    "--top-k", type=click.IntRange(1), help="Keep so many probabilities per row, and no logits."
)
@options.flag("--allow-poor-labels", help="Make labels that are as good as uniform, too.")
@_makes_store
def retemper(
    path: Path,
    temperature: str | None,
    top_k: int | None,
    allow_poor_labels: bool,
) -> DerivedStore:
    """Soften a store's logits at another temperature, or keep the largest probabilities only.

    The same bytes as labelling again at that temperature would give, without the teacher. The
    store must have logits (ltd-pipe label writes them unless label.logits is false or there are
    several teachers); --top-k alone needs none.

    \b
    Examples:
      ltd-pipe store retemper labels.zarr --temperature 0.5 --out cold.zarr
      ltd-pipe store retemper labels.zarr --temperature auto:0.9 --out soft.zarr
      ltd-pipe store retemper labels.zarr --top-k 50 --out small.zarr
    """
    from ltd_pipe.labels import SoftLabels, derive

    if temperature is None and top_k is None:
        raise click.UsageError("--temperature, --top-k or both are needed")
    asked = None
    if temperature is not None:
        asked = parse_standalone("label", {"label.temperature": temperature}).label
    store = SoftLabels.open(path)
    number = _temperature(store, asked) if asked else None
    derived = derive.retemper(store, number, top_k=top_k)
    if number not in (None, store.attributes.temperature) and not allow_poor_labels:
        derive.require_informative(store, number)
    return derived
