"""A run of training from the outside: its samples, its model, its key, its results."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from ltd_pipe import objectives, provenance, rng
from ltd_pipe.attacks import Adversary, Ball, Frozen, pgd
from ltd_pipe.distributed import World
from ltd_pipe.errors import DataError, ParamsError
from ltd_pipe.evaluation.accuracy import predict
from ltd_pipe.images.manifest import to_unit
from ltd_pipe.images.sources import validation_mask
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.publish import write_json
from ltd_pipe.training.alarm import Alarm
from ltd_pipe.training.data import fresh_examples, smoothed, stored_examples
from ltd_pipe.training.objective import Ingredients, choose_objective
from ltd_pipe.training.precision import choose_passes, kept_passes
from ltd_pipe.training.step import Perturbation
from ltd_pipe.training.trainer import Fit, Snapshots

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from ltd_pipe.images.beton import Beton
    from ltd_pipe.images.manifest import Manifest
    from ltd_pipe.images.stream import ImageStream
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.params import FitParams, TeacherParams, TrainParams
    from ltd_pipe.training.data import Examples, LiveTeacher
    from ltd_pipe.training.precision import Passes
    from ltd_pipe.training.trainer import Watcher


# --- The teacher: clean training with one-hot (or smoothed) labels.


def teacher_fit(
    model: Classifier,
    stream: ImageStream,
    training: NDArray[np.int64],
    validation: NDArray[np.int64],
    params: TeacherParams,
    *,
    snapshots: Snapshots,
    seed: int,
    passes: Passes,
    world: World | None = None,
) -> Fit:
    """Put together the teacher's run; the best checkpoint has the highest clean accuracy.

    Parameters
    ----------
    model : Classifier
        Freshly initialised, on its device.
    stream : ImageStream
        Over the training images.
    training, validation : ndarray of shape (N,), dtype int64
        Disjoint sample indices.
    params : TeacherParams
    snapshots : Snapshots
    seed : int
    passes : Passes
    world : World, optional
        Processes that train together.

    Returns
    -------
    Fit
    """
    world = world or World()

    def validate(candidate: Classifier) -> dict[str, float]:
        if not len(validation):
            return {}
        mine = validation[world.rank :: world.size]
        probabilities, labels = predict(candidate, stream, mine, params.batch_size)
        (hits,) = world.sums(int((probabilities.argmax(axis=1) == labels).sum()))
        return {"validation/clean_accuracy": hits / len(validation)}

    return Fit(
        model=model,
        stream=stream,
        samples=training,
        params=params,
        objective=objectives.Clean(),
        examples=fresh_examples(
            params,
            seed,
            lambda batch: smoothed(batch.labels, model.num_classes, params.label_smoothing),
        ),
        adversary=None,
        validate=validate,
        select=lambda row: (row.get("validation/clean_accuracy", 0.0),),
        snapshots=snapshots,
        seed=seed,
        passes=passes,
        world=world,
    )


# --- The student: adversarial training on one-hot, smoothed or the teacher's soft labels.


def student_examples(
    params: TrainParams,
    num_classes: int,
    store: SoftLabels | None,
    data: str,
    device: torch.device,
    seed: int,
) -> Examples:
    """What the student learns from: images with their target distributions.

    A teacher in the run, for the kinds `live` and `adr`, replaces them later by its own.

    Parameters
    ----------
    params : TrainParams
        `label_kind` and what belongs to it; the augmentation.
    num_classes : int
        K.
    store : SoftLabels or None
        Needed for kind `ltd`, unless labels weigh nothing. Each batch's sample hashes are
        checked against the store's before its rows are used.
    data : str
        How the user knows the images, for the error.
    device : torch.device
        Where batches are.
    seed : int
        The run's.

    Raises
    ------
    JoinError
        When the store's labels belong to other views than the parameters ask for.
    """
    if params.reads_store:
        if store is None:
            raise ValueError("label_kind 'ltd' needs a store")
        return stored_examples(params, store, data, device, seed)
    smoothing = params.smoothing if params.label_kind == "smooth" else 0.0
    return fresh_examples(
        params,
        seed,
        lambda batch: smoothed(batch.labels, num_classes, smoothing),
    )


def validate_robustness(
    model: Classifier,
    stream: ImageStream,
    samples: NDArray[np.int64],
    params: TrainParams,
    seed: int,
    world: World,
) -> dict[str, float]:
    """Clean and PGD accuracy on the validation split, with the same starts at every epoch.

    The attack is the evaluation's, PGD on the cross entropy with steps of 2.5 · eps / steps from
    a uniform start, at the full eps and whatever the training attack is. It must be another one
    than training's for a collapse of single-step training to be seen. Each process of the world
    measures its share of the samples.

    Returns
    -------
    dict
        `validation/clean_accuracy` and `validation/robust_accuracy`; empty without samples.
    """
    if not len(samples):
        return {}
    model = Frozen(model).current()
    key, ball = rng.stream_key(seed, "validation-start"), Ball(params.norm, params.eps)
    steps = params.validation_attack_steps
    hits = torch.zeros(2, dtype=torch.int64, device=stream.device)
    for batch in stream.batches(samples[world.rank :: world.size], params.batch_size):
        images = to_unit(batch.images)
        attacked = pgd(
            model,
            images,
            partial(functional.cross_entropy, target=batch.labels, reduction="none"),
            start=ball.uniform(images, batch.index, key),
            ball=ball,
            step_size=2.5 * ball.eps / steps,
            steps=steps,
        )
        with torch.no_grad():
            right = model(images).argmax(dim=1) == batch.labels
            still = model(attacked).argmax(dim=1) == batch.labels
        # An image that is wrong when clean is not robust, whatever the attack did to it. The
        # counts stay on the device, so that no batch waits for the one before.
        hits += torch.stack([right.sum(), (right & still).sum()])
    clean, robust = world.sums(*hits.tolist())
    return {
        "validation/clean_accuracy": clean / len(samples),
        "validation/robust_accuracy": robust / len(samples),
    }


def training_adversary(params: TrainParams) -> Adversary:
    """The attack that the student is trained against."""
    return Adversary(
        Ball(params.norm, params.eps),
        params.step,
        params.steps,
        # FGSM-RS is PGD of one step, from a uniform start whatever the objective.
        method="n-fgsm" if params.attack == "n-fgsm" else "pgd",
        start="uniform" if params.attack == "fgsm-rs" else params.attack_start,
        noise=params.attack_noise,
        warmup_epochs=params.eps_warmup_epochs,
    )


def threat_model(params: TrainParams) -> dict[str, Any]:
    """What the student is trained to withstand, and how: for its checkpoint's facts.

    Returns
    -------
    dict
        `norm` and `eps`, and the training attack's `name`, `steps` and `step_size` as they were
        decided where the parameters leave them open. Pixel units.
    """
    return {
        "norm": params.norm,
        "eps": params.eps,
        "attack": {"name": params.attack, "steps": params.steps, "step_size": params.step},
    }


def student_fit(
    model: Classifier,
    stream: ImageStream,
    training: NDArray[np.int64],
    validation: NDArray[np.int64],
    params: TrainParams,
    *,
    examples: Examples,
    snapshots: Snapshots,
    seed: int,
    passes: Passes,
    teacher: LiveTeacher | None = None,
    world: World | None = None,
) -> Fit:
    """Put together the student's run; the best checkpoint has the highest robust accuracy.

    Parameters
    ----------
    model : Classifier
        Freshly initialised, on its device, with the student's temperature.
    stream : ImageStream
        Over the training images.
    training, validation : ndarray of shape (N,), dtype int64
        Disjoint sample indices.
    params : TrainParams
    examples : Examples
        From `student_examples`.
    snapshots : Snapshots
    seed : int
    passes : Passes
        How the training passes are computed; validation is always float32.
    teacher : LiveTeacher, optional
        Needed where the parameters ask a teacher in the run.
    world : World, optional
        Processes that train together.

    Returns
    -------
    Fit

    Raises
    ------
    ModelError, ParamsError
        When the network has not the exits that are to be trained.
    """
    world = world or World()
    if teacher is not None:
        teacher = teacher.placed(stream.device, channels_last=passes.channels_last)
    # The average is the run's own, which exists once the run is put together.
    ingredients = Ingredients(model, lambda: fit.average.model, teacher)
    fit = Fit(
        model=model,
        stream=stream,
        samples=training,
        params=params,
        objective=choose_objective(params, ingredients),
        examples=examples,
        adversary=training_adversary(params),
        validate=lambda candidate: validate_robustness(
            candidate, stream, validation, params, seed, world
        ),
        select=lambda row: (
            row.get("validation/robust_accuracy", 0.0),
            row.get("validation/clean_accuracy", 0.0),
        ),
        snapshots=snapshots,
        seed=seed,
        passes=passes,
        validate_every=params.validation_every,
        awp=Perturbation(params.awp_gamma, params.awp_from_epoch) if params.awp_gamma else None,
        world=world,
        alarm=_alarm(params, len(validation)),
    )
    return fit


def _alarm(params: TrainParams, images: int) -> Alarm | None:
    if params.overfitting_alarm == "off":
        return None
    return Alarm(images, params.eps_warmup_epochs, stops=params.overfitting_alarm == "stop")


# --- A run of training from the outside: its samples, its model, its key, its results.


# How often snapshots are taken, and what is allowed, does not change what is computed.
_CHANGE_NOTHING = {"snapshot_minutes", "snapshot_steps", "any_size", "allow_poor_labels"}
# A run goes on when these change, to a result that differs by rounding.
_ROUND = {"device", "hardware", "processes", "software"}


def split_samples(
    beton: Beton, images: int | None = None, seed: int = 0, section: str = "train"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that are trained on, and those held out to choose checkpoints.

    Parameters
    ----------
    beton : Beton
    images : int, optional
        Train on so many, chosen by the seed; the validation split stays whole.
    seed : int
    section : str
        Of the parameters, for the error.

    Returns
    -------
    tuple of ndarray
        Ascending; of shape (n,) and (m,), dtype int64.

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
    temperature: float = 1.0,
) -> Classifier:
    """Build a freshly initialised model that depends on the seed and its role alone.

    Parameters
    ----------
    params : FitParams
    manifest : Manifest
        Of the training images: classes and shape.
    seed : int
    role : str
        `teacher` or `student`: they start from different weights.
    device : torch.device
    temperature : float
        Part of the model.

    Raises
    ------
    ParamsError
        When a crop may miss the images, or a cutout is larger than they are.
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
        temperature=temperature,
    )
    return model.to(device)


