"""Stage 4: images and labels → the adversarially trained student."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import require_file
from ltd_pipe.stages import options
from ltd_pipe.stages.console import doing, is_main, tell, transfer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ltd_pipe.images.beton import Beton
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.params import Params, TrainParams
    from ltd_pipe.training.softness import TargetSoftness
    from ltd_pipe.training.targets import LiveTeacher
    from ltd_pipe.training.trainer import Trainer

_STOPPED = (
    "stopped after epoch {done} of {epochs} by overfitting_alarm, see above; "
    "model.safetensors is the best epoch before. Use attack: pgd or n-fgsm, or a smaller eps or "
    "step_size; overfitting_alarm: warn goes on all the same."
)


@click.command(cls=options.ParamsCommand)
@options.params_options("train")
@options.path("--data", default="data/train.beton", help="Training images.")
@click.option(
    "--labels",
    default="data/labels.zarr",
    help="Soft-label store of label kind ltd, a folder or a URL.",
)
@options.folder(
    "--out", default="data/student", help="Folder of model.safetensors (best) and last.safetensors."
)
@click.option("--teacher-arch", help="FILE.py:FUNCTION, of a --teacher whose network is a file's.")
@options.flag("--fresh", help="Forget an interrupted or finished run; start over.")
@options.flag("--force", help="Replace an existing student.")
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
        from ltd_pipe.images.beton import open_beton
        from ltd_pipe.labels.reader import SoftLabels
        from ltd_pipe.labels.remote import resolve_store
        from ltd_pipe.models.facts import is_own
        from ltd_pipe.models.registry import allow_file
        from ltd_pipe.provenance import sha256_file
        from ltd_pipe.stages.fitting import begun, fit
        from ltd_pipe.training import run
        from ltd_pipe.training.softness import measure_targets, require_teaching
        from ltd_pipe.training.targets import LiveTeacher

    section = params.train
    unread = () if section.reads_store else ("labels",)
    needs = "label_kind ltd, and for adaad a robust_weight below 1"
    options.refuse_options(unread, f"does nothing here: it needs {needs}")
    options.require_files("data", *["labels"] * section.reads_store)
    teacher_path = Path(section.teacher) if section.teacher and section.asks_teacher else None
    init_path = Path(section.init) if section.init else None
    for key, path in (("teacher", teacher_path), ("init", init_path)):
        if path:
            remedy = "Give a checkpoint that is there, or choose what needs none."
            require_file(path, f"train.{key}: {path}", remedy)
            is_own(path)  # refuses a folder
    if teacher_path is None:
        options.refuse_options({"teacher_arch"}, "is of a teacher, and this run asks none")
    if teacher_arch is not None:
        allow_file(teacher_arch)
    with begun(out, replace=force or fresh) as world:
        with doing("checking images and labels"):
            beton = open_beton(data)
            split = run.split_samples(beton, section.images, params.seed)
            store = teacher = softness = None
            init = init_path and sha256_file(init_path)
            if init_path and len(split[1]):
                _warn_of_seen_images(init_path, beton)
            if section.reads_store:
                store = SoftLabels.open(resolve_store(labels, transfer, tell))
                store.require_data(beton.manifest, str(beton.path), beton)
                shape = beton.manifest.shape
                store.require_shape(shape, str(beton.path), any_size=section.any_size)
                _warn_of_other_pixels(store, beton)
            if teacher_path:
                temperature = section.teacher_temperature
                teacher = LiveTeacher.open(teacher_path, beton.manifest, temperature)
            if store:
                softness = measure_targets(section, store, split[0])
                require_teaching(softness, section, store.num_classes, store.path)
        done = fit(
            "student",
            params,
            beton,
            split,
            out,
            world,
            fresh=fresh,
            trainer_of=functools.partial(
                run.student_trainer, store=store, teacher=teacher, data=str(beton.path)
            ),
            facts_of=lambda trainer: (
                _facts(trainer, section, store, teacher, softness)
                | {"validation_images": len(split[1])}
                | ({"init_sha256": init} if init else {})
            ),
            init=init,
            labels=store.identity if store else None,
            teacher=teacher.sha256 if teacher else None,
        )
    if done is not None:
        _tell_results(done[0], section, beton, split[1], softness, out)


def _facts(
    trainer: Trainer,
    section: TrainParams,
    store: SoftLabels | None,
    teacher: LiveTeacher | None,
    softness: TargetSoftness | None,
) -> dict[str, Any]:
    """What a student's checkpoint says of itself alone."""
    from ltd_pipe.training.run import threat_model

    facts: dict[str, Any] = {"labels": None, "threat_model": threat_model(section)}
    if store is not None:
        temperature = section.label_temperature or store.attributes.temperature
        labels = {"identity": store.identity, "temperature": temperature}
        facts["labels"] = labels | (vars(softness) if softness else {})
    if teacher is not None:
        facts["teacher"] = teacher.facts
    if trainer.target_softness is not None:
        facts["targets"] = vars(trainer.target_softness)
    if trainer.collapse is not None:
        facts["catastrophic_overfitting"] = vars(trainer.collapse)
    return facts


def _tell_results(
    trainer: Trainer,
    section: TrainParams,
    beton: Beton,
    validation: NDArray[np.int64],
    softness: TargetSoftness | None,
    out: Path,
) -> None:
    from ltd_pipe.stages.fitting import warn_of_chance

    best = trainer.progress.best
    prefix = "validation/"
    measures = {n.removeprefix(prefix): v for n, v in best.items() if n.startswith(prefix)}
    warnings = []
    if trainer.stopped:
        warnings.append(_STOPPED.format(done=len(trainer.progress.history), epochs=section.epochs))
    if not measures:
        warnings.append("no validation images: model.safetensors is the last epoch.")
    else:
        clean = measures["clean_accuracy"]
        warn_of_chance(clean, beton.labels[validation], beton.manifest.num_classes, "validation")
    warnings += [f"{beton.path}: {line}" for line in beton.manifest.warnings()]
    said = ", ".join(f"{name.replace('_', ' ')} {value:.2%}" for name, value in measures.items())
    measured = softness or trainer.target_softness
    click.echo(
        f"{out / 'model.safetensors'}: epoch {best['epoch'] + 1} of {section.epochs}; "
        f"on {len(validation):,} validation images: {said or 'not measured'}"
        + (f"; {measured.sentence()}" if measured else "")
    )
    for warning in [*warnings, *(softness.warnings(section) if softness else [])]:
        tell(f"warning: {warning}")


def _warn_of_seen_images(init: Path, beton: Beton) -> None:
    from ltd_pipe.models.facts import seen_instead

    share = beton.manifest.validation_fraction
    if seen := seen_instead(init, beton.manifest.fingerprint, share):
        tell(
            f"warning: {init} may have been trained on the validation images, which choose the "
            f"epoch: expected {share:g} held out of these, found {seen}"
        )


def _warn_of_other_pixels(store: SoftLabels, beton: Beton) -> None:
    import torch

    from ltd_pipe.images.stream import ImageStream
    from ltd_pipe.labels.verify import same_pixels

    if store.attributes.views.augmentation is None or not is_main():
        return
    if same_pixels(store, ImageStream(beton, torch.device("cpu"), resident=False)) is False:
        tell(
            f"warning: {store.path}: its labels are of views of other pixels than those of "
            f"{beton.path} (another encoding, or another decoder): train on the images that were "
            "labelled"
        )
