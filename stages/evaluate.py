"""Stage 5: the student against what it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe import provenance, publish
from ltd_pipe.evaluation.results import SAMPLES_FILE, Score, evaluation_beside, threat_text
from ltd_pipe.stages import options
from ltd_pipe.stages.console import Ticker, bar, doing, json_option, say, stoppable, tell
from ltd_pipe.stages.evaluation_options import measuring, measuring_options

if TYPE_CHECKING:
    from ltd_pipe.distributed import World
    from ltd_pipe.evaluation.bench import TestImages
    from ltd_pipe.evaluation.results import AttackRow, Metrics
    from ltd_pipe.params import Params
    from ltd_pipe.stages.evaluation_options import NamedSubject, Subject


# What names the results, and those of the folder.
_PLACES = "--metrics and --out"
_FILES = (
    *("scores.json", "by_eps.json", "per_class.json", "reliability.json", "corruptions.json"),
    *(SAMPLES_FILE, "examples.npz", "settings.json"),
)


@click.command(cls=options.ParamsCommand)
@measuring_options()
@options.folder(
    "--corruptions",
    help="Folder of corrupted images: NAME.npy with labels.npy, as CIFAR-10-C, or "
    "NAME/SEVERITY/CLASS/.",
)
@options.flag("--quick", help="A first look: 200 images, PGD-10. Marked as such.")
@options.file("--metrics", default="data/metrics.json", help="Where the numbers go.")
@options.folder(
    "--out",
    show_default="evaluation beside --metrics",
    help=f"Folder of {', '.join(_FILES)}.",
)
@options.flag("--force", help="Replace existing results.")
@json_option("Print metrics.json to stdout.")
def evaluate(
    params: Params,
    named: NamedSubject,
    corruptions: Path | None,
    quick: bool,
    metrics: Path,
    out: Path | None,
    force: bool,
) -> None:
    """Measure clean and robust accuracy: FGSM, PGD, CW-PGD and AutoAttack, and by eps.

    MODEL is a checkpoint of ours, another project's weights with --arch, or timm:NAME,
    torchvision:NAME or robustbench:NAME with --weights. Under torchrun the processes share the
    batches of each attack; the numbers are those of one process.

    \b
    Examples:
      ltd-pipe evaluate student/model.safetensors --quick
      ltd-pipe evaluate student/model.safetensors --images 1000 --eps 8/255
      torchrun --standalone --nproc-per-node gpu -m ltd_pipe evaluate student/model.safetensors
      ltd-pipe evaluate student/model.safetensors --norm l2 --eps 0.5 --metrics l2.json --out l2
      ltd-pipe evaluate student/model.safetensors --transfer-from teacher/model.safetensors
      ltd-pipe evaluate robustbench:Rice2020Overfitting --corruptions CIFAR-10-C --eps 8/255
    """
    from ltd_pipe.device import choose_device

    if quick:
        fixed = {"pgd_steps", "pgd_restarts", "attacks", "autoattack", "eps_grid"}
        why = "is fixed in a first look: leave --quick out"
        options.refuse_options(fixed | {"eps_grid_images"}, why)
    options.require_files("corruptions")
    out = out or evaluation_beside(metrics)
    options.refuse_store(out)
    if metrics.resolve() in {(out / name).resolve() for name in ("", *_FILES)}:
        raise click.UsageError(f"--metrics {metrics} is written by --out {out}. Name another file.")
    options.refuse_existing(metrics, force=force, kind=options.METRICS, option=_PLACES)
    if out.resolve() != evaluation_beside(metrics).resolve():
        # Beside them the folder is of these metrics, which appear last: without them half done.
        options.refuse_existing(out / "settings.json", force=force, kind=options.SETTINGS)
    options.note_pipeline(metrics, out)
    with stoppable("measured"), measuring(metrics, _PLACES) as world:
        with doing("loading images and models"):
            subject = named.load(world.device(choose_device(params.device)), strict=False)
        subject.note_other_ball(params.evaluate.norm, params.evaluate.eps)
        if quick:
            section = params.evaluate.quick(subject.images.manifest.num_samples)
            params = params.model_copy(update={"evaluate": section})
        numbers = _measure(subject, params, corruptions, metrics, out, world, quick=quick)
    if numbers is None:
        return
    say(numbers.dump(), [f"{named.model.text}:", *metrics_lines(numbers)])


def _measure(
    subject: Subject,
    params: Params,
    corruptions: Path | None,
    metrics: Path,
    out: Path,
    world: World,
    *,
    quick: bool,
) -> Metrics | None:
    """Measure, and in the first process write all files; what metrics.json holds."""
    from ltd_pipe.evaluation import robustness
    from ltd_pipe.evaluation.corruptions import find_corruptions

    section, model = params.evaluate, subject.model
    test = subject.select(section.images, params.seed)
    settings = _settings(params, subject, test)
    corrupted = [] if corruptions is None else find_corruptions(corruptions, model.class_names)
    state = _state(metrics, params, settings, subject, corruptions, world)
    with bar() as progress:
        ticker = Ticker(progress)
        result = robustness.evaluate(
            model,
            test,
            section,
            seed=params.seed,
            state=state,
            tick=ticker,
            finished=ticker.finished,
            sources=subject.sources,
            corruptions=corrupted,
            stated=subject.stated_accuracy,
            training=subject.training_hashes(),
            doubts=subject.doubts(),
            warn=lambda line: tell(f"WARNING: {line}"),
            world=world,
        )
    if not world.is_main:
        return None
    pictures = robustness.examples(
        model, test, section, count=section.examples, seed=params.seed, scores=result.scores
    )
    robustness.write_folder(out, result, settings, model.class_names, pictures)
    sha256 = settings["checkpoint_sha256"]
    numbers = robustness.metrics_of(result, section, quick=quick, checkpoint_sha256=sha256)
    publish.write_json(out / "scores.json", numbers.compared())
    # The last to appear: its presence tells that all is there.
    publish.write_json(metrics, numbers.dump())
    publish.remove_state(state.folder)
    return numbers


def _settings(params: Params, subject: Subject, test: TestImages) -> dict[str, Any]:
    """What settings.json holds."""
    import torch

    from ltd_pipe.evaluation.robustness import main_attack

    section = params.evaluate
    return {
        "attacks": [{"name": "PGD", **main_attack(section).facts(section.eps)}],
        "autoattack_version": section.autoattack,
        "norm": section.norm,
        "eps": section.eps,
        "images": len(test),
        "batch_size": section.batch_size,
        "precision": "float32",
        "tf32": torch.backends.cudnn.allow_tf32,
        "seed": params.seed,
        **subject.facts(),
        "dataset": subject.images.manifest.dataset,
        # Of the source, however it was stored and resized.
        "data_fingerprint": subject.images.manifest.fingerprint,
        "image_shape": list(subject.model.shape),
        "pixels_sha256": test.pixels_sha256,
        "software": provenance.software(),
        "hardware": provenance.hardware(),
    }


def _state(
    metrics: Path,
    params: Params,
    settings: dict[str, Any],
    subject: Subject,
    corruptions: Path | None,
    world: World,
) -> provenance.StateRecord:
    """Of this evaluation's finished batches."""
    from ltd_pipe.evaluation.corruptions import state_of_corruptions

    # What they are called decides nothing, and what rounds is looked at apart.
    decides = {
        name: value
        for name, value in settings.items()
        if name not in ("dataset", "software", "hardware")
    } | {
        "params": params.evaluate.model_dump(exclude={"examples"}),
        "corruptions": None if corruptions is None else state_of_corruptions(corruptions),
    }
    return subject.state("evaluate", metrics, decides, world)


