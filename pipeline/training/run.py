"""A run of training from the outside: its samples, its model, its key, its results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ltd_pipe import objectives, provenance, rng
from ltd_pipe.attacks import Adversary, Ball, Frozen
from ltd_pipe.device import choose_device, choose_precision
from ltd_pipe.errors import DataError, ModelError, ParamsError
from ltd_pipe.images.manifest import images_digest
from ltd_pipe.images.sources import validation_mask
from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.params import TrainParams
from ltd_pipe.publish import write_json
from ltd_pipe.training.data import BatchTransform, LabelTargets, student_transform
from ltd_pipe.training.failures import passes_explained
from ltd_pipe.training.perturbations import Perturbations
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.targets import LiveTargets, SelfDistillation
from ltd_pipe.training.trainer import RunContext, Task, Trainer
from ltd_pipe.training.validation import images_at_a_time

if TYPE_CHECKING:
    from ltd_pipe.device import PrecisionSettings
    from ltd_pipe.distributed import World
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.manifest import Manifest
    from ltd_pipe.images.stream import ImageStream
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.params import FitParams, Params, TeacherParams
    from ltd_pipe.training.snapshots import Row
    from ltd_pipe.training.targets import LiveTeacher, TeacherTargets
    from ltd_pipe.training.trainer import Split

    Kind = Literal["teacher", "student"]


# --- The teacher: clean training with one-hot (or smoothed) labels.


def teacher_trainer(
    model: Classifier,
    stream: ImageStream,
    split: Split,
    params: TeacherParams,
    context: RunContext,
) -> Trainer:
    """Put together the teacher's run; the best checkpoint has the highest clean accuracy.

    The model is from `open_run` or `new_classifier`, the split from `split_samples`.
    """
    targets = LabelTargets(model.num_classes, params.label_smoothing)
    transform = BatchTransform(params, context.seed, targets)
    return Trainer(model, stream, split, params, Task(objectives.Clean(), transform), context)


# --- The student: adversarial training on one-hot, smoothed or the teacher's soft labels.


def student_trainer(
    model: Classifier,
    stream: ImageStream,
    split: Split,
    params: TrainParams,
    context: RunContext,
    *,
    store: SoftLabels | None = None,
    teacher: LiveTeacher | None = None,
    data: str = "the training images",
) -> Trainer:
    """Put together the student's run; the best checkpoint has the highest robust accuracy.

    The store is needed for label kind `ltd`, the teacher where the parameters ask one in the run;
    `data` is how the user knows the images, for errors.

    Raises
    ------
    JoinError
        When the store's labels belong to other views than the parameters ask for.
    ModelError, ParamsError
        When the network has not the exits that are to be trained.
    """
    if teacher is not None:
        channels_last = context.precision.channels_last
        teacher = teacher.to(stream.device, channels_last=channels_last)
    teacher_targets: TeacherTargets | None = None
    if params.label_kind == "adr":
        teacher_targets = SelfDistillation(params.adr_temperatures, params.adr_weights)
    elif params.label_kind == "live" and params.learns_from_labels and teacher is not None:
        teacher_targets = LiveTargets(teacher, params.soft_weight, params.rectify)
    perturbations = None
    if params.attack_start == "previous":
        perturbations = Perturbations(stream.count, model.shape, stream.device, context.world)
    task = Task(
        objective=objectives.make_objective(params, model, teacher),
        transform=student_transform(
            params, model.num_classes, store, data, stream.device, context.seed
        ),
        adversary=training_adversary(params),
        teacher_targets=teacher_targets,
        perturbations=perturbations,
    )
    return Trainer(model, stream, split, params, task, context)


def training_adversary(params: TrainParams) -> Adversary:
    """The attack that the student is trained against."""
    start = None if params.attack_start == "previous" else params.attack_start
    return Adversary(
        Ball(params.norm, params.eps),
        params.step,
        params.steps_by_epoch[-1],
        # FGSM-RS is PGD of one step, from a uniform start whatever the objective.
        method="n-fgsm" if params.attack == "n-fgsm" else "pgd",
        start="uniform" if params.attack == "fgsm-rs" else start,
        noise=params.attack_noise,
        warmup_epochs=params.eps_warmup_epochs,
        steps_by_epoch=params.steps_by_epoch,
    )


def threat_model(params: TrainParams) -> dict[str, Any]:
    """What the student is trained to withstand, and how, as it was decided; pixel units."""
    return {
        "norm": params.norm,
        "eps": params.eps,
        "attack": {"name": params.attack, "steps": params.steps, "step_size": params.step},
    }


# --- What teacher and student share: samples, initial weights, the run's key, its results.


# How often snapshots are taken, and what is allowed, does not change what is computed, nor do
# names of files, whose hashes are facts of the run.
_CHANGE_NOTHING = {"snapshot_minutes", "snapshot_steps", "any_size", "allow_poor_labels"}
_CHANGE_NOTHING |= {"init", "teacher"}
# A run goes on when these change, to a result that differs by rounding.
_ROUND = {"device", "hardware", "processes", "software"}


def split_samples(
    beton: Beton, images: int | None = None, seed: int = 0, section: str = "train"
) -> Split:
    """Ascending indices that are trained on, and those held out to choose checkpoints.

    `images` trains on so many, chosen by the seed; the validation split stays whole. The section
    is for the error.

    Raises
    ------
    DataError
        When the validation split takes every sample, or an image has no label.
    ParamsError
        When there are fewer than `images`.
    """
    unknown = int((beton.labels < 0).sum())
    if unknown:
        raise DataError(
            beton.path,
            "images without a class cannot be trained on",
            expected="a label for each",
            found=f"{unknown:,} without",
            remedy="Put the images into one folder per class, and run 'ltd-pipe prepare'.",
        )
    held_out = validation_mask(beton.sample_hash, beton.manifest.validation_fraction)
    training, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if images is not None:
        if images > len(training):
            raise ParamsError(
                f"{section}.images",
                "more than there are to train on",
                expected=f"at most {len(training)}",
                found=images,
                remedy="Set null for all of them.",
            )
        order = rng.permutation(rng.stream_key(seed, "training-images"), training)
        training = np.sort(order[:images])
    if not len(training):
        raise DataError(
            beton.path,
            "the validation split leaves nothing to train on",
            remedy="Lower prepare.validation_fraction.",
        )
    return training, validation


def new_classifier(
    params: FitParams,
    manifest: Manifest,
    *,
    seed: int,
    role: str,
    device: torch.device,
) -> Classifier:
    """Build the model with which a run begins, of the seed and its role alone, or of `init`.

    Raises
    ------
    ParamsError
        When a crop may miss the images, or a cutout is larger than they are.
    CheckpointError, ModelError
        When the checkpoint of `init` cannot be read, or is of another model.
    """
    section = "teacher" if role == "teacher" else "train"
    params.augmentation.require_fitting(manifest.shape, section)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.stream_key(seed, f"{role}-weights") >> 1)
        network = build(params.architecture, manifest.num_classes, manifest.shape)
    model = Classifier(
        network,
        architecture=params.architecture,
        class_names=manifest.class_names,
        shape=manifest.shape,
        mean=params.mean,
        std=params.std,
        temperature=params.temperature if isinstance(params, TrainParams) else 1.0,
    )
    if isinstance(params, TrainParams) and params.init is not None:
        _begin_with(model, Path(params.init))
    return model.to(device)


def _begin_with(model: Classifier, path: Path) -> None:
    """Take a checkpoint's weights; its temperature is its own, and the model keeps its own."""
    found = load_classifier(path)
    found.require_data(model.class_names, model.shape, f"the images for train.init {path}")
    wanted, given = model.description, found.description
    what = {
        "architecture": "architecture",
        "mean": "mean",
        "std": "std",
        # Of another project's weights, whose last layer has the classes in another order.
        "columns": "order of its outputs",
    }
    for name, told in what.items():
        if wanted.get(name) != given.get(name):
            raise ModelError(
                path,
                f"train.init: {told}",
                expected=wanted.get(name, "that of the classes"),
                found=given[name],
                remedy="Begin with a checkpoint of the same model, or set init: null.",
            )
    model.network.load_state_dict(found.network.state_dict())


