"""Stage 1: images → train.beton and test.beton, each with its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.outputs import refuse_existing
from stages.parameters import PARAMS_FILE, PIPELINE_FILE, params_options
from stages.progress import counter
from stages.usage import refuse_given

if TYPE_CHECKING:
    from typing import Literal

    from pipeline.images.manifest import Manifest
    from pipeline.images.sources import Source
    from pipeline.params import Params

    Split = Literal["train", "test"]

__all__ = ["prepare"]


@click.command()
@params_options("prepare")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data"),
    show_default=True,
    help="Folder of train.beton and test.beton.",
)
@click.option("--force", is_flag=True, help="Replace existing files.")
def prepare(params: Params, out: Path, force: bool) -> None:
    """Turn images into train.beton and test.beton.

    \b
    Example: your own photographs, in folders photos/train/CLASS and photos/test/CLASS:
      ltd-pipe prepare --dataset folder --path photos --image-size 32
    """
    from pipeline.images.sources import open_source
    from pipeline.params import require_named
    from pipeline.publish import exclusive

    if PARAMS_FILE.exists() and PIPELINE_FILE.exists():
        require_named(PARAMS_FILE, PIPELINE_FILE)
    section = params.prepare
    if section.dataset == "digits":
        refuse_given({"path"}, "has no meaning for digits, which come with scikit-learn")
    if section.dataset in ("digits", "folder"):
        refuse_given({"download"}, "is of CIFAR")
    if section.encoding == "raw":
        refuse_given({"jpeg_quality"}, "is of --encoding jpeg")
    targets: dict[Split, Path] = {"train": out / "train.beton", "test": out / "test.beton"}
    refuse_existing(*targets.values(), force=force)
    with exclusive(out / "betons"):
        # Both before the first is written: one that is missing leaves nothing behind.
        sources = {split: open_source(params.prepare, split) for split in targets}
        for split, target in targets.items():
            _summarise(target, *_write(params, split, sources[split], target))


def _write(
    params: Params, split: Split, source: Source, target: Path
) -> tuple[Manifest, list[str]]:
    from pipeline.images.beton import write_beton

    with counter(f"prepare {split}", 2 * len(source)) as progress:
        return write_beton(source, target, params.prepare, split, progress)


def _summarise(target: Path, manifest: Manifest, skipped: list[str]) -> None:
    channels, height, width = manifest.shape
    click.echo(
        f"{target}: {manifest.num_samples:,} images of {channels}×{height}×{width}, "
        f"{manifest.num_classes} classes, fingerprint {manifest.fingerprint[:12]}"
    )
    for name in skipped:
        click.echo(f"skipped: {name}", err=True)
