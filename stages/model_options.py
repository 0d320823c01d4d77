"""Options of models and images that do not describe themselves, and how commands open both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import CheckpointError
from ltd_pipe.images import MAX_SIDE
from ltd_pipe.stages import options
from ltd_pipe.stages.console import counter, tell

if TYPE_CHECKING:
    import torch

    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.manifest import ImageFacts
    from ltd_pipe.images.stream import FolderStream, Stream
    from ltd_pipe.labels.format import TeacherFacts
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.models.facts import CheckpointFacts
    from ltd_pipe.models.foreign import ClassOrder

    Command = Callable[..., Any]


def _channels(text: str) -> tuple[float, ...]:
    from ltd_pipe.params.fit import meant_in_unit

    found = options.numbers("0.5,0.5,0.5")(text)
    if meant := meant_in_unit(found):
        raise click.BadParameter(f"'{text}' is of pixels in 0…255: perhaps {meant} is meant")
    return found


# What other projects' weights do not say, as fields of ModelOptions and as options.
WEIGHTS: dict[str, dict[str, Any]] = {
    "architecture": {
        "help": "Network of a .pt or .pth file: our name, timm:NAME, torchvision:NAME, or "
        "FILE.py:FUNCTION of your own."
    },
    "mean": {
        "type": _channels,
        "metavar": "NUMBERS",
        "help": "Its input normalisation, as 0.5,0.5,0.5.",
    },
    "std": {"type": _channels, "metavar": "NUMBERS", "help": "Likewise."},
    "classes": {
        "type": options.FILE,
        "help": "Its class names in the order of its outputs: one per line, or JSON.",
    },
    "class_order": {
        "type": click.Choice(["lexical", "natural"]),
        "help": "Or how they are sorted: lexical (1, 10, 2) as torchvision's ImageFolder, natural "
        "(1, 2, 10) as timm's.  [default: as the data's]",
    },
}


def weights_flag(prefix: str, name: str) -> str:
    """The option of a field of `WEIGHTS`; of a model beside the main one it has a prefix."""
    return f"{prefix}{name.replace('_', '-').replace('architecture', 'arch')}"


def weights_options(command: Command, prefix: str = "--", **more: Any) -> Command:
    """Add the options of `WEIGHTS`."""
    for name, settings in reversed(WEIGHTS.items()):
        python = f"{prefix}{name}".lstrip("-").replace("-", "_")
        flag = weights_flag(prefix, name)
        command = click.option(flag, python, **settings, **more)(command)
    return command


def model_options(command: Command) -> Command:
    """Add --arch and what else weights and folders do not say; the command gets a `foreign`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **given: Any) -> Any:
        named = {name: given.pop(name) for name in (*WEIGHTS, "image_size", "skip_bad")}
        return command(*args, foreign=ModelOptions(**named).validated(), **given)

    skip = options.flag("--skip-bad", help="Folder: leave out unreadable images.")
    size = click.option(
        "--image-size", type=click.IntRange(4, MAX_SIDE), help="Folder: resize and crop to this."
    )
    return weights_options(size(skip(wrapper)))


@dataclass(frozen=True)
class ModelOptions:
    """What a checkpoint of another project, or an image folder, does not say of itself."""

    # None: the checkpoint is one of ours.
    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    # The file of the network's class names in its order, or how they are sorted.
    classes: Path | None = None
    class_order: ClassOrder | None = None
    image_size: int | None = None
    skip_bad: bool = False
    # What the options of these weights begin with on the command line.
    prefix: str = "--"
    # As a store says it of its teacher: for each class the network's output; empty: in order.
    columns: tuple[int, ...] | None = None

    def completed_by(self, teacher: TeacherFacts) -> ModelOptions:
        """The same, and what a store says of its teacher where the user does not."""
        told: dict[str, Any] = {"architecture": self.architecture or teacher.architecture}
        if self.mean is None and teacher.mean is not None:
            told |= {"mean": teacher.mean, "std": teacher.std}
        if teacher.mean is not None and self.classes is None and self.class_order is None:
            told |= {"columns": teacher.columns}
        return replace(self, **told)

    def validated(self) -> ModelOptions:
        """The same, where each option has what it needs beside it; a file named may be run."""
        if (self.mean is None) != (self.std is None):
            flags = f"{self.prefix}mean and {self.prefix}std"
            raise click.UsageError(f"{flags} are given together, or neither")
        if self.classes is not None and self.class_order is not None:
            flags = f"{self.prefix}classes says the order: leave {self.prefix}class-order out"
            raise click.UsageError(flags)
        if self.architecture is None:
            return self
        from ltd_pipe.models.registry import allow_file

        return replace(self, architecture=allow_file(self.architecture))

    def own_facts(self, path: Path | None) -> CheckpointFacts | None:
        """What a checkpoint of ours says of itself; None of other weights, which these options do.

        Weights that need an architecture, and have none here, are refused as no checkpoint of ours.
        """
        from ltd_pipe.models.facts import CheckpointFacts, is_own

        if path is None or (self.architecture is not None and not is_own(path)):
            return None
        return CheckpointFacts.read(path)

    def refuse_unused(self, *paths: Path) -> None:
        """Refuse options of another project's weights where all checkpoints are ours.

        Raises
        ------
        CheckpointError
        """
        given = [name for name in WEIGHTS if getattr(self, name) is not None]
        if not given or not paths:
            return
        from ltd_pipe.models.facts import CheckpointFacts, is_own
        from ltd_pipe.models.registry import names_file

        own = [CheckpointFacts.read(path).architecture for path in paths if is_own(path)]
        # The one thing that a checkpoint of ours cannot bring is code.
        if self.architecture and names_file(self.architecture) and any(map(names_file, own)):
            given.remove("architecture")
        if given and len(own) == len(paths):
            raise CheckpointError(
                paths[0],
                "is a checkpoint of ltd-pipe, which says this itself",
                found=", ".join(weights_flag(self.prefix, name) for name in given),
                remedy="Leave it out.",
            )


