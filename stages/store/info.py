"""What a store holds, who made it, and what its labels are like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.labels.read import SoftLabels

__all__ = ["info"]


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info(path: Path, as_json: bool) -> None:
    """Say what a store holds, who made it, and what its labels are like.

    \b
    Example:
      ltd-pipe store info labels.zarr --json
    """
    from pipeline.labels.read import SoftLabels

    opened = SoftLabels.open(path)
    if as_json:
        click.echo(json.dumps(_facts(opened), indent=2))
        return
    _print_table(opened)


def _facts(opened: SoftLabels) -> dict[str, Any]:
    return {
        "path": str(opened.path),
        "identity": opened.identity,
        "attributes": opened.attributes.to_json(),
        "has_logits": opened.has_logits,
        "labels": vars(opened.summary()),
    }


def _print_table(opened: SoftLabels) -> None:
    from rich.console import Console
    from rich.table import Table

    attributes, summary = opened.attributes, opened.summary()
    data = attributes.dataset
    table = Table(show_header=False, title=str(opened.path), title_justify="left")
    table.add_row("identity", opened.identity)
    table.add_row("samples × classes", f"{opened.num_samples:,} × {opened.num_classes:,}")
    table.add_row("images", f"{data.name}, {data.split}")
    table.add_row("fingerprint", data.fingerprint)
    for teacher in attributes.teachers:
        accuracy = teacher.clean_accuracy
        known = "clean accuracy unknown" if accuracy is None else f"{accuracy:.2%} clean"
        table.add_row("teacher", f"{teacher.architecture}, {known}\n{teacher.sha256}")
    table.add_row("temperature", f"{attributes.temperature:g}")
    table.add_row("logits", "stored" if opened.has_logits else "not stored")
    table.add_row("mean top probability", f"{summary.mean_top_probability:.4f}")
    table.add_row("mean entropy", f"{summary.mean_entropy:.4f} nats")
    if summary.disagreement is not None:
        table.add_row("contradicts the truth", f"{summary.disagreement:.2%} of samples")
    versions = ", ".join(f"{name} {version}" for name, version in attributes.software.items())
    table.add_row("made with", versions)
    Console(highlight=False).print(table)
    for warning in summary.warnings:
        click.echo(f"warning: {warning}", err=True)
