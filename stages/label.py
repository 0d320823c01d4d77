"""Stage 3: the teacher's low-temperature soft labels of all images → the store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ltd_pipe.publish import exclusive
from ltd_pipe.stages import options
from ltd_pipe.stages.console import counter, doing, json_option, say, stoppable, tell
from ltd_pipe.stages.model_options import (
    ModelOptions,
    load_teacher,
    model_options,
    open_images,
    stream_of,
)

if TYPE_CHECKING:
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.labels.writer import Part, StoreWriter
    from ltd_pipe.params import Params


@click.command(cls=options.ParamsCommand)
@options.file(
    "--teacher",
    "teachers",
    multiple=True,
    default=(Path("data/teacher/model.safetensors"),),
    help="Checkpoint; several are averaged in probability.",
)
@options.path(
    "--data",
    default="data/train.beton",
    help="A beton, or a folder with one folder of images per class.",
)
@options.path("--out", default="data/labels.zarr", help="The store.")
@model_options
@click.option("--part", "part_text", metavar="I/N", help="Make only this part of the labels.")
@options.params_options("label", standalone=True)
@options.flag("--force", help="Replace an existing store.")
@json_option("Print the summary as JSON.")
def label(
    params: Params,
    teachers: tuple[Path, ...],
    data: Path,
    out: Path,
    foreign: ModelOptions,
    part_text: str | None,
    force: bool,
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
    from ltd_pipe.device import choose_device, deterministic, full_float32
    from ltd_pipe.distributed import World
    from ltd_pipe.evaluation.statistics import require_order
    from ltd_pipe.images.manifest import Manifest
    from ltd_pipe.labels.files import require_replaceable
    from ltd_pipe.labels.labelling import LabellingRun, held_out_rows, store_facts
    from ltd_pipe.labels.on_device import Replay
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.labels.writer import Part
    from ltd_pipe.params.sections import CALIBRATED

    with options.usage_errors():
        part = None if part_text is None else Part.parse(part_text)
    options.require_files("teachers", "data")
    require_replaceable(out, replace=force)
    if params.label.top_k is not None or len(teachers) > 1:
        options.refuse_options({"logits"}, "is of one teacher's labels, and not of --top-k")
    options.refuse_overlap(out, data, *teachers)
    options.note_pipeline(out)
    foreign.refuse_unused(*teachers)
    world = World.from_environment()
    device = world.device(choose_device(params.device))
    lock = _exclusive(out, part) if world.is_main else contextlib.nullcontext()
    with stoppable("labelled"), lock, deterministic(), full_float32():
        with doing("checking images"):
            images = open_images(data, foreign, device, teacher=teachers[0])
        facts, stream = images.manifest, stream_of(images, device)
        if isinstance(facts, Manifest):  # a folder's were told when it was read
            for line in facts.warnings():
                tell(f"warning: {data}: {line}")
        held_out = None
        if params.label.temperature == CALIBRATED:
            held_out = held_out_rows(images, data, teachers)
        models = [load_teacher(path, facts, foreign, stream) for path in teachers]
        store = store_facts(facts, stream, teachers, models, params.label, params.seed)
        replay = Replay.of(store.views, "label.augmentation")
        replay.augmentation.require_fitting(facts.shape, "label")
        with doing("measuring precision and temperature"):
            run = LabellingRun(out, store, params.label, models, stream, world, part, held_out)
        if run.note:
            tell(run.note)
        with counter("label", len(run.writer.rows_left)) as progress:
            run.label(progress)
        if not world.is_main:
            return
        if part is not None:
            _show_part(run.writer, part)
            return
        for number, (truth, answers) in enumerate(run.writer.answered(), 1):
            require_order(truth, answers, facts.class_names, f"teacher {number} of {out}")
        identity = run.publish(replace=force)
    _show(SoftLabels.open(out), identity)


@contextlib.contextmanager
def _exclusive(out: Path, part: Part | None) -> Iterator[None]:
    """Keep other runs out: of the whole store, or of this part of it."""
    if part is None:
        with exclusive(out):
            yield
        return
    name = f"{out.name}.part-{part}".replace("/", "-of-")
    with exclusive(out.with_name(name)), exclusive(out, shared=True):
        yield


def _show_part(writer: StoreWriter, part: Part) -> None:
    """Say that a part is there, and what is missing of the others."""
    absent = len(writer.absent_chunks())
    rest = (
        f"{absent:,} chunks of other parts are missing"
        if absent
        else "nothing is missing: run it without --part to make the store"
    )
    facts = {"part": str(part), "missing_chunks": absent}
    say(facts, [f"{writer.state}: part {part} is whole; {rest}"], indent=None)


def _show(store: SoftLabels, identity: str) -> None:
    summary, temperature = store.summary(), float(store.attributes.temperature)
    sparse, calibration = store.attributes.top_k, store.attributes.calibration
    distance = sparse.total_variation if sparse else None
    content = {
        "store": str(store.path),
        "identity": identity,
        "num_samples": store.num_samples,
        "num_views": store.num_views,
        "num_classes": store.num_classes,
        "temperature": temperature,
        "calibration": calibration.model_dump() if calibration else None,
        "top_k": store.top_k,
        "total_variation": distance.model_dump() if distance else None,
        **vars(summary),
    }
    views = f" × {store.num_views} views" if store.num_views > 1 else ""
    lines = [
        (
            f"{store.path}: {store.num_samples:,}{views} soft labels over {store.num_classes:,} "
            f"classes, identity {identity[:12]}"
        ),
        f"  temperature           {temperature:.6g}",
        *([f"  calibrated            {calibration}"] if calibration else []),
        f"  mean top probability  {summary.mean_top_probability:.4f}",
        f"  mean entropy          {summary.mean_entropy:.4f} nats",
    ]
    if distance is not None:
        lines.append(
            f"  top {store.top_k} of {store.num_classes:,}: total variation from the dense labels "
            f"{distance.mean:.2g} on average, {distance.worst:.2g} at worst"
        )
    if summary.disagreement is not None:
        lines.append(f"  teacher contradicts the ground truth for {summary.disagreement:.2%}")
    say(content, lines, (f"  warning: {warning}" for warning in summary.warnings))
