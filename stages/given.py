"""Images and teachers that a command is given: ours, or another project's."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from stages.progress import counter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from pipeline.images.beton import Beton
    from pipeline.images.folder import FolderStream
    from pipeline.images.manifest import ImageFacts
    from pipeline.images.stream import ImageStream
    from pipeline.models.classifier import Classifier

    Command = Callable[..., Any]

__all__ = ["Foreign", "foreign_options", "load_teacher", "open_images", "stream_of"]


@dataclass(frozen=True)
class Foreign:
    """What a checkpoint or an image folder does not say of itself.

    Attributes
    ----------
    architecture : str or None
        None: the checkpoint is one of ours.
    mean, std : tuple of float or None
    image_size : int or None
    skip_bad : bool
    """

    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    skip_bad: bool = False


class _Numbers(click.ParamType[tuple[float, ...]]):
    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list such as 0.5,0.5,0.5", param, ctx)


_OPTIONS = (
    click.option(
        "--arch",
        "architecture",
        help="Network of a .pt or .pth file: our name, timm:NAME or torchvision:NAME.",
    ),
    click.option("--mean", type=_Numbers(), help="Its input normalisation, as 0.5,0.5,0.5."),
    click.option("--std", type=_Numbers(), help="Likewise."),
    click.option("--image-size", type=click.IntRange(4), help="Folder: resize and crop to this."),
    click.option("--skip-bad", is_flag=True, help="Folder: leave out unreadable images."),
)


def foreign_options(command: Command) -> Command:
    """Add --arch, --mean, --std, --image-size and --skip-bad; the command gets a `foreign`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **given: Any) -> Any:
        named = {name: given.pop(name) for name in Foreign.__dataclass_fields__}
        return command(*args, foreign=Foreign(**named), **given)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def open_images(
    data: Path,
    foreign: Foreign,
    device: torch.device,
    *,
    teacher: Path | None = None,
    class_names: Sequence[str] | None = None,
    decoded: bool = True,
) -> Beton | FolderStream:
    """Open a beton, or a folder with one folder of images per class.

    Parameters
    ----------
    data : Path
    foreign : Foreign
    device : torch.device
        Where a folder's batches go.
    teacher : Path, optional
        A checkpoint; one of ours knows the classes and size of a folder's images.
    class_names : sequence of str, optional
        Of a folder, where they are known from elsewhere.
    decoded : bool
        False: only hashes will be looked at, so that a folder's images may differ in size.
    """
    from pipeline.images.beton import open_beton
    from pipeline.models.checkpoint import read_facts

    if not data.is_dir():
        return open_beton(data)
    channels, size = 3, foreign.image_size
    if teacher is not None and foreign.architecture is None:
        own = read_facts(teacher)
        channels, size = own["shape"][0], size or own["shape"][1]
        class_names = class_names or own["class_names"]
    if not decoded:
        size = size or 1
    return _open_folder(data, class_names, channels, size, device, skip_bad=foreign.skip_bad)


def _open_folder(
    data: Path,
    class_names: Sequence[str] | None,
    channels: Any,
    image_size: int | None,
    device: torch.device,
    *,
    skip_bad: bool,
) -> FolderStream:
    from pipeline.images.folder import open_folder
    from pipeline.images.sources import FolderSource

    source = FolderSource(data, class_names)
    with counter("look at the images", len(source)) as progress:
        stream, skipped = open_folder(
            source,
            image_size=image_size,
            channels=channels,
            device=device,
            split=source.split,
            skip_bad=skip_bad,
            progress=progress,
        )
    for line in skipped:
        click.echo(f"skipped: {line}", err=True)
    return stream


def stream_of(
    images: Beton | FolderStream, device: torch.device, *, resident: bool | None = None
) -> ImageStream | FolderStream:
    """Batches of opened images; see `ImageStream` for `resident`."""
    from pipeline.images.beton import Beton
    from pipeline.images.stream import ImageStream

    return ImageStream(images, device, resident=resident) if isinstance(images, Beton) else images


def load_teacher(path: Path, facts: ImageFacts, foreign: Foreign) -> Classifier:
    """A checkpoint's network, in evaluation mode, that takes these images."""
    from pipeline.models.checkpoint import load_classifier, open_classifier

    if foreign.architecture is not None:
        return open_classifier(
            path,
            architecture=foreign.architecture,
            class_names=facts.class_names,
            shape=facts.shape,
            mean=foreign.mean,
            std=foreign.std,
        )
    model = load_classifier(path)
    model.require_data(facts.class_names, facts.shape, f"the images for {path}")
    return model
