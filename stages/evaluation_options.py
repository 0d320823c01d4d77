"""What `evaluate` and `audit` measure: a model, on test images, beside other models."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe import provenance
from ltd_pipe.errors import require_file
from ltd_pipe.evaluation.results import NORMS, threat_text
from ltd_pipe.publish import exclusive
from ltd_pipe.stages import options
from ltd_pipe.stages.console import tell
from ltd_pipe.stages.model_options import (
    WEIGHTS,
    ModelOptions,
    load_teacher,
    model_options,
    open_images,
    stream_of,
    weights_flag,
    weights_options,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ltd_pipe.distributed import World
    from ltd_pipe.evaluation.bench import TestImages
    from ltd_pipe.evaluation.robustness import Source
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.stream import FolderStream
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.stages.model_options import Command

_PACKAGES = ("timm:", "torchvision:", "robustbench:")


# --- As the user names them.


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
    def parse(
        cls, text: str, weights: Path | None, options: ModelOptions, remedy: str = ""
    ) -> NamedModel:
        """Read `FILE`, `FILE` with --arch, `timm:NAME` with --weights, or `timm:NAME=FILE`."""
        if not text.startswith(_PACKAGES):
            if weights is not None:
                what = f"--weights is for a MODEL such as timm:NAME, not for '{text}'"
                raise click.UsageError(what)
            return cls(text, require_file(Path(text), remedy=remedy), options)
        architecture, given, file = text.partition("=")
        if (given and weights) or options.architecture is not None:
            raise click.UsageError(f"'{text}' already names the network, and perhaps its weights")
        path = Path(file) if file else weights
        if path is None and (given or not architecture.startswith("robustbench:")):
            raise click.UsageError(f"{text} needs --weights FILE: nothing is downloaded")
        named = replace(options, architecture=architecture)
        return cls(text, path and require_file(path), named)

    def load(
        self, images: Beton | FolderStream, device: torch.device, *, strict: bool
    ) -> tuple[Classifier, Path]:
        """Load it for the images, and say where its weights are; see `load_teacher`."""
        from ltd_pipe.models.registry import zoo_weights

        path = self.path
        if path is None:
            name = str(self.options.architecture).partition(":")[2]
            path = zoo_weights(name, images.manifest.num_classes)
        stream = stream_of(images, device, resident=False)
        return load_teacher(path, images.manifest, self.options, stream, strict=strict), path


def measuring_options(*transfer_names: str) -> Callable[[Command], Command]:
    """Add MODEL, parameters of `evaluate`, and the options of images and of other models.

    The command gets `params`, and `named`, a `NamedSubject`; --transfer-from has these names, too.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(
            *,
            model: str,
            weights: Path | None,
            data: Path,
            foreign: ModelOptions,
            transfer_from: tuple[str, ...],
            **given: Any,
        ) -> Any:
            theirs = {name: given.pop(f"transfer_{name}") for name in WEIGHTS}
            options.require_files("data")
            # First what was typed: the model is there by default.
            sources = _parse_sources(transfer_from, theirs)
            named = NamedModel.parse(model, weights, foreign, options.NO_MODEL)
            subject = NamedSubject(named, data, sources)
            return command(named=subject, **given)

        transfer_from = click.option(
            "--transfer-from",
            *transfer_names,
            "transfer_from",
            multiple=True,
            metavar="MODEL",
            help="A model, such as the teacher, whose adversarial images are tried on this one: a "
            "checkpoint, or NAME=FILE. May be given several times; each --transfer-… then counts "
            "for all of them that are not ours, or is given once for each, in their order.",
        )
        data = options.path(
            "--data",
            default="data/test.beton",
            help="Test images: a beton, or a folder with one folder per class.",
        )
        weights = options.file(
            "--weights",
            help="Weights of a MODEL that is timm:NAME, torchvision:NAME or robustbench:NAME.",
        )
        model = click.argument("model", default="data/student/model.safetensors", metavar="MODEL")
        params = options.params_options("evaluate", standalone=True)
        others = transfer_from(weights_options(wrapper, "--transfer-", multiple=True))
        return model(weights(params(data(model_options(others)))))

    return decorate


def _parse_sources(
    texts: tuple[str, ...], given: dict[str, tuple[Any, ...]]
) -> tuple[NamedModel, ...]:
    from ltd_pipe.models.facts import is_own

    named = [NamedModel.parse(text, None, ModelOptions(prefix="--transfer-")) for text in texts]
    foreign = [i for i, one in enumerate(named) if one.path is None or not is_own(one.path)]
    for name, values in given.items():
        flag = weights_flag("--transfer-", name)
        if len(values) > 1 and len(values) != len(foreign):
            raise click.UsageError(
                f"{flag} is given {len(values)} times, for {len(foreign)} of --transfer-from that "
                "are not ours"
            )
        if values and not foreign:
            raise click.UsageError(f"{flag} is for a --transfer-from of another project's weights")
    for number, i in enumerate(foreign):
        own = {name: v[number if len(v) > 1 else 0] for name, v in given.items() if v}
        if named[i].options.architecture is not None and "architecture" in own:
            text = named[i].text
            raise click.UsageError(f"'{text}' names its network: leave --transfer-arch out")
        named[i] = replace(named[i], options=replace(named[i].options, **own).validated())
    return tuple(named)


