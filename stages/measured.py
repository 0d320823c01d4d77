"""The model and the test images of the commands that measure one."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import MissingError
from ltd_pipe.stages.model_options import (
    WEIGHTS_FIELDS,
    WEIGHTS_OPTIONS,
    ModelOptions,
    load_teacher,
    open_images,
    refuse_unused,
    stream_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ltd_pipe.evaluation.bench import TestImages
    from ltd_pipe.evaluation.robustness import Source
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.stream import FolderStream
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import Params
    from ltd_pipe.stages.model_options import Command

__all__ = [
    "Measured",
    "Named",
    "checkpoint_argument",
    "choose_images",
    "load_measured",
    "load_sources",
    "model_argument",
    "name_model",
    "open_test_data",
    "test_data_option",
    "training_hashes",
    "transfer_options",
    "weights_option",
]

model_argument = click.argument(
    "model", default=str(Path("data/student/model.safetensors")), metavar="MODEL"
)
checkpoint_argument = click.argument(
    "checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("data/student/model.safetensors"),
)
weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Weights of a MODEL that is timm:NAME, torchvision:NAME or robustbench:NAME.",
)
test_data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data/test.beton"),
    show_default=True,
    help="Test images: a beton, or a folder with one folder per class.",
)

_PACKAGES = ("timm:", "torchvision:", "robustbench:")


@dataclass(frozen=True)
class Named:
    """A model as the user named it.

    Attributes
    ----------
    text : str
        What was typed.
    path : Path or None
        Its weights; None: where RobustBench's loader leaves them.
    foreign : ModelOptions
        With the architecture of weights that are not ours.
    """

    text: str
    path: Path | None
    foreign: ModelOptions

    @property
    def own(self) -> Path | None:
        """The checkpoint, where it is one of ours, which knows its classes and image shape."""
        from ltd_pipe.models.facts import is_own

        if self.path is None:
            return None
        # What needs an architecture and has none is refused as one of ours, which says so.
        return self.path if self.foreign.architecture is None or is_own(self.path) else None


def name_model(text: str, weights: Path | None, foreign: ModelOptions) -> Named:
    """Read `FILE`, `FILE` with --arch, `timm:NAME` with --weights, or `timm:NAME=FILE`.

    Raises
    ------
    click.UsageError
        When weights are missing, or given twice.
    """
    if not text.startswith(_PACKAGES):
        if weights is not None:
            raise click.UsageError(f"--weights is for a MODEL such as timm:NAME, not for '{text}'")
        return Named(text, _there(Path(text)), foreign)
    architecture, given, file = text.partition("=")
    if (given and weights) or foreign.architecture is not None:
        raise click.UsageError(f"'{text}' already names the network, and perhaps its weights")
    path = Path(file) if given else weights
    if path is None and not architecture.startswith("robustbench:"):
        raise click.UsageError(f"{text} needs --weights FILE: nothing is downloaded")
    return Named(text, path and _there(path), replace(foreign, architecture=architecture))


def _there(path: Path) -> Path:
    # Before the images, whose default was not named by anybody.
    if not path.exists():
        raise MissingError(path, "no such file")
    return path


@dataclass(frozen=True)
class Measured:
    """A model that is ready to be measured.

    Attributes
    ----------
    model : Classifier
        In evaluation mode, on its device.
    path : Path
        Of its weights.
    stated : tuple of float and str, or None
        The clean accuracy that its checkpoint states, and of which images.
    trained_on : str or None
        Fingerprint of its training images, likewise.
    """

    model: Classifier
    path: Path
    stated: tuple[float, str] | None = None
    trained_on: str | None = None

    def facts(self) -> dict[str, Any]:
        """What decides its answers, as plain values."""
        from ltd_pipe.provenance import sha256_file

        return {
            "checkpoint_sha256": sha256_file(self.path),
            "architecture": self.model.architecture,
            "mean": self.model.mean.tolist(),
            "std": self.model.std.tolist(),
        }


def open_test_data(data: Path, named: Named, device: torch.device) -> Beton | FolderStream:
    """Open the test images, which a checkpoint of ours knows the classes and size of."""
    if named.path is not None:
        refuse_unused(named.foreign, named.path)
    return open_images(data, named.foreign, device, teacher=named.own)


def load_measured(
    named: Named, images: Beton | FolderStream, device: torch.device, *, strict: bool
) -> Measured:
    """Load a model for the images.

    Parameters
    ----------
    named : Named
    images : Beton or FolderStream
    device : torch.device
    strict : bool
        Refuse weights that are right more often on another scale.

    Raises
    ------
    LtdPipeError
        When it cannot be loaded, or is of other classes or another shape.
    """
    from ltd_pipe.models.facts import read_facts

    facts = images.manifest
    path = named.path or _zoo_file(named, facts.num_classes)
    stream = stream_of(images, device, resident=False)
    model = load_teacher(path, facts, named.foreign, stream, strict=strict).to(device).eval()
    if named.own is None:
        return Measured(model, path)
    return Measured(
        model, path, _stated_accuracy(path), (read_facts(path).get("data") or {}).get("fingerprint")
    )


def _zoo_file(named: Named, num_classes: int) -> Path:
    from ltd_pipe.models.registry import zoo_weights

    return zoo_weights(str(named.foreign.architecture).partition(":")[2], num_classes)


def _stated_accuracy(path: Path) -> tuple[float, str] | None:
    from ltd_pipe.models.facts import read_facts

    facts = read_facts(path)
    validation = facts.get("validation") or {}
    places = (
        (facts.get("clean_accuracy"), "the test images of its training"),
        (validation.get("clean_accuracy"), "validation images"),
    )
    found = ((share, what) for share, what in places if isinstance(share, float))
    return next(found, None)


def training_hashes(
    measured: Measured, images: Beton | FolderStream, data: Path
) -> NDArray[np.uint64] | None:
    """Hashes of the images that a model was trained on, where they are at hand."""
    from ltd_pipe.images.beton import hashes_of

    if measured.trained_on is None:
        return None
    if images.manifest.fingerprint == measured.trained_on:
        return images.sample_hash
    places = dict.fromkeys((data.with_name("train.beton"), Path("data/train.beton")))
    found = (hashes_of(place, measured.trained_on) for place in places)
    return next((hashes for hashes in found if hashes is not None), None)


def transfer_options(*names: str) -> Callable[[Command], Command]:
    """Add --transfer-from and what its weights do not say; the command gets `sources`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, transfer_from: tuple[str, ...], **given: Any) -> Any:
            said = {name: given.pop(f"transfer_{name}") for name in WEIGHTS_FIELDS}
            return command(*args, sources=_name_sources(transfer_from, said), **given)

        for option in reversed(WEIGHTS_OPTIONS):
            wrapper = option("transfer-", multiple=True)(wrapper)
        return click.option(
            "--transfer-from",
            *names,
            "transfer_from",
            multiple=True,
            metavar="MODEL",
            help="A model, such as the teacher, whose adversarial images are tried on this one: a "
            "checkpoint, or NAME=FILE. May be given several times; each --transfer-… then counts "
            "for all of them that are not ours, or is given once for each, in their order.",
        )(wrapper)

    return decorate


