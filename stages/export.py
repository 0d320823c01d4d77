"""A checkpoint in the forms that other projects load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ltd_pipe.stages.evaluation_options import checkpoint_argument
from ltd_pipe.stages.options import PATH, refuse_overlap

if TYPE_CHECKING:
    from ltd_pipe.export.formats import Agreement

__all__ = ["export"]

# Named here, since --help loads no torch.
_FORMATS = ("robustbench", "timm", "onnx", "torchscript")


@click.command()
@checkpoint_argument
@click.option("--to", type=click.Choice(_FORMATS), required=True, help="The form.")
@click.option(
    "--out",
    type=PATH,
    required=True,
    help="A folder for robustbench and timm, a file for onnx and torchscript.",
)
@click.option("--arch", help="FILE.py:FUNCTION, of a checkpoint whose network is a file's.")
@click.option("--force", is_flag=True, help="Replace an older export.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def export(
    checkpoint: Path, to: str, out: Path, arch: str | None, force: bool, as_json: bool
) -> None:
    """Write a checkpoint for RobustBench, timm, ONNX or TorchScript.

    Normalisation and temperature are inside; class names, eps, labels and the checkpoint's hash
    travel with it. What was written is loaded again and has to give the same logits, or it is
    not published.

    \b
    Examples:
      ltd-pipe export student/model.safetensors --to robustbench --out robustbench/
      ltd-pipe export student/model.safetensors --to onnx --out student.onnx
    """
    from ltd_pipe.export.formats import export as write
    from ltd_pipe.models.registry import allow_file

    refuse_overlap(out, checkpoint)
    if arch is not None:
        allow_file(arch)
    agreement = write(checkpoint, to, out, replace=force)
    if as_json:
        click.echo(json.dumps({"out": str(out), "to": to, **vars(agreement)}, indent=2))
        return
    _show(agreement, to, out)


def _show(agreement: Agreement, to: str, out: Path) -> None:
    from ltd_pipe.export.formats import FORMATS

    click.echo(
        f"{out}: gives the checkpoint's logits on {agreement.images} images: "
        f"largest difference {agreement.difference:.1e}, allowed {agreement.allowed:.1e}"
    )
    click.echo(f"load it: {FORMATS[to].loading.format(out=str(out), name=f'local-dir:{out}')}")
