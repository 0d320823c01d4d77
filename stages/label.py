"""Stage 3: the teacher's low-temperature soft labels of all images → the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages.given import Foreign, foreign_options, load_teacher, open_images, stream_of
from stages.outputs import refuse_overlap
from stages.parameters import params_options
from stages.progress import counter

if TYPE_CHECKING:
    import torch

    from pipeline.images.manifest import ImageFacts
    from pipeline.labels.format import TeacherFacts, ViewFacts
    from pipeline.labels.labelling import Stream
    from pipeline.labels.write import StoreWriter
    from pipeline.models.classifier import Classifier
    from pipeline.params import LabelParams, Params

__all__ = ["label"]


@click.command()
@click.option(
    "--teacher",
    "teachers",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    required=True,
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
@foreign_options
@params_options("label", standalone=True)
@click.option("--force", is_flag=True, help="Replace an existing store.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def label(
    params: Params,
    teachers: tuple[Path, ...],
    data: Path,
    out: Path,
    foreign: Foreign,
    force: bool,
    as_json: bool,
) -> None:
    """Write a teacher's low-temperature soft labels into a store.

    Interrupted, it goes on where it was when run again. No params.yaml is needed.

    \b
    Examples:
      ltd-pipe label --teacher teacher.safetensors --data train.beton --temperature auto:0.9
      ltd-pipe label --teacher resnet.pt --arch torchvision:resnet18 --data photos/train
      ltd-pipe label --teacher teacher.safetensors --data train.beton --top-k 50
      ltd-pipe label --teacher teacher.safetensors --views 8 --augmentation crop:4,flip
    """
    from pipeline.device import choose_device, deterministic
    from pipeline.labels.write import require_replaceable
    from pipeline.publish import exclusive

    require_replaceable(out, replace=force)
    refuse_overlap(out, data, *teachers)
    device = choose_device(params.device)
    with exclusive(out), deterministic():
        images = open_images(data, foreign, device, teacher=teachers[0])
        facts, stream = images.manifest, stream_of(images, device)
        models = [load_teacher(path, facts, foreign).to(device) for path in teachers]
        known = [_teacher_facts(path, model) for path, model in zip(teachers, models, strict=True)]
        views = _views(params)
        work = _fixed(params.label, models, stream, facts.num_samples, views)
        writer = _writer(out, facts, known, views, work, device)
        _answer(models, stream, writer, work)
        summary = _publish(writer, out, work, force=force)
    _show(summary, as_json=as_json)


def _views(params: Params) -> ViewFacts:
    from pipeline.labels.format import ViewFacts

    section = params.label
    if section.augmentation == "none":
        return ViewFacts()  # no random number is drawn: the seed would tell equal stores apart
    seed = params.seed if section.seed is None else section.seed
    return ViewFacts(count=section.views, seed=seed, augmentation=section.augmentation)


def _fixed(
    params: LabelParams,
    models: list[Classifier],
    stream: Stream,
    num_samples: int,
    views: ViewFacts,
) -> LabelParams:
    """With the temperature as a number, where it has to be known before the labels."""
    from pipeline.device import choose_precision
    from pipeline.labels.labelling import temperature_of_sample
    from pipeline.labels.replay import Replay

    target = params.target_top_probability()
    if params.top_k is None or target is None:
        return params
    temperature = temperature_of_sample(
        models,
        stream,
        num_samples,
        target,
        replay=Replay.of(views, "label.augmentation"),
        batch_size=params.batch_size,
        precision=choose_precision(params.precision, models[0], params.batch_size),
    )
    return params.model_copy(update={"temperature": temperature})


def _teacher_facts(path: Path, model: Classifier) -> TeacherFacts:
    from pipeline.errors import CheckpointError
    from pipeline.labels.format import TeacherFacts
    from pipeline.models.checkpoint import read_facts
    from pipeline.provenance import sha256_file

    try:
        accuracy = read_facts(path).get("clean_accuracy")
    except CheckpointError:
        accuracy = None  # another project's weights say nothing of themselves
    return TeacherFacts(
        sha256=sha256_file(path), architecture=model.architecture, clean_accuracy=accuracy
    )


def _writer(
    out: Path,
    facts: ImageFacts,
    teachers: list[TeacherFacts],
    views: ViewFacts,
    params: LabelParams,
    device: torch.device,
) -> StoreWriter:
    from pipeline import provenance
    from pipeline.labels.format import DatasetFacts, StoreFacts
    from pipeline.labels.labelling import aligned_rows
    from pipeline.labels.write import StoreWriter

    store = StoreFacts(
        num_samples=facts.num_samples,
        num_classes=facts.num_classes,
        class_names=facts.class_names,
        dataset=DatasetFacts(name=facts.dataset, split=facts.split, fingerprint=facts.fingerprint),
        teachers=tuple(teachers),
        views=views,
        software=provenance.software(),
        licence=params.licence,
        citation=params.citation,
    )
    key = provenance.digest(
        {
            "facts": store.model_dump(mode="json"),
            "shape": facts.shape,
            # The temperature is applied at the end: an interrupted run may change its mind.
            # But not where only the largest probabilities are ever written.
            "params": params.model_dump(
                mode="json", exclude=set() if params.top_k else {"temperature"}
            ),
            "code": provenance.code_digest(),
            "hardware": provenance.hardware(),
            "device": str(device),
        }
    )
    return StoreWriter(
        out.parent / "state" / f"label-{key[:16]}",
        store,
        keep_logits=params.logits and len(teachers) == 1 and params.top_k is None,
        rows=aligned_rows(store, params.top_k, params.batch_size),
        top_k=params.top_k,
        temperature=float(params.temperature) if params.top_k else None,
    )


def _answer(
    models: list[Classifier], stream: Stream, writer: StoreWriter, params: LabelParams
) -> None:
    from pipeline.device import choose_precision
    from pipeline.labels.labelling import label_images

    precision = choose_precision(params.precision, models[0], params.batch_size)
    with counter("label", writer.facts.num_samples) as progress:
        progress(writer.facts.num_samples - len(writer.rows_left))
        label_images(
            models,
            stream,
            writer,
            batch_size=params.batch_size,
            precision=precision,
            progress=progress,
        )


def _publish(writer: StoreWriter, out: Path, params: LabelParams, *, force: bool) -> dict[str, Any]:
    from pipeline.labels.read import SoftLabels

    target = params.target_top_probability()
    temperature = float(params.temperature) if target is None else writer.solve_temperature(target)
    identity = writer.publish(out, temperature, replace=force)
    store = SoftLabels.open(out)
    sparse = store.attributes.top_k
    distance = sparse.total_variation if sparse else None
    return {
        "store": str(out),
        "identity": identity,
        "num_samples": store.num_samples,
        "num_views": store.num_views,
        "num_classes": store.num_classes,
        "temperature": temperature,
        "top_k": store.top_k,
        "total_variation": distance.model_dump() if distance else None,
        **vars(store.summary()),
    }


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    views = f" × {summary['num_views']} views" if summary["num_views"] > 1 else ""
    click.echo(
        f"{summary['store']}: {summary['num_samples']:,}{views} soft labels over "
        f"{summary['num_classes']:,} classes, identity {summary['identity'][:12]}"
    )
    click.echo(f"  temperature           {summary['temperature']:.6g}")
    click.echo(f"  mean top probability  {summary['mean_top_probability']:.4f}")
    click.echo(f"  mean entropy          {summary['mean_entropy']:.4f} nats")
    if summary["total_variation"] is not None:
        distance = summary["total_variation"]
        click.echo(
            f"  top {summary['top_k']} of {summary['num_classes']:,}: total variation from the "
            f"dense labels {distance['mean']:.2g} on average, {distance['worst']:.2g} at worst"
        )
    if summary["disagreement"] is not None:
        click.echo(f"  teacher contradicts the ground truth for {summary['disagreement']:.2%}")
    for warning in summary["warnings"]:
        click.echo(f"  warning: {warning}", err=True)