def run_facts(kind: str, params: FitParams, manifest: Manifest, **decides: Any) -> dict[str, Any]:
    """Everything that decides a run's result, to the bit.

    Parameters
    ----------
    kind : str
        `teacher` or `student`.
    params : FitParams
    manifest : Manifest
    **decides
        What else does: seed, store identity; and what rounds: kind of device, processes.
    """
    return {
        "kind": kind,
        "params": params.model_dump(mode="json", exclude=_CHANGE_NOTHING),
        "data": manifest.fingerprint,
        "encoding": manifest.sha256,
        # Which images are trained on; no byte of the beton depends on it.
        "validation_fraction": manifest.validation_fraction,
        "code": provenance.code_digest("training.run", "params.fit"),
        "software": provenance.software(),
        "hardware": provenance.hardware(),
        **decides,
    }


def run_record(facts: dict[str, Any], out: Path) -> provenance.StateRecord:
    """What names and describes a run's state, in `state/` beside its output.

    Parameters
    ----------
    facts : dict
        Of `run_facts`. What is measured when it begins is not among them: its state keeps that.
    out : Path
        The output.
    """
    decides = {name: value for name, value in facts.items() if name not in _ROUND}
    rounds = {name: value for name, value in facts.items() if name in _ROUND}
    return provenance.StateRecord(out.parent / "state", facts["kind"], out.name, decides, rounds)


