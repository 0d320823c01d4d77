"""What differs between two stores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.console import counter
from ltd_pipe.stages.options import PATH

if TYPE_CHECKING:
    from ltd_pipe.labels.diff import Comparison


@click.command()
@click.argument("first", metavar="STORE", type=PATH)
@click.argument("second", metavar="OTHER", type=PATH)
@click.option(
    "--rows",
    type=click.IntRange(0),
    default=20,
    help="How many of the samples that differ to list, the worst first.",
)
@click.option(
    "--labels-only",
    is_flag=True,
    help="Exit with 0 when samples and labels are equal, whatever their order and the attributes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def diff(first: Path, second: Path, rows: int, labels_only: bool, as_json: bool) -> None:
    """Say which samples of two stores differ, and by how much; matched by hash, not by position.

    Exits with 0 when nothing differs and with 1 when something does. A store that cannot be read
    exits with 1 too, and says so on stderr.

    \b
    Example:
      ltd-pipe store diff labels.zarr other.zarr --rows 5
    """
    from ltd_pipe.labels import SoftLabels
    from ltd_pipe.labels.diff import compare_stores

    stores = SoftLabels.open(first), SoftLabels.open(second)
    with counter("compare", stores[0].num_samples) as progress:
        found = compare_stores(*stores, rows=rows, progress=progress)
    same = found.same_rows if labels_only else found.same
    if as_json:
        click.echo(json.dumps(_plain(found, rows) | {"same": same}, indent=2))
    else:
        _print(found, rows)
    sys.exit(0 if same else 1)


def _plain(found: Comparison, rows: int) -> dict[str, Any]:
    content = dict(vars(found))
    content["worst"] = [vars(row) for row in found.worst]
    for name in ("only_first", "only_second"):
        content[name] = {"samples": len(content[name]), "rows": content[name][:rows].tolist()}
    return content


def _print(found: Comparison, rows: int) -> None:
    if found.same:
        click.echo(f"equal: {found.compared:,} samples, all attributes")
        return
    for name, (ours, theirs) in found.attributes.items():
        click.echo(f"{name}: {_short(ours)} | {_short(theirs)}")
    for name, where in found.arrays.items():
        click.echo(f"array {name}: {where}")
    for where, alone in (("first", found.only_first), ("second", found.only_second)):
        if len(alone):
            click.echo(f"only in the {where}: {len(alone):,} samples, such as row {alone[0]}")
    if found.moved:
        click.echo(f"in another order: {found.moved:,} of {found.compared:,} common samples")
    if found.labels_different:
        click.echo(f"ground truth differs: {found.labels_different:,} samples")
    if found.logits_different:
        click.echo(f"logits differ: {found.logits_different:,} samples")
    click.echo(f"soft labels differ: {found.different:,} of {found.compared:,} common samples")
    if found.different:
        click.echo(f"  largest difference  {found.largest:.3g}")
        click.echo(
            f"  total variation     {found.mean_total_variation:.3g} on average, "
            f"{found.worst_total_variation:.3g} at most"
        )
        click.echo(f"  most probable class differs in {found.argmax_changes:,} rows")
        _print_worst(found, rows)


def _print_worst(found: Comparison, rows: int) -> None:
    if not rows:
        return
    click.echo("     row   other  sample_hash       label  largest   total variation  class")
    for row in found.worst:
        label = "|".join(str(each) for each in dict.fromkeys(row.labels))
        turned = "differs" if row.views_changed else "same"
        click.echo(
            f"{row.row:8d}{row.other_row:8d}  {row.sample_hash}  {label:>5}  {row.largest:<8.3g}"
            f"  {row.total_variation:<15.3g}  {turned}"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
