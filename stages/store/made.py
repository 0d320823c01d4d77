"""Options and last words of the commands that make a store out of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.console import counter

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.decorators import FC

    from ltd_pipe.labels.join import ImagesLike

__all__ = ["data_option", "made_options", "read_images", "show_made"]

# A teacher that is wrong more often than right is rarely what was meant.
_ODD = 0.5


def made_options(command: FC) -> FC:
    """Add --out, --force and --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
        click.option("--force", is_flag=True, help="Replace an existing store."),
        click.option(
            "--out", type=click.Path(path_type=Path), required=True, help="The new store."
        ),
    ):
        command = option(command)
    return command


def data_option(text: str) -> Callable[[FC], FC]:
    """Add --data, a beton or a folder."""
    return click.option("--data", type=click.Path(path_type=Path), help=text)


def read_images(data: Path | None, class_names: tuple[str, ...]) -> ImagesLike | None:
    """Open what --data names, which may take the time of reading all images."""
    from ltd_pipe.labels.foreign import open_images

    if data is None:
        return None
    with counter("look at the images", None) as progress:
        return open_images(data, class_names, progress)


def show_made(out: Path, identity: str, *, as_json: bool, judged: bool = False) -> None:
    """Say what was made, of what; and what is odd about labels that came from elsewhere."""
    from ltd_pipe.labels.reader import SoftLabels

    store = SoftLabels.open(out)
    known = store.attributes
    if judged:
        found = store.summary()
        warnings = list(found.warnings)
        if found.disagreement is not None and found.disagreement > _ODD:
            warnings.append(f"they contradict the ground truth for {found.disagreement:.2%}")
        for line in warnings:
            click.echo(f"warning: {out}: {line}", err=True)
    summary: dict[str, Any] = {
        "store": str(out),
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
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    ranks = f", the {store.top_k} largest of each" if store.top_k else ""
    views = f" of {store.num_views} views" if store.num_views > 1 else ""
    click.echo(
        f"{out}: {store.num_samples:,} soft labels{views} over {store.num_classes:,} classes"
        f"{ranks}, identity {identity[:12]}"
    )
    click.echo(f"  temperature  {known.temperature:g}")
    if known.top_k and known.top_k.total_variation:
        distance = known.top_k.total_variation
        click.echo(f"  left out     {distance.mean:.4g} on average, {distance.worst:.4g} at most")