def open_run(
    facts: dict[str, Any],
    out: Path,
    params: FitParams,
    model: Classifier,
    world: World,
    *,
    fresh: bool,
    tell: Callable[[str], None],
) -> tuple[Snapshots, Passes]:
    """A run's state, and how its passes are computed: as when it began, if it was interrupted.

    Parameters
    ----------
    facts : dict
        Of `run_facts`.
    out : Path
        The output.
    params : FitParams
    model : Classifier
        On its device; it is not changed.
    world : World
        Connected; the first process looks for the state, or measures, for all.
    fresh : bool
        Forget the state, and measure anew.
    tell : callable
        Called by the first process, before the work, with what differs from an earlier run.

    Raises
    ------
    StateError
        When processes are at different work, or no snapshot can be read.
    """
    record = run_record(facts, out)
    snapshots = Snapshots(record.folder, record)

    def passes_for_all() -> Passes:
        if not fresh and (note := record.note()):
            tell(note)
        # What was chosen for a GPU says nothing of a CPU.
        moved = any(name == "device" for name, _, _ in record.changed())
        return (None if fresh or moved else kept_passes(snapshots)) or choose_passes(params, model)

    passes = world.broadcast_config({"run": facts}, passes_for_all)
    if fresh and world.is_main:
        snapshots.clear()
    return snapshots, passes