def open_run(
    kind: Kind,
    params: Params,
    manifest: Manifest,
    out: Path,
    world: World,
    *,
    fresh: bool,
    tell: Callable[[str], None],
    **decides: Any,
) -> tuple[Classifier, RunContext]:
    """The initial model, and the run's state and precision: as when it began, if interrupted.

    Parameters
    ----------
    kind : {"teacher", "student"}
    params : Params
    manifest : Manifest
        Of the training images.
    out : Path
        The output; the state is in `state/` beside it.
    world : World
        Connected; the first process looks for the state, or measures, for all.
    fresh : bool
        Forget the state, and measure anew.
    tell : callable
        Called by the first process, before the work, with what differs from an earlier run.
    **decides
        What else decides the result: the store's identity, the teacher's hash.

    Raises
    ------
    StateError
        When processes are at different work, or no snapshot can be read.
    """
    section: FitParams = params.teacher if kind == "teacher" else params.train
    device = world.device(choose_device(params.device))
    model = new_classifier(section, manifest, seed=params.seed, role=kind, device=device)
    decides = {"seed": params.seed, "device": device.type, "processes": world.size, **decides}
    facts = run_facts(kind, section, manifest, **decides)
    record = run_record(facts, out)
    snapshots = Snapshots(record.folder, record, device=device.type)

    def precision_for_all() -> PrecisionSettings:
        if not fresh and (note := record.note()):
            tell(note)
        kept = None if fresh else snapshots.precision()
        if kept:
            return kept
        with passes_explained(model, section, world):
            return choose_precision(
                Frozen(model).current(),
                images_at_a_time(section, world),
                precision=section.precision,
                channels_last=section.channels_last,
                compile=section.compile,
            )

    # Rounding apart, machines of several kinds do the same work.
    same = {name: value for name, value in facts.items() if name != "hardware"}
    precision = world.broadcast_config({"run": same}, precision_for_all)
    if fresh and world.is_main:
        snapshots.clear()
    return model, RunContext(params.seed, snapshots, precision, world)


