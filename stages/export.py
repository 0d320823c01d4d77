"""A checkpoint for others: in the forms that their projects load, and a page about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ltd_pipe.errors import require_file
from ltd_pipe.stages import options
from ltd_pipe.stages.console import json_option, say, tell

_checkpoint_argument = click.argument(
    "checkpoint", type=options.FILE, default="data/student/model.safetensors"
)
# Named here, since --help loads no torch.
_FORMATS = ("robustbench", "timm", "onnx", "torchscript")


@click.command()
@_checkpoint_argument
@click.option("--to", type=click.Choice(_FORMATS), required=True, help="The form.")
@options.path(
    "--out",
    required=True,
    help="A folder for robustbench and timm, a file for onnx and torchscript.",
)
@click.option("--arch", help="FILE.py:FUNCTION, of a checkpoint whose network is a file's.")
@options.flag("--force", help="Replace an older export.")
@json_option("Print as JSON.")
def export(checkpoint: Path, to: str, out: Path, arch: str | None, force: bool) -> None:
    """Write a checkpoint for RobustBench, timm, ONNX or TorchScript.

    Normalisation and temperature are inside; class names, eps, labels and the checkpoint's hash
    travel with it. What was written is loaded again and has to give the same logits, or it is
    not published.

    \b
    Examples:
      ltd-pipe export student/model.safetensors --to robustbench --out robustbench/
      ltd-pipe export student/model.safetensors --to onnx --out student.onnx
    """
    from ltd_pipe.export import formats
    from ltd_pipe.models.registry import allow_file
    from ltd_pipe.stages.model_options import ModelOptions

    options.refuse_overlap(out, checkpoint)
    require_file(checkpoint, remedy=options.NO_MODEL)
    if arch is not None:
        ModelOptions(architecture=arch).refuse_unused(checkpoint)
        allow_file(arch)
    agreement = formats.export(checkpoint, to, out, replace=force)
    loading = formats.FORMATS[to].loading.format(out=str(out), name=f"local-dir:{out}")
    lines = (
        (
            f"{out}: gives the checkpoint's logits on {agreement.images} images: "
            f"largest difference {agreement.difference:.1e}, allowed {agreement.allowed:.1e}"
        ),
        f"load it: {loading}",
    )
    say({"out": str(out), "to": to, **vars(agreement)}, lines)


# --- The page.


@click.command()
@_checkpoint_argument
@click.option("--metrics", type=options.THERE, help="What 'ltd-pipe evaluate' measured of it.")
@options.folder(
    "--evaluation",
    show_default="evaluation beside --metrics",
    help="Folder that its evaluation left.",
)
@click.option(
    "--audit",
    type=options.THERE,
    show_default="audit/audit.json beside --metrics, where it is of this checkpoint",
    help="What 'ltd-pipe audit' found of it.",
)
@click.option("--name", show_default="architecture and data set", help="What the model is called.")
@click.option("--licence", help="Of the weights, as SPDX names it where it does.")
@options.file("--out", default="README.md", help="The card.")
@options.flag("--force", help="Replace an existing card.")
def card(
    checkpoint: Path, metrics: Path | None, audit: Path | None, out: Path, force: bool, **more: Any
) -> None:
    """Write a model card: threat model, numbers with intervals, labels, limits.

    Markdown with the front matter of Hugging Face. What was not measured is said to be so;
    numbers of another checkpoint are refused.

    \b
    Example:
      ltd-pipe card student/model.safetensors --metrics data/metrics.json \\
          --out student/README.md
    """
    from ltd_pipe.evaluation.results import audit_in
    from ltd_pipe.export.card import format_card, gather_card
    from ltd_pipe.publish import write_text
    from ltd_pipe.report.runs import find_metrics

    if metrics is None:
        options.refuse_options({"evaluation"}, "is of --metrics, and none are given")
    else:
        metrics = find_metrics(metrics)
    if audit is not None:
        audit = require_file(audit_in(audit))
    inputs = [path for path in (checkpoint, metrics, audit) if path is not None]
    options.refuse_overlap(out, *inputs)
    options.refuse_existing(out, force=force, kind=options.CARD)
    require_file(checkpoint, remedy=options.NO_MODEL)
    facts = gather_card(checkpoint, metrics=metrics, audit=audit, **more)
    text = format_card(facts)
    write_text(out, text)
    click.echo(f"{out}: {len(text.splitlines())} lines.")
    for what, given in (("accuracy", facts.evaluation), ("gradient masking", facts.audit)):
        if given is None:
            tell(f"not in it: {what}")