def run_fit(fit: Fit, watcher: Watcher) -> dict[str, float]:
    """Run to the end; the seconds that this process took, and its training images per second."""
    begin = time.monotonic()
    fit.run(watcher)
    return {
        "seconds": round(time.monotonic() - begin, 3),
        "images_per_second": round(fit.images_per_second, 1),
    }


def save_results(
    fit: Fit, out: Path, facts: dict[str, Any], timing: dict[str, float], *, last: bool
) -> None:
    """Write the best weights, the last ones if wanted, and the times.

    The best come last: their file is what tells that the run is complete.

    Parameters
    ----------
    fit : Fit
        Finished.
    out : Path
        Folder.
    facts : dict
        For the checkpoints' metadata.
    timing : dict
    last : bool
        Keep the last weights too.
    """
    write_json(out / "timing.json", timing | {"commit": provenance.commit()})
    if last:
        row = fit.progress.history[-1]
        save_classifier(fit.average.model, out / "last.safetensors", **facts | _chosen(row))
    row = fit.progress.best or fit.progress.history[-1]
    save_classifier(fit.best.model, out / "model.safetensors", **facts | _chosen(row))


def _chosen(row: dict[str, float]) -> dict[str, Any]:
    measures = {
        name.removeprefix("validation/"): value
        for name, value in row.items()
        if name.startswith("validation/")
    }
    return {"epoch": row["epoch"], "validation": measures}


def common_facts(
    kind: str,
    params: FitParams,
    manifest: Manifest,
    seed: int,
    passes: Passes | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What a checkpoint says of how it was made.

    Parameters
    ----------
    kind : str
        `teacher` or `student`.
    params : FitParams
    manifest : Manifest
        Of the training images.
    seed : int
    passes : Passes, optional
        How it was trained; None: it was not.
    **more
        What only this kind has, such as the labels of a student.
    """
    return {
        "kind": kind,
        "seed": seed,
        "passes": passes and passes.decides,
        "params": params.model_dump(mode="json"),
        "data": {"dataset": manifest.dataset, "fingerprint": manifest.fingerprint},
        "software": provenance.software(),
        "hardware": provenance.hardware(),
        **more,
    }
