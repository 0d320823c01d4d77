"""Stage 2: clean images → the teacher, by training or from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import ParamsError, require_file
from ltd_pipe.stages import options
from ltd_pipe.stages.console import doing, tell
from ltd_pipe.stages.model_options import ModelOptions, load_teacher

if TYPE_CHECKING:
    from ltd_pipe.images.beton import Beton
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import Params, TeacherParams

# What to do about a checkpoint that is no better than chance: ours, and another project's.
_OTHER_IMAGES = "Was it trained for long enough, and on images like these?"
_LOOK = "Look at its normalisation and its order of classes (--mean, --std, --class-order)."


@click.command(cls=options.ParamsCommand)
@options.params_options("teacher")
@options.path("--data", default="data", help="Folder of train.beton and test.beton.")
@options.folder("--out", default="data/teacher", help="Folder of model.safetensors.")
@options.flag("--fresh", help="Forget an interrupted or finished run; start over.")
@options.flag("--force", help="Replace an existing teacher.")
def teacher(params: Params, data: Path, out: Path, fresh: bool, force: bool) -> None:
    """Train the teacher on clean images, or take a checkpoint.

    \b
    Examples:
      ltd-pipe teacher --epochs 40
      torchrun --standalone --nproc-per-node gpu -m ltd_pipe teacher
      ltd-pipe teacher --checkpoint resnet.pt --architecture torchvision:resnet18
    """
    with doing("loading torch"):
        from ltd_pipe.images.beton import open_beton, require_one_preparation
        from ltd_pipe.images.manifest import Duplicates
        from ltd_pipe.models.facts import is_own
        from ltd_pipe.stages.fitting import TRAIN_LONGER, begun, fit, warn_of_chance
        from ltd_pipe.training import run

    options.require_files("data")
    section = params.teacher
    if section.checkpoint is not None:
        of_weights = {"checkpoint", "architecture", "mean", "std", "classes", "class_order"}
        of_training = {*type(section).model_fields, "fresh"} - of_weights
        options.refuse_options(
            of_training, "is of training, and teacher.checkpoint is taken as it is"
        )
        # Stores name a teacher by the hash of its file, which taking it into place would change.
        checkpoint = Path(section.checkpoint)
        options.refuse_overlap(out / "model.safetensors", checkpoint)
        remedy = "Give trained weights, or null to train a teacher."
        require_file(checkpoint, f"teacher.checkpoint: {checkpoint}", remedy)
    with begun(out, replace=force or fresh) as world:
        with doing("checking images"):
            train, test = open_beton(data / "train.beton"), open_beton(data / "test.beton")
            require_one_preparation(train, test)
        if section.checkpoint is None:
            split = run.split_samples(train, section.images, params.seed, "teacher")
            done = fit(
                "teacher",
                params,
                train,
                split,
                out,
                world,
                fresh=fresh,
                trainer_of=run.teacher_trainer,
                facts_of=lambda trainer: _measure(trainer.best, test),
            )
            facts = done[1] if done else {}
        elif world.is_main:
            facts = _take(params, train, test, out)
    if not world.is_main:
        return
    known = (
        f"clean accuracy {facts['clean_accuracy']:.2%} of {facts['n']:,} test images, calibration "
        f"error {facts['expected_calibration_error']:.2%}"
        if facts["n"]
        else "clean accuracy unknown: no test image has a label"
    )
    click.echo(f"{out / 'model.safetensors'}: {known}")
    if facts["n"]:
        remedy = TRAIN_LONGER
        if section.checkpoint is not None:
            remedy = _OTHER_IMAGES if is_own(Path(section.checkpoint)) else _LOOK
        classes = test.manifest.num_classes
        warn_of_chance(facts["clean_accuracy"], test.labels, classes, "test", remedy)
    splits = [(images.labels, images.sample_hash) for images in (test, train)]
    counted = test.manifest.one_colour, test.manifest.turned, Duplicates.count(*splits)
    for line in test.manifest.warnings_of(*counted):
        tell(f"warning: {line}")


def _take(params: Params, train: Beton, test: Beton, out: Path) -> dict[str, Any]:
    from ltd_pipe.device import choose_device
    from ltd_pipe.images.stream import ImageStream
    from ltd_pipe.models.checkpoint import save_classifier
    from ltd_pipe.training.run import common_facts

    section, manifest = params.teacher, train.manifest
    path = Path(str(section.checkpoint))
    _refuse_other(section, path)
    classes = None if section.classes is None else Path(section.classes)
    foreign = ModelOptions(
        section.architecture, section.mean, section.std, classes, section.class_order
    )
    model = load_teacher(
        path, manifest, foreign.validated(), ImageStream(train, choose_device(params.device))
    )
    facts = common_facts("teacher", section, train, params.seed) | _measure(model, test)
    save_classifier(model, out / "model.safetensors", **facts)
    return facts


def _refuse_other(section: TeacherParams, path: Path) -> None:
    """Refuse what contradicts a checkpoint of ours, which says it itself."""
    from ltd_pipe.models.facts import is_own, read_facts

    if not is_own(path):
        return
    held = read_facts(path)
    for name in ("mean", "std", "classes", "class_order"):
        given, own = getattr(section, name), held.get(name)
        if given is None or (own is not None and list(given) == [round(one, 6) for one in own]):
            continue
        raise ParamsError(
            f"teacher.{name}",
            f"{path} is a checkpoint of ltd-pipe, which brings its own",
            expected=own or "null",
            found=given,
            remedy="Set it to null.",
        )


def _measure(model: Classifier, test: Beton) -> dict[str, Any]:
    import numpy as np

    from ltd_pipe.evaluation.bench import answer
    from ltd_pipe.evaluation.statistics import mean_gap, reliability
    from ltd_pipe.images.manifest import to_unit
    from ltd_pipe.images.stream import ImageStream

    stream = ImageStream(test, next(model.parameters()).device)
    known = np.flatnonzero(test.labels >= 0)
    if not len(known):
        return {"n": 0}
    answers = [answer(model, to_unit(batch.images)) for batch in stream.batches(known, 256)]
    prediction, confidence = (
        np.concatenate([each[name] for each in answers]) for name in ("prediction", "confidence")
    )
    correct = prediction == test.labels[known]
    return {
        "n": len(known),
        "clean_accuracy": float(correct.mean()),
        "expected_calibration_error": mean_gap(reliability(confidence.astype(np.float32), correct)),
    }