def open_images(
    data: Path,
    foreign: ModelOptions,
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
    foreign : ModelOptions
    device : torch.device
        Where a folder's batches go.
    teacher : Path, optional
        A checkpoint; one of ours knows the classes and size of a folder's images.
    class_names : sequence of str, optional
        Of a folder, where they are known from elsewhere.
    decoded : bool
        False: only hashes will be looked at, so that a folder's images may differ in size.
    """
    from ltd_pipe.images.beton import open_beton

    if not data.is_dir():
        for flag, given in (("image-size", foreign.image_size), ("skip-bad", foreign.skip_bad)):
            if given:
                raise click.UsageError(f"--{flag} is for a folder of images, and {data} is none")
        return open_beton(data)
    # A folder's stream loads torch, and a beton's hashes need none.
    from ltd_pipe.images.sources import FolderSource
    from ltd_pipe.images.stream import FolderStream

    channels, size = 3, foreign.image_size
    if facts := foreign.own_facts(teacher):
        channels, height, width = facts.shape
        # Images that are not square were all of one size, and stay as they are.
        size = size or (height if height == width else None)
        class_names = class_names or facts.class_names
    source = FolderSource(data, class_names)
    with counter("look at the images", len(source)) as progress:
        stream = FolderStream(
            source,
            image_size=size if decoded else size or 1,
            channels=channels,
            device=device,
            split=source.split,
            skip_bad=foreign.skip_bad,
            progress=progress,
        )
    for line in stream.notes:
        tell(line)
    return stream


def stream_of(
    images: Beton | FolderStream, device: torch.device, *, resident: bool | None = None
) -> Stream:
    """Batches of opened images; see `ImageStream` for `resident`."""
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.stream import ImageStream

    return ImageStream(images, device, resident=resident) if isinstance(images, Beton) else images


def load_teacher(
    path: Path,
    facts: ImageFacts,
    foreign: ModelOptions,
    stream: Stream,
    *,
    strict: bool = True,
) -> Classifier:
    """A checkpoint's network, in evaluation mode, on the stream's device, for its images.

    Another project's weights are asked about some of the images first, see
    `ltd_pipe.evaluation.checks.settle`.

    Parameters
    ----------
    path : Path
    facts : ImageFacts
        Of the images.
    foreign : ModelOptions
    stream : ImageStream or FolderStream
        Of the images.
    strict : bool
        Refuse weights that are right more often on another scale.
    """
    from ltd_pipe.models.checkpoint import load_classifier
    from ltd_pipe.models.foreign import columns_of, load_foreign, natural_order

    if foreign.own_facts(path) is not None:
        model = load_classifier(path)
        model.require_data(facts.class_names, facts.shape, f"the images for {path}")
        return model.to(stream.device)
    names = facts.class_names
    columns: Sequence[int] | None = foreign.columns
    if columns is None:
        columns = columns_of(names, foreign.classes, foreign.class_order)
    model = load_foreign(
        path,
        str(foreign.architecture),
        names,
        facts.shape,
        foreign.mean,
        foreign.std,
        columns=columns or None,
    ).to(stream.device)
    said = _settle(model, path, facts, foreign, stream, strict=strict)
    tell(f"{path}: {said}")
    lexical, natural = list(names), natural_order(names)
    asked = foreign.classes, foreign.class_order, foreign.columns
    if asked == (None, None, None) and lexical == sorted(lexical) and natural != lexical:
        at = next(at for at, name in enumerate(natural) if name != lexical[at])
        tell(
            f"warning: {path}: class {at} is taken to be '{lexical[at]}'; in natural order, as "
            f"timm has it, it is '{natural[at]}'. {foreign.prefix}class-order says which."
        )
    return model


def _settle(
    model: Classifier,
    path: Path,
    facts: ImageFacts,
    foreign: ModelOptions,
    stream: Stream,
    *,
    strict: bool,
) -> str:
    from ltd_pipe.evaluation.checks import draw_probes, settle
    from ltd_pipe.models.registry import declared_normalisation

    # Constants that the file holds win, as do those that are given.
    silent = foreign.mean is None and not model.normalises
    declared = declared_normalisation(model.architecture, facts.shape[0]) if silent else None
    by = model.architecture.partition(":")[0]
    probes = draw_probes(stream, facts.num_samples, facts.num_classes)
    if probes is None:
        unchecked = "neither scale nor order of classes is checked: no image has a class"
        if declared is None:
            return unchecked
        model.normalise(*declared)
        return f"mean and std as {by} declares; {unchecked}"
    return settle(
        model, probes, path, declared=declared, by=by, options=foreign.prefix, strict=strict
    )
