"""Options of the commands that measure a model: the model, the test images, and other models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import require_file
from ltd_pipe.stages.model_options import (
    WEIGHTS_FIELDS,
    WEIGHTS_OPTIONS,
    ModelOptions,
    load_teacher,
    open_images,
    refuse_unused,
    stream_of,
)
from ltd_pipe.stages.options import FILE, PATH

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ltd_pipe.evaluation.bench import TestImages
    from ltd_pipe.evaluation.robustness import Source
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.stream import FolderStream
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.stages.model_options import Command

_CHECKPOINT = Path("data/student/model.safetensors")
model_argument = click.argument("model", default=str(_CHECKPOINT), metavar="MODEL")
checkpoint_argument = click.argument("checkpoint", type=FILE, default=_CHECKPOINT)
weights_option = click.option(
    "--weights",
    type=FILE,
    help="Weights of a MODEL that is timm:NAME, torchvision:NAME or robustbench:NAME.",
)
test_data_option = click.option(
    "--data",
    type=PATH,
    default="data/test.beton",
    help="Test images: a beton, or a folder with one folder per class.",
)

_PACKAGES = ("timm:", "torchvision:", "robustbench:")


# --- The models, as the user names them.


@dataclass(frozen=True)
class NamedModel:
    """A model as the user named it.

    Attributes
    ----------
    text : str
        What was typed.
    path : Path or None
        Its weights; None: where RobustBench's loader leaves them.
    options : ModelOptions
        With the architecture of weights that are not ours.
    """

    text: str
    path: Path | None
    options: ModelOptions

    @classmethod
    def parse(cls, text: str, weights: Path | None, options: ModelOptions) -> NamedModel:
        """Read `FILE`, `FILE` with --arch, `timm:NAME` with --weights, or `timm:NAME=FILE`."""
        if not text.startswith(_PACKAGES):
            if weights is not None:
                what = f"--weights is for a MODEL such as timm:NAME, not for '{text}'"
                raise click.UsageError(what)
            return cls(text, require_file(Path(text)), options)
        architecture, given, file = text.partition("=")
        if (given and weights) or options.architecture is not None:
            raise click.UsageError(f"'{text}' already names the network, and perhaps its weights")
        path = Path(file) if given else weights
        if path is None and not architecture.startswith("robustbench:"):
            raise click.UsageError(f"{text} needs --weights FILE: nothing is downloaded")
        named = replace(options, architecture=architecture)
        return cls(text, path and require_file(path), named)

    @property
    def own(self) -> Path | None:
        """The checkpoint, where it is one of ours, which knows its classes and image shape."""
        from ltd_pipe.models.facts import is_own

        if self.path is None:
            return None
        # What needs an architecture and has none is refused as one of ours, which says so.
        return self.path if self.options.architecture is None or is_own(self.path) else None

    def load(
        self, images: Beton | FolderStream, device: torch.device, *, strict: bool
    ) -> LoadedModel:
        """Load it for the images; `strict` as for `model_options.load_teacher`."""
        from ltd_pipe.models.facts import read_facts
        from ltd_pipe.models.registry import zoo_weights

        manifest, path = images.manifest, self.path
        if path is None:
            name = str(self.options.architecture).partition(":")[2]
            path = zoo_weights(name, manifest.num_classes)
        stream = stream_of(images, device, resident=False)
        model = load_teacher(path, manifest, self.options, stream, strict=strict).to(device).eval()
        return LoadedModel(model, path, {} if self.own is None else read_facts(path))


def transfer_options(*names: str) -> Callable[[Command], Command]:
    """Add --transfer-from and what its weights do not say; the command gets `sources`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, transfer_from: tuple[str, ...], **given: Any) -> Any:
            options = {name: given.pop(f"transfer_{name}") for name in WEIGHTS_FIELDS}
            return command(*args, sources=_parse_sources(transfer_from, options), **given)

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