@dataclass(frozen=True)
class NamedSubject:
    """What is to be measured, on which images, and the models whose attacks are tried on it."""

    model: NamedModel
    data: Path
    sources: tuple[NamedModel, ...]

    def load(self, device: torch.device, *, strict: bool) -> Subject:
        """Open the images, and load the models; `strict` refuses a scale that is not the best."""
        from ltd_pipe.evaluation.robustness import Source

        named = self.model
        if named.path is not None:
            named.options.refuse_unused(named.path)
        images = open_images(self.data, named.options, device, teacher=named.path)
        model, path = named.load(images, device, strict=strict)
        others = [(one.text, *one.load(images, device, strict=True)) for one in self.sources]
        own = named.options.own_facts(named.path)
        return Subject(
            model,
            path,
            own.model_dump(mode="json") if own else {},
            images,
            self.data,
            [
                Source(text, provenance.sha256_file(weights), other)
                for text, other, weights in others
            ],
        )


# --- Ready to be measured.


@contextlib.contextmanager
def measuring(target: Path, option: str = "--out") -> Iterator[World]:
    """Connect the processes, keep other runs out of a result, and compute as measuring has to.

    `option` is what names the result.
    """
    from ltd_pipe.device import deterministic, full_float32
    from ltd_pipe.distributed import PATIENCE, World

    world = World.from_environment()
    lock = exclusive(target, option) if world.is_main else contextlib.nullcontext()
    with world.connected(PATIENCE), lock, deterministic(), full_float32():
        yield world


@dataclass(frozen=True)
class Subject:
    """What is measured, loaded.

    Attributes
    ----------
    model : Classifier
        In evaluation mode, on its device.
    path : Path
        Of its weights.
    checkpoint : dict
        What a checkpoint of ours says of itself; empty for others.
    images : Beton or FolderStream
    data : Path
        Of the images.
    sources : list of Source
    """

    model: Classifier
    path: Path
    checkpoint: dict[str, Any]
    images: Beton | FolderStream
    data: Path
    sources: list[Source]

    def note_other_ball(self, norm: str, eps: float) -> None:
        """Say where it is measured in another ball than it was trained in."""
        from ltd_pipe.models.facts import RunFacts

        ball = RunFacts.read(self.path).threat_model if self.checkpoint else None
        if ball is None or ball["norm"] not in NORMS:
            return
        theirs, ours = threat_text(**ball), threat_text(norm, eps)
        if theirs != ours:
            tell(f"note: {self.path} was trained within {theirs}, and is measured within {ours}")

    def facts(self) -> dict[str, Any]:
        """What decides its answers, as plain values."""
        return {
            "checkpoint_sha256": provenance.sha256_file(self.path),
            "architecture": self.model.architecture,
            "mean": self.model.mean.tolist(),
            "std": self.model.std.tolist(),
        }

    def state(
        self, kind: str, target: Path, decides: Mapping[str, Any], world: World
    ) -> provenance.StateRecord:
        """The finished batches of a measurement whose result is `target`; says whose they are.

        `decides` is all that decides them beside the models, the images and their classes, the
        code and AutoAttack's package.
        """
        software = provenance.software()
        decides = {
            **decides,
            "model": self.model.description,  # with the order of its outputs
            "data_fingerprint": self.images.manifest.fingerprint,  # with each image's class
            "autoattack": software["pyautoattack"],
            "code": provenance.code_digest(kind),
            "sources": [[source.sha256, source.model.description] for source in self.sources],
        }
        rounds = {
            "software": software,
            "hardware": provenance.hardware(),
            "device": self.model.mean.device.type,
        }
        world.broadcast_config(decides | {"software": software}, lambda: None)
        states = target.parent / "state"
        record = provenance.StateRecord(states, kind, target.name, decides, rounds)
        if note := record.note():
            tell(note)
        return record

    def select(self, count: int | None, seed: int) -> TestImages:
        """Choose so many of the test images; see `select_images`."""
        from ltd_pipe.evaluation.bench import select_images

        stream = stream_of(self.images, self.model.mean.device)
        return select_images(stream, self.images.manifest.num_samples, count, seed)

    @property
    def stated_accuracy(self) -> tuple[float, str, int | None] | None:
        """The clean accuracy that the checkpoint states, of which images, and how many if known."""
        known = self.checkpoint
        validation = known.get("validation") or {}
        stated: tuple[tuple[Any, str, int | None], ...] = (
            (known.get("clean_accuracy"), "the test images of its training", known.get("n")),
            (
                validation.get("clean_accuracy"),
                "validation images",
                known.get("validation_images"),
            ),
        )
        return next((each for each in stated if isinstance(each[0], float)), None)

    def doubts(self) -> list[str]:
        """What is doubtful of the images before any is looked at."""
        share = self.images.manifest.wrong_labels
        if share is None:
            return []
        made = f"{share:.1%} of the labels in {self.data} were made wrong by 'ltd-pipe prepare'"
        return [f"{made}: accuracies are of these labels, not of the truth"]

    def training_hashes(self) -> NDArray[np.uint64] | None:
        """Hashes of the images that it was trained on, where they are at hand."""
        from ltd_pipe.images.beton import hashes_of
        from ltd_pipe.images.manifest import images_digest

        trained = (self.checkpoint.get("data") or {}).get("images")
        if trained is None:
            return None
        # Whatever their labels: these may have been corrected since.
        if images_digest(self.images.sample_hash) == trained:
            return self.images.sample_hash
        paths = dict.fromkeys((self.data.with_name("train.beton"), Path("data/train.beton")))
        found = (hashes_of(path, trained) for path in paths)
        return next((hashes for hashes in found if hashes is not None), None)