def metrics_lines(metrics: Metrics) -> Iterator[str]:
    """What a terminal shows of metrics.json."""
    if metrics.quick:
        yield "QUICK LOOK: few images and a weak attack. Not a result: leave --quick out for one."
    width = max(17, *(len(row.name) for row in metrics.attacks))
    for row in metrics.attacks:
        yield f"  {row.name:<{width}}{_accuracy(row.score)}   {_conditions(row)}"
    clean = metrics.expected_calibration_error
    attacked = metrics.expected_calibration_error_under_attack
    n = f"{metrics.n:,} images"
    yield f"  calibration error {clean:.2%} clean, {attacked:.2%} under PGD's first start, {n}"
    if metrics.corruptions and (mean := metrics.scores.get("corruption")):
        images = f"{metrics.corruptions.sets} sets of {mean.n:,} images"
        yield f"  {'corruptions, mean':<{width}}{_accuracy(mean)}   no attack, {images}"
    if metrics.zero_accuracy_at_eps is not None:
        threat = threat_text(metrics.norm, metrics.zero_accuracy_at_eps)
        yield f"  PGD-20 leaves nothing at {threat}, {metrics.eps_grid_images:,} images"
    if "autoattack" not in metrics.scores:
        yield "  AutoAttack was left out: the PGD number alone is no claim of robustness."
    yield f"  not measured: {', '.join(metrics.not_measured)}"
    for line in metrics.warnings:
        yield f"  WARNING: {line}"


def _accuracy(score: Score) -> str:
    return f"{score.value:>9.2%}   95 % interval {score.low:.2%} to {score.high:.2%}"


def _conditions(row: AttackRow) -> str:
    images, decides = f"{row.n:,} images", row.decides
    if "norm" not in decides:
        return f"no attack, {images}"
    package = f", {decides['package']}" if "package" in decides else ""
    known = decides.get("source_clean_accuracy")
    source = "" if known is None else f", source {known:.2%} clean"
    return f"{threat_text(decides['norm'], decides['eps'])}, {images}{package}{source}"