def _name_sources(texts: tuple[str, ...], said: dict[str, tuple[Any, ...]]) -> tuple[Named, ...]:
    from ltd_pipe.models.facts import is_own

    named = [name_model(text, None, ModelOptions(prefix="--transfer-")) for text in texts]
    theirs = [one for one in named if one.path is None or not is_own(one.path)]
    for name, values in said.items():
        flag = f"--transfer-{name.replace('_', '-').replace('architecture', 'arch')}"
        if len(values) > 1 and len(values) != len(theirs):
            raise click.UsageError(
                f"{flag} is given {len(values)} times, for {len(theirs)} of --transfer-from that "
                "are not ours"
            )
        if values and not theirs:
            raise click.UsageError(f"{flag} is for a --transfer-from of another project's weights")
    found, count = [], 0
    for one in named:
        if one in theirs:
            own = {name: v[count if len(v) > 1 else 0] for name, v in said.items() if v}
            count += 1
            if one.foreign.architecture is not None and "architecture" in own:
                raise click.UsageError(f"'{one.text}' names its network: leave --transfer-arch out")
            one = replace(one, foreign=replace(one.foreign, **own).validated())  # noqa: PLW2901
        found.append(one)
    return tuple(found)


def load_sources(
    sources: Sequence[Named], images: Beton | FolderStream, device: torch.device
) -> list[Source]:
    """Load the models whose adversarial images are tried on another."""
    from ltd_pipe.evaluation.robustness import Source
    from ltd_pipe.provenance import sha256_file

    loaded = [load_measured(one, images, device, strict=True) for one in sources]
    return [
        Source(one.text, sha256_file(found.path), found.model)
        for one, found in zip(sources, loaded, strict=True)
    ]


def choose_images(
    images: Beton | FolderStream, params: Params, device: torch.device, at_most: int | None = None
) -> TestImages:
    """Choose `evaluate.images` of the test images, or fewer."""
    from ltd_pipe.evaluation.bench import select_images

    count, total = params.evaluate.images, images.manifest.num_samples
    if at_most is not None:
        count = min(at_most, total if count is None else count)
    return select_images(stream_of(images, device), total, count, params.seed)