def _parse_sources(
    texts: tuple[str, ...], options: dict[str, tuple[Any, ...]]
) -> tuple[NamedModel, ...]:
    from ltd_pipe.models.facts import is_own

    named = [NamedModel.parse(text, None, ModelOptions(prefix="--transfer-")) for text in texts]
    foreign = [i for i, one in enumerate(named) if one.path is None or not is_own(one.path)]
    for name, values in options.items():
        flag = f"--transfer-{name.replace('_', '-').replace('architecture', 'arch')}"
        if len(values) > 1 and len(values) != len(foreign):
            raise click.UsageError(
                f"{flag} is given {len(values)} times, for {len(foreign)} of --transfer-from that "
                "are not ours"
            )
        if values and not foreign:
            raise click.UsageError(f"{flag} is for a --transfer-from of another project's weights")
    for number, i in enumerate(foreign):
        own = {name: v[number if len(v) > 1 else 0] for name, v in options.items() if v}
        if named[i].options.architecture is not None and "architecture" in own:
            text = named[i].text
            raise click.UsageError(f"'{text}' names its network: leave --transfer-arch out")
        named[i] = replace(named[i], options=replace(named[i].options, **own).validated())
    return tuple(named)


# --- The models and images, ready to be measured.


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be measured.

    Attributes
    ----------
    model : Classifier
        In evaluation mode, on its device.
    path : Path
        Of its weights.
    checkpoint : dict
        What a checkpoint of ours says of itself; empty for others.
    """

    model: Classifier
    path: Path
    checkpoint: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """What decides its answers, as plain values."""
        from ltd_pipe.provenance import sha256_file

        return {
            "checkpoint_sha256": sha256_file(self.path),
            "architecture": self.model.architecture,
            "mean": self.model.mean.tolist(),
            "std": self.model.std.tolist(),
        }

    @property
    def stated_accuracy(self) -> tuple[float, str] | None:
        """The clean accuracy that the checkpoint states, and of which images."""
        validation = self.checkpoint.get("validation") or {}
        stated = (
            (self.checkpoint.get("clean_accuracy"), "the test images of its training"),
            (validation.get("clean_accuracy"), "validation images"),
        )
        return next(((share, of) for share, of in stated if isinstance(share, float)), None)

    def training_hashes(
        self, images: Beton | FolderStream, data: Path
    ) -> NDArray[np.uint64] | None:
        """Hashes of the images that it was trained on, where they are at hand."""
        from ltd_pipe.images.beton import hashes_of

        fingerprint = (self.checkpoint.get("data") or {}).get("fingerprint")
        if fingerprint is None:
            return None
        if images.manifest.fingerprint == fingerprint:
            return images.sample_hash
        paths = dict.fromkeys((data.with_name("train.beton"), Path("data/train.beton")))
        found = (hashes_of(path, fingerprint) for path in paths)
        return next((hashes for hashes in found if hashes is not None), None)


def load(
    named: NamedModel,
    sources: tuple[NamedModel, ...],
    data: Path,
    device: torch.device,
    *,
    strict: bool,
) -> tuple[Beton | FolderStream, LoadedModel, list[Source]]:
    """Open the test images, and load the model and those whose attack is tried on it.

    Parameters
    ----------
    named : NamedModel
    sources : tuple of NamedModel
    data : Path
        The test images, which a checkpoint of ours knows the classes and size of.
    device : torch.device
    strict : bool
        Refuse weights that are right more often on another scale.
    """
    from ltd_pipe.evaluation.robustness import Source
    from ltd_pipe.provenance import sha256_file

    if named.path is not None:
        refuse_unused(named.options, named.path)
    images = open_images(data, named.options, device, teacher=named.own)
    loaded = named.load(images, device, strict=strict)
    others = [(one.text, one.load(images, device, strict=True)) for one in sources]
    found = [Source(text, sha256_file(other.path), other.model) for text, other in others]
    return images, loaded, found


def select(
    images: Beton | FolderStream, device: torch.device, count: int | None, seed: int
) -> TestImages:
    """Choose so many of the test images; see `select_images`."""
    from ltd_pipe.evaluation.bench import select_images

    return select_images(stream_of(images, device), images.manifest.num_samples, count, seed)
