"""Stage 3: the teacher's low-temperature soft labels of all images → the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ltd_pipe.stages.console import doing, of_option, refuse_given, require_named
from ltd_pipe.stages.labelling import Work, interruptible, publish, show, show_part, turn
from ltd_pipe.stages.model_options import (
    ModelOptions,
    load_teacher,
    model_options,
    open_images,
    refuse_unused,
    stream_of,
)
from ltd_pipe.stages.options import ParamsCommand, note_pipeline, params_options, refuse_overlap

if TYPE_CHECKING:
    from ltd_pipe.images.folder import FolderStream
    from ltd_pipe.images.manifest import ImageFacts
    from ltd_pipe.images.stream import ImageStream
    from ltd_pipe.labels.format import LabellingFacts, StoreFacts, TeacherFacts, ViewFacts
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import LabelParams, Params

__all__ = ["label"]


@click.command(cls=ParamsCommand)
@click.option(
    "--teacher",
    "teachers",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    default=(Path("data/teacher/model.safetensors"),),
    show_default=True,
    help="Checkpoint; several are averaged in probability.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data/train.beton"),
    show_default=True,
    help="A beton, or a folder with one folder of images per class.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("data/labels.zarr"),
    show_default=True,
    help="The store.",
)
@model_options
@click.option("--part", "part_text", metavar="I/N", help="Make only this part of the labels.")
@params_options("label", standalone=True)
@click.option("--force", is_flag=True, help="Replace an existing store.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def label(
    params: Params,
    teachers: tuple[Path, ...],
    data: Path,
    out: Path,
    foreign: ModelOptions,
    part_text: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a teacher's low-temperature soft labels into a store.

    Interrupted, it goes on where it was when run again. No params.yaml is needed.

    Several processes share the work under torchrun. Several machines do with --part, into one
    folder that all of them see; without it the run then makes what is missing, and the store.

    \b
    Examples:
      ltd-pipe label --teacher teacher.safetensors --data train.beton --temperature auto:0.9
      ltd-pipe label --teacher resnet.pt --arch torchvision:resnet18 --data photos/train
      ltd-pipe label --teacher teacher.safetensors --data train.beton --top-k 50
      ltd-pipe label --teacher teacher.safetensors --views 8 --augmentation crop:4,flip
      torchrun --nproc-per-node gpu -m ltd_pipe label --teacher teacher.safetensors
      ltd-pipe label --part 3/8 --teacher teacher.safetensors --out /shared/labels.zarr
    """
    from ltd_pipe.device import choose_device, deterministic
    from ltd_pipe.distributed import Team
    from ltd_pipe.images.manifest import Manifest
    from ltd_pipe.labels.dataset import Replay
    from ltd_pipe.labels.reader import Part
    from ltd_pipe.labels.writer import require_replaceable

    with of_option("--part"):
        part = None if part_text is None else Part.parse(part_text)
    require_named("teachers", "data")
    require_replaceable(out, replace=force)
    if params.label.top_k is not None or len(teachers) > 1:
        refuse_given({"logits"}, "is of one teacher's labels, and not of --top-k")
    refuse_overlap(out, data, *teachers)
    note_pipeline(out)
    refuse_unused(foreign, *teachers)
    team = Team.here()
    device = team.device(choose_device(params.device))
    with interruptible(), turn(out, part, team), deterministic():
        with doing("checking images"):
            images = open_images(data, foreign, device, teacher=teachers[0])
        facts, stream = images.manifest, stream_of(images, device)
        if team.leads and isinstance(facts, Manifest):  # a folder's were told when it was read
            for line in facts.warnings():
                click.echo(f"warning: {data}: {line}", err=True)
        models = [
            load_teacher(path, facts, foreign, stream, quiet=not team.leads) for path in teachers
        ]
        known = [_teacher_facts(path, model) for path, model in zip(teachers, models, strict=True)]
        asked, views = _labelling(facts, stream), _views(params)
        Replay.of(views, "label.augmentation").augmentation.require_fitting(facts.shape, "label")
        store = _store_facts(facts, known, asked, views, params.label)
        work = Work(out, store, params.label, device, part, team)
        finished = work.run(models, stream)
        if not team.leads:
            return
        if part is not None:
            show_part(finished, part, as_json=as_json)
            return
        summary = publish(finished, out, force=force)
    show(summary, as_json=as_json)


def _views(params: Params) -> ViewFacts:
    from ltd_pipe.labels.format import ViewFacts

    section = params.label
    if section.augmentation == "none":
        return ViewFacts()  # no random number is drawn: the seed would tell equal stores apart
    seed = params.seed if section.seed is None else section.seed
    return ViewFacts(count=section.views, seed=seed, augmentation=section.augmentation)


def _teacher_facts(path: Path, model: Classifier) -> TeacherFacts:
    from ltd_pipe.errors import CheckpointError
    from ltd_pipe.labels.format import TeacherFacts
    from ltd_pipe.models.facts import read_facts
    from ltd_pipe.provenance import sha256_file

    try:
        accuracy = read_facts(path).get("clean_accuracy")
    except CheckpointError:
        accuracy = None  # another project's weights say nothing of themselves
    mean, std = (_decimals(constants.tolist()) for constants in (model.mean, model.std))
    return TeacherFacts(
        sha256=sha256_file(path),
        architecture=model.architecture,
        clean_accuracy=accuracy,
        mean=mean,
        std=std,
        columns=() if model.columns is None else tuple(model.columns.tolist()),
    )


def _decimals(values: list[float]) -> tuple[float, ...]:
    # The shortest that are the same float32, such as 0.485.
    import numpy as np

    return tuple(float(str(np.float32(value))) for value in values)


def _labelling(facts: ImageFacts, stream: ImageStream | FolderStream) -> LabellingFacts:
    from ltd_pipe import provenance
    from ltd_pipe.images.folder import CHANNELS, RESIZE
    from ltd_pipe.images.manifest import sampled_pixels_sha256
    from ltd_pipe.labels.format import LabellingFacts

    commit, modified = provenance.code_commit() or (None, None)
    return LabellingFacts(
        image_shape=facts.shape,
        resize=RESIZE,
        channels=CHANNELS[facts.shape[0]],
        pixels_sha256=sampled_pixels_sha256(stream, facts.num_samples),
        commit=commit,
        modified=modified,
    )


def _store_facts(
    facts: ImageFacts,
    teachers: list[TeacherFacts],
    labelling: LabellingFacts,
    views: ViewFacts,
    params: LabelParams,
) -> StoreFacts:
    from ltd_pipe import provenance
    from ltd_pipe.labels.format import DatasetFacts, StoreFacts

    return StoreFacts(
        num_samples=facts.num_samples,
        num_classes=facts.num_classes,
        class_names=facts.class_names,
        dataset=DatasetFacts(name=facts.dataset, split=facts.split, fingerprint=facts.fingerprint),
        teachers=tuple(teachers),
        views=views,
        labelling=labelling,
        software=provenance.software(),
        licence=params.licence,
        citation=params.citation,
    )
