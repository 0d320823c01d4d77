"""Stage 1: images → train.beton and test.beton, each with its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ltd_pipe.stages import options
from ltd_pipe.stages.console import counter, tell
from ltd_pipe.stages.options import PARAMS_FILE, PIPELINE_FILE

if TYPE_CHECKING:
    from ltd_pipe.images.sources import Split
    from ltd_pipe.params import Params


@click.command(cls=options.ParamsCommand)
@options.params_options("prepare")
@options.folder("--out", default="data", help="Folder of train.beton and test.beton.")
@options.flag("--force", help="Replace existing files.")
def prepare(params: Params, out: Path, force: bool) -> None:
    """Turn images into train.beton and test.beton: both are replaced, or none.

    A folder holds train/CLASS/ and test/CLASS/ (or val/, validation/), with images at any depth,
    in files of the kinds that torchvision lists and Pillow reads; links are followed. Grey is the
    luminance; transparency is laid on white; of 16 bits the upper 8 are kept, unless all values
    are below 256; of several frames the first. It ends with what was left out, by reason, and
    warns of images of one colour, of copies, and of test images that are in the training set.

    \b
    Example: your own photographs, in folders photos/train/CLASS and photos/test/CLASS:
      ltd-pipe prepare --dataset folder --path photos --image-size 32
    """
    from ltd_pipe.images.beton import write_betons
    from ltd_pipe.images.sources import open_source
    from ltd_pipe.params import require_named
    from ltd_pipe.publish import exclusive

    if PARAMS_FILE.exists() and PIPELINE_FILE.exists():
        require_named(PARAMS_FILE, PIPELINE_FILE)
    section = params.prepare
    if section.dataset == "digits":
        options.refuse_options({"path"}, "has no meaning for digits, which come with scikit-learn")
    if section.dataset in ("digits", "folder"):
        options.refuse_options({"download"}, "is of CIFAR")
    if section.encoding == "raw":
        options.refuse_options({"jpeg_quality"}, "is of --encoding jpeg")
    targets: dict[Split, Path] = {"train": out / "train.beton", "test": out / "test.beton"}
    options.refuse_existing(*targets.values(), force=force, kind=options.BETON)
    options.note_pipeline(*targets.values())
    with exclusive(out / "betons"):
        # Both before the first is written: one that is missing leaves nothing behind.
        sources = {split: open_source(params.prepare, split) for split in targets}
        with counter("prepare", 2 * sum(map(len, sources.values()))) as progress:
            written = write_betons(sources, targets, params.prepare, progress)
    for split, (manifest, skipped) in written.items():
        channels, height, width = manifest.shape
        click.echo(
            f"{targets[split]}: {manifest.num_samples:,} images of {channels}×{height}×{width}, "
            f"{manifest.num_classes} classes, fingerprint {manifest.fingerprint[:12]}"
        )
        warnings = [f"warning: {targets[split]}: {line}" for line in manifest.warnings()]
        skips = [f"skipped: {line}" for line in skipped]
        if section.wrong_labels and split == "train":
            warnings.insert(0, f"warning: {targets[split]}: {manifest.dataset}")
        for line in (*skips, *sources[split].notes, *warnings):
            tell(line)
