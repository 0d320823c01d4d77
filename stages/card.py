"""A page that says what a model is, for whoever gets it."""

from __future__ import annotations

from pathlib import Path

import click

from ltd_pipe.stages.evaluation_options import checkpoint_argument
from ltd_pipe.stages.options import (
    CARD,
    FILE,
    FOLDER,
    refuse_existing,
    refuse_options,
    refuse_overlap,
)

__all__ = ["card"]

_RESULT = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@checkpoint_argument
@click.option("--metrics", type=_RESULT, help="What 'ltd-pipe evaluate' measured of it.")
@click.option(
    "--evaluation",
    type=FOLDER,
    show_default="evaluation beside --metrics",
    help="Folder that its evaluation left.",
)
@click.option(
    "--audit",
    type=_RESULT,
    show_default="audit/audit.json beside --metrics, where it is of this checkpoint",
    help="What 'ltd-pipe audit' found of it.",
)
@click.option("--name", show_default="architecture and data set", help="What the model is called.")
@click.option("--licence", help="Of the weights, as SPDX names it where it does.")
@click.option("--out", type=FILE, default="README.md", help="The card.")
@click.option("--force", is_flag=True, help="Replace an existing card.")
def card(
    checkpoint: Path,
    metrics: Path | None,
    evaluation: Path | None,
    audit: Path | None,
    name: str | None,
    licence: str | None,
    out: Path,
    force: bool,
) -> None:
    """Write a model card: threat model, numbers with intervals, labels, limits.

    Markdown with the front matter of Hugging Face. What was not measured is said to be so;
    numbers of another checkpoint are refused.

    \b
    Example:
      ltd-pipe card student/model.safetensors --metrics data/metrics.json \\
          --out student/README.md
    """
    from ltd_pipe.export.card import format_card, gather_card
    from ltd_pipe.publish import write_text

    if metrics is None:
        refuse_options({"evaluation"}, "is of --metrics, and none are given")
    inputs = [path for path in (checkpoint, metrics, audit) if path is not None]
    refuse_overlap(out, *inputs)
    refuse_existing(out, force=force, kind=CARD)
    facts = gather_card(
        checkpoint,
        metrics=metrics,
        evaluation=evaluation,
        audit=audit,
        name=name,
        licence=licence,
    )
    text = format_card(facts)
    write_text(out, text)
    click.echo(f"{out}: {len(text.splitlines())} lines.")
    for what, given in (("accuracy", facts.evaluation), ("gradient masking", facts.audit)):
        if given is None:
            click.echo(f"not in it: {what}", err=True)
