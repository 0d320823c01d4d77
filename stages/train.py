"""Stage 4: images and labels → the adversarially trained student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import MissingError
from ltd_pipe.stages.console import doing, tell, transfer
from ltd_pipe.stages.options import (
    CHECKPOINT,
    ParamsCommand,
    note_pipeline,
    params_options,
    refuse_existing,
    refuse_options,
    require_files,
)

if TYPE_CHECKING:
    from ltd_pipe.distributed import World
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.params import Params, TrainParams
    from ltd_pipe.training.data import LiveTeacher
    from ltd_pipe.training.precision import Passes
    from ltd_pipe.training.softness import TargetSoftness
    from ltd_pipe.training.trainer import Fit

__all__ = ["train"]

_STOPPED = (
    "warning: stopped after epoch {done} of {epochs} by overfitting_alarm, see above; "
    "model.safetensors is the best epoch before. Use attack: pgd or n-fgsm, or a smaller eps or "
    "step_size; overfitting_alarm: warn goes on all the same."
)


@click.command(cls=ParamsCommand)
@params_options("train", typed={"architecture": "ltd_pipe.models.registry:allow_file"})
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data/train.beton"),
    show_default=True,
    help="Training images.",
)
@click.option(
    "--labels",
    default="data/labels.zarr",
    show_default=True,
    help="Soft-label store, a folder or a URL; opened for label kind ltd only.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/student"),
    show_default=True,
    help="Folder of model.safetensors (best) and last.safetensors.",
)
@click.option("--teacher-arch", help="FILE.py:FUNCTION, of a --teacher whose network is a file's.")
@click.option("--fresh", is_flag=True, help="Forget an interrupted or finished run; start over.")
@click.option("--force", is_flag=True, help="Replace an existing student.")
def train(
    params: Params,
    data: Path,
    labels: str,
    out: Path,
    teacher_arch: str | None,
    fresh: bool,
    force: bool,
) -> None:
    """Train the student adversarially on soft or one-hot labels.

    Interrupted, it goes on where it was when run again with the same parameters. Under torchrun
    all processes train one student, the same for any number of them. If training collapses
    (catastrophic overfitting), it ends early with exit code 0, the best checkpoint and a warning.

    \b
    Examples:
      ltd-pipe train --labels labels.zarr --out student --epochs 30
      torchrun --standalone --nproc-per-node gpu -m ltd_pipe train --labels labels.zarr
      ltd-pipe train --labels https://example.org/labels.zarr --out student
      ltd-pipe train --label-kind onehot --objective trades --out baseline
    """
    with doing("loading torch"):
        from ltd_pipe.device import deterministic
        from ltd_pipe.distributed import World
        from ltd_pipe.images.beton import open_beton
        from ltd_pipe.models.registry import allow_file
        from ltd_pipe.stages.fitting import fit_on_screen, tell_chance, turn
        from ltd_pipe.training.run import save_results, split_samples

    require_files("data", *["labels"] * params.train.reads_store)
    _tell_unused_weights(params.train)
    _require_teacher(params)
    refuse_existing(out / "model.safetensors", force=force or fresh, kind=CHECKPOINT)
    note_pipeline(out)
    if teacher_arch is not None:
        allow_file(teacher_arch)
    world = World.from_environment()
    with turn(out, world), deterministic():
        with doing("checking images and labels"):
            beton = open_beton(data)
            store = _open_store(params, labels, beton)
            teacher = _open_teacher(params, beton)
            softness = _measure_labels(params, beton, store)
        fit, snapshots = _fit(params, beton, store, teacher, world, out, fresh=fresh)
        timing = fit_on_screen(fit, out.name, out)
        if not world.is_main:
            return
        facts = _facts(params, beton, store, teacher, softness, fit.passes)
        if fit.target_softness is not None:
            facts["targets"] = fit.target_softness.facts
        if fit.collapse is not None:
            facts["catastrophic_overfitting"] = fit.collapse.facts()
        save_results(fit, out, facts, timing, last=True)
        snapshots.clear()
    best = fit.progress.best
    if fit.stopped:
        click.echo(
            _STOPPED.format(done=len(fit.progress.history), **params.train.model_dump()), err=True
        )
    if not any(name.startswith("validation/") for name in best):
        click.echo("warning: no validation images: model.safetensors is the last epoch.", err=True)
    if "validation/clean_accuracy" in best:
        images = len(split_samples(beton)[1])
        clean = best["validation/clean_accuracy"]
        tell_chance(clean, images, "validation", beton.manifest.num_classes)
    measures = ", ".join(
        f"{name.removeprefix('validation/').replace('_', ' ')} {value:.2%}"
        for name, value in best.items()
        if name.startswith("validation/")
    )
    for line in beton.manifest.warnings():
        click.echo(f"warning: {beton.path}: {line}", err=True)
    measured = softness or fit.target_softness
    click.echo(
        f"{out / 'model.safetensors'}: epoch {best['epoch'] + 1} of {params.train.epochs}; "
        f"on the validation split: {measures or 'not measured'}"
        + (f"; {measured.sentence()}" if measured else "")
    )
    for warning in softness.warnings(params.train) if softness else []:
        click.echo(f"warning: {warning}", err=True)


def _require_teacher(params: Params) -> None:
    section = params.train
    if section.teacher and section.asks_teacher and not Path(section.teacher).exists():
        raise MissingError(
            f"train.teacher: {section.teacher}",
            "no such file",
            remedy="Give the checkpoint that is asked in the run, or choose what asks no teacher.",
        )


def _tell_unused_weights(section: TrainParams) -> None:
    """Refuse weights of soft labels where none are learned from, when they were typed."""
    if section.label_kind in ("ltd", "live"):
        return
    why = f"weighs soft labels, and label_kind {section.label_kind} has none to weigh"
    refuse_options({"soft_weight", "rectify"}, why)
    # No refusal of what stands in params.yaml: dvc.yaml trains the baseline with that section.
    for key, given in (("soft_weight", section.soft_weight < 1), ("rectify", section.rectify)):
        if given:
            click.echo(f"note: train.{key} does nothing: it {why}", err=True)


def _open_store(params: Params, labels: str, beton: Beton) -> SoftLabels | None:
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.labels.remote import resolve_store

    if not params.train.reads_store:
        return None
    store = SoftLabels.open(resolve_store(labels, transfer, tell))
    store.require_data(beton.manifest, str(beton.path), beton)
    any_size = params.train.any_size
    store.require_shape(beton.manifest.shape, str(beton.path), any_size=any_size)
    return store


def _open_teacher(params: Params, beton: Beton) -> LiveTeacher | None:
    from ltd_pipe.training.data import open_teacher

    section = params.train
    if section.teacher is None or not section.asks_teacher:
        return None
    path = Path(section.teacher)
    return open_teacher(path, beton.manifest, section.teacher_temperature)


def _measure_labels(
    params: Params, beton: Beton, store: SoftLabels | None
) -> TargetSoftness | None:
    from ltd_pipe.training.run import split_samples
    from ltd_pipe.training.softness import measure_targets, require_teaching

    if store is None:
        return None
    training, _ = split_samples(beton, params.train.images, params.seed)
    found = measure_targets(params.train, store, training)
    require_teaching(found, params.train, store.num_classes, store.path)
    return found


def _fit(
    params: Params,
    beton: Beton,
    store: SoftLabels | None,
    teacher: LiveTeacher | None,
    world: World,
    out: Path,
    *,
    fresh: bool,
) -> tuple[Fit, Any]:
    from ltd_pipe.device import choose_device
    from ltd_pipe.images.stream import ImageStream
    from ltd_pipe.training.run import (
        new_classifier,
        open_run,
        run_facts,
        split_samples,
        student_examples,
        student_fit,
    )

    section, manifest = params.train, beton.manifest
    device = world.device(choose_device(params.device))
    model = new_classifier(
        section,
        manifest,
        seed=params.seed,
        role="student",
        device=device,
        temperature=section.temperature,
    )
    decides = {
        "seed": params.seed,
        "device": device.type,
        "processes": world.size,
        "labels": store.identity if store else None,
        "teacher": teacher.sha256 if teacher else None,
    }
    facts = run_facts("student", section, manifest, **decides)
    with doing("measuring precision"):
        snapshots, passes = open_run(facts, out, section, model, world, fresh=fresh, tell=tell)
    training, validation = split_samples(beton, section.images, params.seed)
    examples = student_examples(
        section, model.num_classes, store, str(beton.path), device, params.seed
    )
    with doing("loading images"):
        stream = ImageStream(beton, device)
    fit = student_fit(
        model,
        stream,
        training,
        validation,
        section,
        examples=examples,
        snapshots=snapshots,
        seed=params.seed,
        passes=passes,
        teacher=teacher,
        world=world,
    )
    return fit, snapshots


def _facts(
    params: Params,
    beton: Beton,
    store: SoftLabels | None,
    teacher: LiveTeacher | None,
    softness: TargetSoftness | None,
    passes: Passes,
) -> dict[str, Any]:
    from ltd_pipe.training.run import common_facts, threat_model

    labels: dict[str, Any] | None = None
    if store is not None:
        labels = {"identity": store.identity, "temperature": store.attributes.temperature}
        labels |= softness.facts if softness else {}
    more = {"labels": labels, "threat_model": threat_model(params.train)}
    if teacher is not None:
        more["teacher"] = teacher.facts
    return common_facts("student", params.train, beton.manifest, params.seed, passes, **more)