def run_facts(kind: Kind, params: FitParams, manifest: Manifest, **decides: Any) -> dict[str, Any]:
    """Everything that decides a run's result, to the bit; `decides` is what else does."""
    return {
        "kind": kind,
        "params": params.model_dump(mode="json", exclude=_CHANGE_NOTHING),
        "data": manifest.fingerprint,
        "encoding": manifest.sha256,
        # Which images are trained on; no byte of the beton depends on it.
        "validation_fraction": manifest.validation_fraction,
        "code": provenance.code_digest(kind),
        "software": provenance.software(),
        "hardware": provenance.hardware(),
        **decides,
    }


def run_record(facts: dict[str, Any], out: Path) -> provenance.StateRecord:
    """What names and describes a run's state; what is measured when it begins is not in it."""
    decides = {name: value for name, value in facts.items() if name not in _ROUND}
    rounds = {name: value for name, value in facts.items() if name in _ROUND}
    return provenance.StateRecord(out.parent / "state", facts["kind"], out.name, decides, rounds)


def save_results(
    trainer: Trainer, out: Path, facts: dict[str, Any], timing: dict[str, float], *, last: bool
) -> None:
    """Write a finished run's best weights, the last ones if wanted, and the times into a folder.

    The best come last: their file is what tells that the run is complete.
    """
    write_json(out / "timing.json", timing | {"commit": provenance.commit()})

    def save(model: Classifier, name: str, row: Row) -> None:
        prefix = "validation/"
        measures = {n.removeprefix(prefix): v for n, v in row.items() if n.startswith(prefix)}
        save_classifier(model, out / name, **facts, epoch=row["epoch"], validation=measures)

    history = trainer.progress.history
    if last:
        save(trainer.average, "last.safetensors", history[-1])
    save(trainer.best, "model.safetensors", trainer.progress.best or history[-1])
    trainer.context.snapshots.clear()


def common_facts(
    kind: Kind,
    params: FitParams,
    images: Beton,
    seed: int,
    precision: PrecisionSettings | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What a checkpoint says of how it was made; without `precision` it was not trained here."""
    manifest = images.manifest
    return {
        "kind": kind,
        "seed": seed,
        "passes": precision and precision.decides,
        "params": params.model_dump(mode="json"),
        "data": {
            "dataset": manifest.dataset,
            "fingerprint": manifest.fingerprint,
            "images": images_digest(images.sample_hash),
        },
        # Which of them it never saw; of weights from elsewhere nobody knows.
        "validation_fraction": precision and manifest.validation_fraction,
        "software": provenance.software(),
        "hardware": provenance.hardware(),
        **more,
    }
